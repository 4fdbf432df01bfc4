"""Keep a client's records by rounds, so that the client can go back to any round that the server may go on from.

A deployed client keeps its new state before its reply is sent. If the reply is lost, late or refused, the round does not
count, and the client's next request says which of its rounds was the last one that counted. If the server goes on from a
checkpoint, that round may lie further back. So the client keeps what it had after each round that the server may still
name, and no other.
"""

import re
from collections.abc import Collection

from flwr.app import ConfigRecord, RecordDict

from fedssl.exchange.protocol import Request

ROUND = re.compile(r"round-(\d+)\.(\d+)/(.*)", re.DOTALL)
"""The name of a record of a round: the round, how often the client was asked before in it, and the record's own name."""

Key = tuple[int, int]
"""A round, and how often the client was asked before in it."""


class StateLost(ValueError):
    """The client no longer has what it kept in the round that it must go on from."""


def go_to_counted_round(
    kept: RecordDict, request: Request, fixed: Collection[str], *, keeps: bool
) -> None:
    """Put the records with which a request begins into place, under their own names.

    They are those of the client's last round that counted. A further request of the same round goes on from what the
    client learned in that round.

    Args:
        kept: All records that the client keeps; changed in place.
        request: Says which round of the client was the last one that counted. If it does not say so, nothing changes.
        fixed: Names of records that do not change, such as a frozen teacher; they are kept once, under their own names.
        keeps: Whether the client keeps anything else; if it does not, it has nothing to lose.

    Raises:
        StateLost: The records are not there. The client begins anew with its next request.
    """
    if request.counted is None:
        return
    for name in [name for name in kept if not ROUND.fullmatch(name) and name not in fixed]:
        del kept[name]  # left by a request that failed
    own = [key for key in _keys(kept) if key[0] == request.server_round and key[1] < request.repeat]
    counted = [key for key in _keys(kept) if key[0] == request.counted]
    if own or counted:
        round, repeat = max(own or counted)
        prefix = _name(round, repeat)
        found = {n.removeprefix(prefix): r for n, r in kept.items() if n.startswith(prefix)}
        kept.update({name: record for name, record in found.items() if name})
    elif request.counted and keeps:
        kept[_name(request.counted, 0)] = ConfigRecord({})  # found by the next request
        raise StateLost(
            f"the client has lost what it kept in round {request.counted}, and begins anew with its next request"
        )


def keep_round(kept: RecordDict, request: Request, fixed: Collection[str]) -> None:
    """Keep a client's records as those of the current round, and forget the rounds that the server cannot name any more.

    Args:
        kept: All records that the client keeps; changed in place.
        request: The request of the current round. If it does not say which round counted last, nothing changes.
        fixed: Names of records that do not change; they stay under their own names.
    """
    if request.counted is None:
        return
    current = (request.server_round, request.repeat)
    kept[_name(*current)] = ConfigRecord({})  # marks the round, even if the client keeps nothing
    for name in [name for name in kept if not ROUND.fullmatch(name) and name not in fixed]:
        kept[_name(*current) + name] = kept.pop(name)
    keys = _keys(kept)
    needed = {key for key in keys if key[0] == current[0] and key <= current}
    for round in {request.counted, *request.kept_rounds}:
        needed |= set(sorted(key for key in keys if key[0] == round != current[0])[-1:])
    for name in list(kept):
        if (match := ROUND.fullmatch(name)) and _key(match) not in needed:
            del kept[name]


def _keys(kept: RecordDict) -> set[Key]:
    return {_key(match) for name in kept if (match := ROUND.fullmatch(name))}


def _key(match: re.Match[str]) -> Key:
    return int(match[1]), int(match[2])


def _name(round: int, repeat: int) -> str:
    """Return the first part of the names of a round's records; alone, it is the name of the record that marks the round."""
    return f"round-{round}.{repeat}/"
