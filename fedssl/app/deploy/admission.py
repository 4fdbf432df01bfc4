"""Let clients in: their keys are registered at the SuperLink and the gate, and their numbers are bound to their keys."""

import itertools
import re
import shlex
import time
from collections.abc import Collection
from pathlib import Path

from fedssl.app.deploy.admitted import read_public_key
from fedssl.app.deploy.deployment import Deployment
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


def admit(
    opened: Opened, key: Path, name: str, number: int | None, *, replace: bool = False
) -> bool:
    """Register a client's public key at the SuperLink and the gate; return False if it was registered before.

    Args:
        opened: The deployment.
        key: File of the public key.
        name: The client's name.
        number: The client's number, bound to its key; None: it may use any number that is bound to no client.
        replace: Whether the key may take the name or the number of another key, which is let out then, and whether the
            client may change its number. A key that takes a name and is given no number takes the number too.

    Raises:
        InputError: The name or the number belongs to another key and is not to be replaced, or the key has another name.
        RunFailed: The SuperLink refuses the key.
    """
    deployment = opened.deployment
    roster = Roster(deployment.roster)
    _refuse_other_name(deployment, key, name)
    _refuse_let_out(deployment, key)
    before = roster.read().get(name)
    admitted = deployment.admitted / f"{name}.pub"
    has_other_key = admitted.exists() and not _is_same_key(admitted, key)
    if has_other_key and number is None and before is not None:
        number = before.number
    owner = roster.owner_of(number)
    if not replace:
        _refuse_replacing(opened, key, name, number, owner, before, has_other_key=has_other_key)
    # Register the new key first, so that nothing is lost if the SuperLink refuses it.
    former = _place_for_former_key(deployment, name)
    if has_other_key:
        admitted.replace(former)
    is_new = not admitted.exists()
    if is_new:
        deployment.write_file(admitted, key.read_bytes())
    try:
        node = opened.operator.register(str(opened.at / "admitted" / admitted.name), name)
    except RunFailed:
        if is_new:
            admitted.unlink()
        if has_other_key:
            former.replace(admitted)
        raise
    # Forget the keys that are replaced.
    replaced: dict[str, Registered | None] = {}
    if has_other_key:
        replaced[name], before = before, None
    if owner not in ("", name):
        owners_key = deployment.admitted / f"{owner}.pub"
        if owners_key.exists():
            owners_key.replace(_place_for_former_key(deployment, owner))
        replaced[owner] = roster.read()[owner]
        roster.remove(owner)
    # Note the node and its number.
    if node is not None:
        roster.add(name, Registered(node, number))
    elif before is not None and number is not None:
        roster.add(name, Registered(before.node, number))
    elif before is None and number is not None:
        say(f"{name}: its node's id is not known, so another client may use the number {number}")
    for other, entry in replaced.items():
        _let_out(opened, other, entry)
    return node is not None


def _refuse_other_name(deployment: Deployment, key: Path, name: str) -> None:
    """Raise `InputError` if a key is registered under another name already."""
    for file in sorted(deployment.admitted.glob("*.pub")):
        if file.stem != name and _is_same_key(file, key):
            raise InputError(
                "KEY", f"{key} is registered as {file.stem!r} already", f"add --name {file.stem}"
            )


def _refuse_let_out(deployment: Deployment, key: Path) -> None:
    """Raise `InputError` if a key was let out before: Flower never registers such a key again (1.41)."""
    if any(_is_same_key(file, key) for file in deployment.admitted.glob(f"*{_FORMER}")):
        raise InputError(
            "KEY",
            f"{key} was replaced, and a key that was let out is never let in again",
            "let its client make another one: fedssl deploy join with another --key",
        )


_FORMER = ".former"
"""The suffix of the files of keys that were let out."""


def _place_for_former_key(deployment: Deployment, name: str) -> Path:
    """Return a file that does not exist, for a key that is let out."""
    places = (deployment.admitted / f"{name}.{number}{_FORMER}" for number in itertools.count(1))
    return next(place for place in places if not place.exists())


def _is_same_key(first: Path, second: Path) -> bool:
    """Return whether two files hold the same public key, whatever comment follows the key."""
    return first.read_bytes().split()[:2] == second.read_bytes().split()[:2]


def _refuse_replacing(
    opened: Opened,
    key: Path,
    name: str,
    number: int | None,
    owner: str,
    before: Registered | None,
    *,
    has_other_key: bool,
) -> None:
    """Refuse a key that would take the name or the number of another key, or a client that would change its number.

    Args:
        opened: The deployment.
        key: File of the public key.
        name: The client's name.
        number: The number that the client is to have.
        owner: Name of the client to which the number is bound; empty: it is bound to none.
        before: The client of this name as it is registered; None: there is none.
        has_other_key: Whether the client of this name has another key.

    Raises:
        InputError: The key would do so. The error says how to replace on purpose.
    """
    chosen = "" if number is None else f" --number {number}"
    command = opened.command(f"register {shlex.quote(str(key))} --name {name}{chosen} --replace")
    if has_other_key:
        out = "that key" if owner in ("", name) else f"that key and {owner!r}"
        raise InputError(
            "--name",
            f"{name!r} has another key already",
            f"give another name; or let {out} out and this one in: {command}",
        )
    if owner not in ("", name):
        raise InputError(
            "--number",
            f"{number} is bound to {owner!r} already",
            f"give another number; or let {owner!r} out: {command}",
        )
    if before is not None and number is not None and before.number not in (None, number):
        raise InputError(
            "--number",
            f"{name!r} is client {before.number} already",
            f"to make it client {number} on purpose: {command}",
        )


def _let_out(opened: Opened, name: str, entry: Registered | None) -> None:
    """Unregister a client's former key at the SuperLink, and say so."""
    if entry is None:
        say(f"{name}: the node of its former key is not known, so the SuperLink still lets it in")
        return
    opened.operator.unregister(entry.node)
    say(f"{name}: its former key is not let in any more")


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
