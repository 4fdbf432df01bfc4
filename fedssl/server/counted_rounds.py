"""The last round of each client whose replies the server counted: a client that keeps its own state must know it.

Such a client keeps what it learned before its reply is sent. If the reply is lost, late or refused, the server goes on as
if the client had not trained, and so must the client. The sum of SCAFFOLD's variates over the clients, for example, is a
part of the server's state. A run that goes on from a checkpoint begins with the rounds that counted then.
"""

import secrets
from collections.abc import Mapping, Sequence

from flwr.app import Message, RecordDict

from fedssl.core.arrays import NamedArrays
from fedssl.core.kept import as_array, from_array
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.record.checkpoint import is_due
from fedssl.server.round_log import RoundLog

MARKS = 3
"""Clients keep their rounds of this many checkpoints: two are on disk, and one more is due while the last round is recorded."""


class CountedRounds:
    """Note which rounds count, and say so in the requests, where a client finds the round that it must go on from.

    Args:
        checkpoint_every: A checkpoint is written after the first round, and after every so many rounds.
    """

    def __init__(self, checkpoint_every: int) -> None:
        self._every = checkpoint_every
        self._run = secrets.token_hex(16)
        self._last: dict[int, int] = {}
        self._marks: list[Mapping[int, int]] = []

    def kept(self) -> NamedArrays:
        """Return the name of the run, the rounds that counted last, and those that counted at earlier checkpoints."""
        rounds = [sorted(mark.items()) for mark in (*self._marks, self._last)]
        return {"run": as_array(self._run), "rounds": as_array(rounds)}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        if not kept:
            return  # an earlier version kept nothing; clients begin anew
        self._run = from_array(kept["run"])
        rounds = [dict(pairs) for pairs in from_array(kept["rounds"])]
        self._marks, self._last = list(rounds[:-1]), rounds[-1]
        self._mark()

    def attach(self, messages: Sequence[Message], census: Census) -> None:
        """Put each client's rounds into its requests, in place; equal requests go on to share one content."""
        extended: dict[tuple[int, int, tuple[int, ...]], RecordDict] = {}
        contents = [message.content for message in messages]  # kept alive, so that their ids differ
        for message, content in zip(messages, contents, strict=True):
            client = census.client_at[message.metadata.dst_node_id]
            last = self._last.get(client, 0)
            others = tuple(sorted({mark.get(client, 0) for mark in self._marks} - {0, last}))
            key = id(content), last, others
            if key not in extended:
                entries: dict[str, int | bool | str | list[int]] = {
                    protocol.RUN: self._run,
                    protocol.COUNTED: last,
                    protocol.KEPT_ROUNDS: list(others),
                }
                extended[key] = protocol.with_config(content, entries)
            message.content = extended[key]

    def note(self, log: RoundLog) -> None:
        """Note the clients whose replies of a round count."""
        self._last |= dict.fromkeys(log.counted_clients, log.round)

    def end_round(self, round: int) -> None:
        """Note that a round is over; clients must be able to go back to it if a checkpoint of it is due."""
        if is_due(round, self._every):
            self._mark()

    def _mark(self) -> None:
        if not self._marks or self._marks[-1] != self._last:
            self._marks = [*self._marks, dict(self._last)][-MARKS:]
