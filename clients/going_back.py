"""Let a client that keeps its own state go back to the state that it had before a round which did not count.

The client keeps its new state before its reply is sent. If the reply is lost, late or refused, the client's next request
says that an earlier round was the last one that counted. So the client also keeps the state from before its last round.
"""

from collections.abc import Collection
from typing import cast

from flwr.app import ConfigRecord, RecordDict

from fedssl.exchange import protocol
from fedssl.exchange.protocol import Request

BEFORE = "before."
"""First part of the names of records from before the client's last round; the record's own name follows."""

LAST = "last-round"
"""Name of the record that holds the client's last round."""


def go_back_if_uncounted(kept: RecordDict, request: Request, fixed: Collection[str]) -> None:
    """Put back the records from before the client's last round, in place, unless that round counted.

    A further request of the same round goes on from what the client learned in that round.

    Args:
        kept: Records that the client kept in its earlier rounds.
        request: Says which round of the client was the last one that counted. If it does not say so, nothing changes.
        fixed: Names of records that do not change, such as a frozen teacher; they stay.
    """
    last = _last_round(kept)
    goes_on = request.repeat > 0 and last == request.server_round
    if request.counted is None or last is None or goes_on or last == request.counted:
        return
    stays = {name: record for name, record in kept.items() if name in fixed}
    before = {n.removeprefix(BEFORE): r for n, r in kept.items() if n.startswith(BEFORE)}
    kept.clear()
    kept.update({**stays, **before})


def keep_before(kept: RecordDict, request: Request, fixed: Collection[str]) -> None:
    """Keep a client's records as those from before the current round, in place; call it before they change.

    Records that change are replaced and never written to, so nothing is copied.

    Args:
        kept: Records that the client kept in its earlier rounds.
        request: The request of the current round. If it does not say which round counted last, nothing changes.
        fixed: Names of records that do not change; they are kept once.
    """
    is_same_round = request.repeat > 0 and _last_round(kept) == request.server_round
    if request.counted is None or is_same_round:
        return
    now = {n: r for n, r in kept.items() if not n.startswith(BEFORE) and n != LAST}
    kept.clear()
    kept.update(now)
    kept.update({f"{BEFORE}{name}": r for name, r in now.items() if name not in fixed})
    kept[LAST] = ConfigRecord({protocol.ROUND: request.server_round})


def _last_round(kept: RecordDict) -> int | None:
    record = kept.get(LAST)
    return cast("int", record[protocol.ROUND]) if isinstance(record, ConfigRecord) else None
