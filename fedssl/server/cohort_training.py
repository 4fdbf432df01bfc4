"""Send one round's requests over a grid, and note, check and sum the replies."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedssl.core.arrays import NamedArrays
from fedssl.engine.client_grid import ClientGrid, Screen, do_nothing
from fedssl.exchange import protocol
from fedssl.exchange.buffers import CohortStatistics
from fedssl.exchange.reduction import WEIGH_STATE, CohortSums, Reduction, Sum, Weigh
from fedssl.exchange.sums import Span
from fedssl.server.outliers import OutlierScreen
from fedssl.server.phase import Phase
from fedssl.server.privacy import longest_update, with_server_noise
from fedssl.server.round_log import RoundLog
from fedssl.strategies.base import SeededStrategy
from fedssl.strategies.by_replies import ReplyStrategy
from fedssl.strategies.by_sums import SumStrategy

Sums = Mapping[str, Sum]
"""Sums over a round's replies, by record."""


def train_cohort(
    grid: ClientGrid,
    phase: Phase,
    log: RoundLog,
    asked: Sequence[Message],
    sent: Sequence[Message],
    units: Sequence[Span],
    carried: Mapping[str, NamedArrays],
    meanwhile: Callable[[], None],
) -> tuple[Sums, NamedArrays | None]:
    """Let a round's clients train, and return what became of their replies.

    Args:
        grid: The grid that reaches the clients.
        phase: The phase. Its strategy decides what sums the weights: the grid for a `SumStrategy`, or else the strategy
            itself.
        log: Takes note of every reply.
        asked: The requests of the strategy, in its order.
        sent: The requests that are sent, a part of `asked`, those that take longest first.
        units: Requests that are answered together, as positions in `sent`.
        carried: The arrays that were sent, by record; those of a reply must have the same shapes and types.
        meanwhile: The server's own work while clients train; called once.

    Returns:
        The sums of method state, and of weights if the grid sums them; and the next global arrays, which are None if
        the strategy made none.
    """
    # Decide what is summed while replies come in: method state always, weights only if the strategy needs their sum.
    strategy, before = phase.strategy, carried[protocol.ARRAYS]
    weigh: dict[str, Weigh] = dict(WEIGH_STATE)
    if isinstance(strategy, SumStrategy):
        weigh[protocol.ARRAYS] = strategy.weigh
    reduction = Reduction.of(carried, weigh, longest_update(phase.experiment, before))
    needs_replies = isinstance(strategy, ReplyStrategy)
    saved = strategy.bytes_saved_up if isinstance(strategy, ReplyStrategy) else None
    sums = CohortSums(reduction, len(units), keeps_replies=needs_replies, saved=saved)
    ratio = phase.experiment.server.max_update_ratio
    screen = OutlierScreen(carried, phase.slots, ratio)
    # Let the clients train. Workers sum the replies, or every reply comes to the server.
    aggregate: NamedArrays | None
    if isinstance(strategy, SumStrategy):
        _reduce(grid, phase, log, sent, units, sums, meanwhile, screen)
        weight_sums, weight = sums.result()[protocol.ARRAYS]
        arrays = strategy.conclude(log.round, before, weight_sums, weight, phase.buffers)
        aggregate = with_server_noise(phase.experiment, arrays, weight, log.round)
    elif isinstance(strategy, ReplyStrategy):
        came = _in_waves(grid, phase, log, sent, sums, meanwhile, screen)
        deque(came, maxlen=0)  # `sums` keeps the replies that count
        place_of = {id(message): place for place, message in enumerate(asked)}
        replies = {place_of[id(sent[i])]: reply for i, reply in sums.replies.items()}
        aggregate = strategy.conclude(log.round, before, replies, phase.buffers)
    else:
        came = _in_waves(grid, phase, log, sent, sums, meanwhile, screen)
        aggregate = _aggregated_by(strategy, phase, log, sent, came, before)
    # A client whose reply was refused must not keep what it trained: it goes back to the state that it had before the
    # round. A client that keeps its state itself does so at its next request (`server/counted_rounds.py`).
    for failure in log.failures:
        grid.states.revert(failure.client)
    if isinstance(strategy, SeededStrategy):
        log.record("strategy", strategy.numbers())
    return sums.result(), aggregate


def _reduce(
    grid: ClientGrid,
    phase: Phase,
    log: RoundLog,
    sent: Sequence[Message],
    units: Sequence[Span],
    sums: CohortSums,
    meanwhile: Callable[[], None],
    screen: Screen,
) -> None:
    """Let clients train, and let workers add their replies to `sums`; each client is asked once at most."""
    holdings = [log.census.holding(message.metadata.dst_node_id) for message in sent]
    answers = grid.reduce(
        *(sent, sums),
        units=units,
        holdings=holdings,
        timeout=phase.experiment.server.timeout,
        meanwhile=meanwhile,
        screen=screen,
    )
    for answer in answers:
        log.note(answer)


def _in_waves(
    grid: ClientGrid,
    phase: Phase,
    log: RoundLog,
    sent: Sequence[Message],
    sums: CohortSums,
    meanwhile: Callable[[], None],
    screen: Screen,
) -> Iterator[Message]:
    """Let clients train, note their replies, add method state to `sums`, and yield the replies that count.

    A client that is asked several times goes on from its own state each time. So its requests are sent one after the
    other: the first request to each client, then every second request, and so on. All waves share the round's timeout.
    """
    timeout = phase.experiment.server.timeout
    deadline = time.monotonic() + timeout
    for number, places in enumerate(waves(sent)):
        messages = [sent[place] for place in places]
        replies = grid.stream(
            messages,
            timeout=max(0.0, deadline - time.monotonic()) if number else timeout,
            meanwhile=do_nothing if number else meanwhile,
            screen=screen,
        )
        yield from log.watch(messages, replies, sums, places)


def waves(sent: Sequence[Message]) -> list[list[int]]:
    """Return the places of requests in waves: wave k holds the k-th request to each client, in order."""
    found: list[list[int]] = []
    counts: Counter[int] = Counter()
    for place, message in enumerate(sent):
        node = message.metadata.dst_node_id
        if counts[node] == len(found):
            found.append([])
        found[counts[node]].append(place)
        counts[node] += 1
    return found


def _aggregated_by(
    strategy: FlowerStrategy,
    phase: Phase,
    log: RoundLog,
    sent: Sequence[Message],
    replies: Iterator[Message],
    before: NamedArrays,
) -> NamedArrays | None:
    """Return the next global arrays that a strategy of Flower's makes of the replies; None if it makes none."""
    statistics = CohortStatistics(phase.buffers, sent)
    handed = statistics.set_aside(replies)
    aggregate, _ = strategy.aggregate_train(log.round, handed)
    deque(handed, maxlen=0)  # a strategy that stops early must not hide a reply from the record
    if aggregate is None:
        return None
    return {**protocol.from_record(aggregate), **statistics.mean(before)}
