"""Free ports for deployments that tests start."""

import socket
import tomllib
from contextlib import suppress
from pathlib import Path

import tomli_w

from fedssl.app.deploy.ports import find_free_ports


def give_free_ports(folder: Path) -> None:
    """Let a deployment that was just made listen where nothing else does."""
    file = folder / "deployment.toml"
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    table["port"], table["superlink_port"], *_ = find_free_ports(2)
    while True:  # two in a row
        table["client_port"], *_ = find_free_ports(1)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", table["client_port"] + 1))
            break
    file.write_text(tomli_w.dumps(table), encoding="utf-8")
