"""Run Flower's SuperNode as a process that ends when its work ends.

A SuperNode that has given up on its server logs the error and leaves its loop. Its process lives on, because a thread
of its API is not a daemon, and still answers that it is well (flwr 1.41), so nobody would start it again. Here the
process ends, so that a keeper or the engine of containers starts the next one.

The client app runs in forks of a process beside the SuperNode (`fedssl.app.deploy.forks`). While messages come one soon after the other,
the SuperNode looks for the next one more often than Flower would (`Pace`).

A SuperNode whose key is refused ends with an exit code of its own, and with one line in place of Flower's numbers. So
does one whose client was given a number that is not its own: the census would only tell once a run begins.

    python -m fedssl.app.deploy.supernode ARGUMENTS-OF-FLOWER-SUPERNODE...
"""

import argparse
import logging
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fedssl.core.processes import quick_imports

with quick_imports():
    from flwr.common.config import parse_config_args
    from flwr.common.constant import ISOLATION_MODE_PROCESS
    from flwr.supercore.constant import SUPERNODE_UVICORN_DEFAULT_PORT, UVICORN_DEFAULT_HOST
    from flwr.supercore.error import ApiErrorCode
    from flwr.supernode import start_client_internal as loop
    from flwr.supernode.cli.flower_supernode import flower_supernode

    from fedssl.app.deploy.own_number import find_false_number
    from fedssl.app.deploy.services import LOST, REFUSED, WRONG_NUMBER
    from fedssl.exchange.protocol import PARTITION_ID

SHARE = 0.25
"""A SuperNode that waits looks again after this share of the time that it has waited already."""

LEAST_SHARE = 0.1
"""It looks again after this share of Flower's pause at the earliest."""

EXECUTOR_SECONDS = "0.25"
"""The executor looks for a message after this many seconds; Flower's own number is 1 (1.41)."""


class Pace:
    """Stands for the module `time` in Flower's loop, which pauses for 3 s between messages and 0.5 s before a reply (flwr 1.41).

    The pauses grow from a tenth of Flower's pause to the whole. So a round of a few seconds does not wait three seconds for each message,
    and an idle SuperNode asks its server no more often than Flower's does.

    Args:
        connected: Is called before the first pause, when the server has let the SuperNode in.
    """

    def __init__(self, connected: Callable[[], None]) -> None:
        self._connected = connected
        self._pause = 0.0
        self._since = 0.0

    def sleep(self, pause: float) -> None:
        """Wait for `pause` seconds or less; another pause than the last one is another wait."""
        now = time.monotonic()
        if not self._pause:
            self._connected()
        if pause != self._pause:
            self._pause, self._since = pause, now
        time.sleep(min(pause, max(LEAST_SHARE * pause, SHARE * (now - self._since))))


class Refusal(logging.Filter):
    """Hide Flower's message on a refused key, and remember that there was one (flwr 1.41)."""

    _CODE = f"[code: {ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:d}]"

    def __init__(self) -> None:
        super().__init__()
        self.was_seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is shown."""
        is_refusal = self._CODE in record.getMessage()
        self.was_seen |= is_refusal
        return not is_refusal


def _refuse_false_number() -> None:
    """End this process if the deployment has bound another number to this client's key."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--superlink", default="")
    parser.add_argument("--root-certificates", type=Path)
    parser.add_argument("--auth-supernode-private-key", type=Path)
    parser.add_argument("--node-config", default="")
    known, _ = parser.parse_known_args()
    number = parse_config_args([known.node_config]).get(PARTITION_ID)
    authority, key = known.root_certificates, known.auth_supernode_private_key
    if not isinstance(number, int) or authority is None or key is None:
        return
    if problem := find_false_number(known.superlink, authority, key, number):
        print(f"this client's number {problem}", file=sys.stderr)
        sys.exit(WRONG_NUMBER)


def _start_executor() -> None:
    """Start the process that runs the client app. It ends with this one, and this one with it: alone, it would answer nothing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=SUPERNODE_UVICORN_DEFAULT_PORT)
    known, _ = parser.parse_known_args()
    address = f"{UVICORN_DEFAULT_HOST}:{known.port}"
    module = "fedssl.app.deploy.client_executor"
    executor = subprocess.Popen(
        [sys.executable, "-P", "-m", module, address, str(os.getpid())],
        env={**os.environ, "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": EXECUTOR_SECONDS},
    )
    threading.Thread(target=_end_with, args=(executor,), daemon=True).start()


def _end_with(executor: "subprocess.Popen[bytes]") -> None:
    """End this process when the executor has ended, for example because memory was short; the keeper starts both anew."""
    executor.wait()
    print("the process that runs the client app has ended, so this process ends", file=sys.stderr)
    sys.stderr.flush()
    os._exit(LOST)


def main() -> None:
    """Run a SuperNode; end this process when it returns or raises."""
    _refuse_false_number()
    sys.argv += ["--isolation", ISOLATION_MODE_PROCESS]  # Flower starts no executor of its own
    loop.time = Pace(_start_executor)  # type: ignore[attr-defined, assignment]
    refusal = Refusal()
    logging.getLogger("flwr").addFilter(refusal)
    code = LOST
    try:
        flower_supernode()
        print("the SuperNode has lost its server, so this process ends", file=sys.stderr)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        if refusal.was_seen:
            code = REFUSED
            print(
                "the server refuses this client's key: it is not registered, or another process uses it",
                file=sys.stderr,
            )
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
