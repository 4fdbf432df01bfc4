"""Let clients in: their keys are registered at the SuperLink and the gate, and their numbers are bound to their keys."""

import re
import time
from collections.abc import Collection
from pathlib import Path

from fedssl.app.deploy.admitted import read_public_key
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.operator import Operator
from fedssl.app.deploy.options import say
from fedssl.app.deploy.roster import Registered, Roster
from fedssl.core.errors import InputError, RunFailed

POLL_SECONDS = 1.0
"""A command that waits for clients counts the connected clients again after this many seconds."""

CONNECT_SECONDS = 120.0
"""The clients of a deployment must be connected within this many seconds."""


def check_client(key: Path, name: str | None) -> str:
    """Check the public key of a client elsewhere, and return the client's name.

    Args:
        key: File of the public key.
        name: The name that the user gives; None: the name of the key's file.

    Raises:
        InputError: The file holds no public key of a client, or the name cannot be one.
    """
    try:
        read_public_key(key)
    except OSError as error:
        raise InputError("KEY", f"{key} cannot be read: {error.strerror}") from None
    except ValueError:
        raise InputError(
            "KEY",
            f"{key} is not a client's public key, and was not copied",
            f"give the .pub file that `fedssl deploy join` made (ECDSA, one line of text); "
            f"a private key stays on its client's host{_mention_public_key(key)}",
        ) from None
    called = key.stem if name is None else name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", called):
        raise InputError(
            "--name",
            f"{called!r} cannot be a client's name",
            "use up to 64 letters, digits, dots, hyphens and underscores",
        )
    return called


def _mention_public_key(key: Path) -> str:
    """Return a clause that names the public key beside a private key; empty if there is none."""
    public = key.with_name(f"{key.name}.pub")
    return f" (beside this file is {public})" if public.is_file() else ""


def register_all(opened: Opened) -> None:
    """Register every client of a deployment that has its service here."""
    for number in range(opened.deployment.settings.clients):
        name = f"client-{number}"
        public = opened.deployment.key(number).with_name(f"{name}.pub")
        if not admit(opened, public, name, number):
            say(f"{name}: was registered already")


def admit(opened: Opened, key: Path, name: str, number: int | None) -> bool:
    """Register a client's public key at the SuperLink and the gate; return False if it was registered before.

    Raises:
        InputError: The name or the number belongs to another client.
        RunFailed: The SuperLink refuses the key.
    """
    deployment = opened.deployment
    roster = Roster(deployment.roster)
    roster.refuse_taken(name, number)
    admitted = deployment.admitted / f"{name}.pub"
    is_new = not admitted.exists()
    if not is_new and admitted.read_bytes() != key.read_bytes():
        raise InputError("--name", f"{name!r} has another key already", "use another name")
    if is_new:
        deployment.write_file(admitted, key.read_bytes())
    try:
        node = opened.operator.register(str(opened.at / "admitted" / admitted.name), name)
    except RunFailed:
        if is_new:
            admitted.unlink()
        raise
    before = roster.read().get(name)
    if node is not None:
        roster.add(name, Registered(node, number))
    elif before is not None and number is not None:
        roster.add(name, Registered(before.node, number))
    elif before is None and number is not None:
        say(f"{name}: its node's id is not known, so another client may use the number {number}")
    return node is not None


def find_lost_clients(opened: Opened, ran: Collection[str]) -> set[str]:
    """Return and print the names of the clients that ran before but are not connected.

    Args:
        opened: The deployment.
        ran: Names of the services that ran before.
    """
    if not ran:
        return set()
    roster = Roster(opened.deployment.roster)
    away = {
        roster.name_of(str(node["node-id"]))
        for node in opened.operator.nodes()
        if node["status"] != "online"
    }
    lost = away & set(ran)
    for name in sorted(lost):
        say(f"{name} runs but is not connected; it is started again")
    return lost


def count_connected(operator: Operator) -> int:
    """Return how many clients are connected."""
    return sum(node["status"] == "online" for node in operator.nodes())


def wait_for_clients(opened: Opened) -> None:
    """Wait until as many clients are connected as have a service here.

    Raises:
        RunFailed: They are not connected in time.
    """
    wanted = opened.deployment.settings.clients
    deadline = time.monotonic() + CONNECT_SECONDS
    while (there := count_connected(opened.operator)) < wanted:
        if time.monotonic() > deadline:
            raise RunFailed(f"{there} of {wanted} clients are connected; {opened.describe_logs()}")
        time.sleep(POLL_SECONDS)
