"""What a worker does with the clients it is handed, in whatever process it lives: run, try again, reduce."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import Context, Message, Metadata, RecordDict

from fedssl.exchange import protocol
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Answer, CohortSums, Reduction, Sum
from fedssl.exchange.unit_replies import Replies

App = Callable[[Message, Context], Message]
Together = Callable[[Sequence[Message], Sequence[Context]], Replies]
"""An app that takes several clients in one go."""


@dataclass(frozen=True)
class Job:
    """One message on its way to a worker, its content apart.

    Args:
        metadata: The message's.
        content: Key of its content.
        client: Number of the client it is for.
        state: What the client keeps from its earlier rounds.
        holding: What the census said of the client; None: it is not known.
    """

    metadata: Metadata
    content: int
    client: int
    state: bytes | None
    holding: Holding | None = None


Unit = tuple[Job, ...]
"""Clients that run together: one, or several that are fused into one step."""


@dataclass(frozen=True)
class Rules:
    """How clients are run.

    Args:
        run_id: Flower's number of the run.
        num_clients: K.
        retries: How often a client that fails is tried again.
        reduction: How replies are summed; None: they go back as they are.
    """

    run_id: int
    num_clients: int
    retries: int
    reduction: Reduction | None


@dataclass(frozen=True)
class Done:
    """What came of some units.

    Args:
        replies: One a job, in order; empty if they were reduced.
        answers: Likewise, if they were.
        part: Their sums.
        states: Client and what it keeps from now on.
        notes: What was warned of meanwhile.
        seconds: It took.
    """

    replies: Sequence[Message]
    answers: Sequence[Answer]
    part: Mapping[str, Sum]
    states: Sequence[tuple[int, bytes | None]]
    notes: Sequence[str]
    seconds: float


class Worker:
    """Run clients one after the other, or those of a unit together.

    Args:
        app: The client app.
        device: Where clients train.
        together: Runs units of several clients; needed only if there are any.
    """

    def __init__(self, app: App, device: str, together: Together | None = None) -> None:
        self._app = app
        self._device = device
        self._together = together
        self.busy_since: tuple[int, float] | None = None
        """Place of the unit that runs now, and when it began; read by whoever watches."""

    def run(self, units: Sequence[Unit], contents: Mapping[int, RecordDict], rules: Rules) -> Done:
        """Run units in order; a client that raises is an answer and stops nobody else."""
        began = time.perf_counter()
        sums = None if rules.reduction is None else CohortSums(rules.reduction, len(units))
        replies: list[Message] = []
        answers: list[Answer] = []
        states: list[tuple[int, bytes | None]] = []
        with _warnings() as notes:
            for place, unit in enumerate(units):
                given, kept = self._run_unit(place, unit, contents, rules)
                states += kept
                if sums is None:
                    replies += given.messages
                else:
                    left, part = given.reduce(sums.reduction, [job.holding for job in unit])
                    answers += left
                    sums.add_part((place, place + 1), part)
        self.busy_since = None
        part = {} if sums is None else sums.result()
        return Done(replies, answers, part, states, notes, time.perf_counter() - began)

    def _run_unit(
        self, place: int, unit: Unit, contents: Mapping[int, RecordDict], rules: Rules
    ) -> tuple[Replies, list[tuple[int, bytes | None]]]:
        """Run a unit, and run it again as long as one of its clients fails and it may be."""
        for attempt in range(1 + rules.retries):
            self.busy_since = (place, time.monotonic())
            opened = [self._open(job, contents, rules) for job in unit]
            messages, contexts = [m for m, _ in opened], [c for _, c in opened]
            replies = self._ask(messages, contexts)
            failed = replies.failed
            if attempt == rules.retries or not any(failed):
                break
        # One that failed keeps what it had.
        kept = [
            (job.client, protocol.state_to_bytes(context.state))
            for job, context, has_failed in zip(unit, contexts, failed, strict=True)
            if not has_failed
        ]
        return replies, kept

    def _ask(self, messages: list[Message], contexts: list[Context]) -> Replies:
        if len(messages) == 1:
            return Replies([protocol.reply_or_explain(messages[0], contexts[0], self._app)])
        assert self._together is not None, "units of several clients need an app that takes them"
        try:
            return self._together(messages, contexts)
        except Exception as error:
            said = protocol.explain_error(error)
            return Replies([protocol.error_reply(message, said) for message in messages])

    def _open(
        self, job: Job, contents: Mapping[int, RecordDict], rules: Rules
    ) -> tuple[Message, Context]:
        context = protocol.new_context(
            rules.run_id, job.client, rules.num_clients, self._device, job.state
        )
        return protocol.message_of(job.metadata, contents[job.content]), context


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what our own loggers warn of: in a worker of another process nobody would see it."""
    collector = _Collector(logging.WARNING)
    logger = logging.getLogger("fedssl")
    logger.addHandler(collector)
    try:
        yield collector.notes
    finally:
        logger.removeHandler(collector)


class _Collector(logging.Handler):
    """Keep what is said."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())
