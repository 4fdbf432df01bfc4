"""A worker, in any process: it runs clients, tries failed clients again, and sums their replies."""

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
"""An app that runs several clients together."""


@dataclass(frozen=True)
class Job:
    """One message to a worker, without its content, which may be shared by many messages.

    Args:
        metadata: Metadata of the message.
        content: Key of the message's content among the contents.
        client: Number of the client that gets the message.
        state: What the client keeps from earlier rounds; None: nothing.
        holding: What the census says about the client; None: unknown.
    """

    metadata: Metadata
    content: int
    client: int
    state: bytes | None
    holding: Holding | None = None


Unit = tuple[Job, ...]
"""The jobs of clients that run together: one client, or several clients that are fused into one step."""


@dataclass(frozen=True)
class Rules:
    """How clients are run.

    Args:
        run_id: Flower's number of the run.
        num_clients: Number of clients, K.
        retries: How often a client that fails is tried again.
        reduction: How replies are summed; None: replies are returned as messages.
    """

    run_id: int
    num_clients: int
    retries: int
    reduction: Reduction | None


@dataclass(frozen=True)
class Done:
    """The results of some units.

    Args:
        replies: The reply to each job, in order; empty if replies were summed.
        answers: The answer to each job, in order; empty if replies were not summed.
        part: The sums of the replies, by record.
        states: Each client that succeeded, and what it keeps from now on; None: nothing.
        notes: Warnings that our loggers gave meanwhile.
        seconds: Time that the units took (seconds).
    """

    replies: Sequence[Message]
    answers: Sequence[Answer]
    part: Mapping[str, Sum]
    states: Sequence[tuple[int, bytes | None]]
    notes: Sequence[str]
    seconds: float


class Worker:
    """Run units one after the other; the clients of a unit run together.

    Args:
        app: The app that runs one client.
        device: Device on which clients train.
        together: The app that runs units of several clients; needed only for such units.
    """

    def __init__(self, app: App, device: str, together: Together | None = None) -> None:
        self._app = app
        self._device = device
        self._together = together
        self.busy_since: tuple[int, float] | None = None
        """The place of the running unit and the time at which it began (seconds of a monotonic clock); None: no unit
        runs. Code that watches the worker reads it."""

    def run(self, units: Sequence[Unit], contents: Mapping[int, RecordDict], rules: Rules) -> Done:
        """Run units in order; a client that raises gets an error as its reply and stops no other client."""
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
        """Run a unit, and run it again while one of its clients fails and retries are left."""
        for attempt in range(1 + rules.retries):
            self.busy_since = (place, time.monotonic())
            opened = [self._open(job, contents, rules) for job in unit]
            messages, contexts = [m for m, _ in opened], [c for _, c in opened]
            replies = self._ask(messages, contexts)
            failed = replies.failed
            if attempt == rules.retries or not any(failed):
                break
        # A client that failed keeps its old state, so it is left out here.
        kept = [
            (job.client, protocol.state_to_bytes(context.state))
            for job, context, has_failed in zip(unit, contexts, failed, strict=True)
            if not has_failed
        ]
        return replies, kept

    def _ask(self, messages: list[Message], contexts: list[Context]) -> Replies:
        if len(messages) == 1:
            return Replies([protocol.reply_or_explain(messages[0], contexts[0], self._app)])
        assert self._together is not None, (
            "a unit of several clients needs an app that runs them together"
        )
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
    """Collect the warnings of our own loggers, which nobody would see in a worker of another process."""
    collector = _Collector(logging.WARNING)
    logger = logging.getLogger("fedssl")
    logger.addHandler(collector)
    try:
        yield collector.notes
    finally:
        logger.removeHandler(collector)


class _Collector(logging.Handler):
    """Keep the messages of log records."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.notes: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.notes.append(record.getMessage())
