"""Pause the gate of a running deployment for 100 s, and check that its clients come back by themselves (4 minutes).

    python -m tests.app.deploy.paused_gate DEPLOYMENT

In flwr 1.41, a SuperNode whose handshake takes too long never connects again, but its process lives on
(`fedssl.app.deploy.supernode`).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.operator import Operator

PAUSE_SECONDS, BACK_SECONDS = 100.0, 200.0


def main() -> None:
    """Say how many clients were connected before, and how long it took until all of them were again."""
    deployment = Deployment.open(Path(sys.argv[1]))
    operator = Operator(deployment.connection.parent, list, print)

    def connected() -> int:
        return sum(node["status"] == "online" for node in operator.nodes())

    def starts() -> list[int]:
        files = sorted(deployment.processes.glob("client-*.json"))
        return [json.loads(file.read_text())["starts"] for file in files]

    wanted = connected()
    print(f"{wanted} clients are connected; starts: {starts()}")
    gate = json.loads((deployment.processes / "gate.json").read_text())["process"]
    os.kill(gate, signal.SIGSTOP)
    time.sleep(PAUSE_SECONDS)
    os.kill(gate, signal.SIGCONT)
    began = time.monotonic()
    print(f"after {PAUSE_SECONDS:g} s of pause: {connected()} connected; starts: {starts()}")
    while connected() < wanted:
        if time.monotonic() - began > BACK_SECONDS:
            sys.exit(f"{connected()} of {wanted} clients came back; starts: {starts()}")
        time.sleep(2)
    print(f"all are back {time.monotonic() - began:.0f} s later; starts: {starts()}")


if __name__ == "__main__":
    main()
