"""Send one round's requests over a grid, and note, check and sum the replies."""

import functools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedssl.core.arrays import NamedArrays
from fedssl.engine.client_grid import ClientGrid
from fedssl.exchange import protocol
from fedssl.exchange.buffers import CohortStatistics
from fedssl.exchange.reduction import CohortSums, Reduction, Sum, Weigh, by_examples
from fedssl.exchange.sums import Span
from fedssl.server.outliers import without_outliers
from fedssl.server.phase import Phase
from fedssl.server.privacy import longest_update
from fedssl.server.round_log import RoundLog
from fedssl.strategies.base import CohortStrategy

Sums = Mapping[str, Sum]
"""Sums over a round's replies, by record."""


def train_cohort(
    grid: ClientGrid,
    phase: Phase,
    log: RoundLog,
    sent: Sequence[Message],
    units: Sequence[Span],
    carried: Mapping[str, NamedArrays],
    meanwhile: Callable[[], None],
) -> tuple[Sums, NamedArrays | None]:
    """Let a round's clients train, and return what became of their replies.

    Args:
        grid: The grid that reaches the clients.
        phase: The phase. Its strategy decides what sums the weights: the grid for a `CohortStrategy`, or else the
            strategy itself.
        log: Takes note of every reply.
        sent: The requests, those that take longest first.
        units: Requests that are answered together, as positions in `sent`.
        carried: The arrays that were sent, by record; those of a reply must have the same shapes and types.
        meanwhile: The server's own work while clients train; called once.

    Returns:
        The sums of method state, and of weights if the grid sums them; and the next global arrays if the strategy sums
        the weights itself, else None.
    """
    # Decide what is summed while replies come in: method state always, weights only if the strategy is one of ours.
    weigh: dict[str, Weigh] = {protocol.STATE: by_examples}
    strategy = phase.strategy
    if isinstance(strategy, CohortStrategy):
        weigh[protocol.ARRAYS] = strategy.weigh
    server, before = phase.experiment.server, carried[protocol.ARRAYS]
    sums = CohortSums(
        Reduction.of(carried, weigh, longest_update(phase.experiment, before)), len(units)
    )
    screen = functools.partial(without_outliers, carried=carried, ratio=server.max_update_ratio)
    # Let the clients train. The grid sums the replies, or the strategy gets every reply and sums them itself.
    aggregate = None
    # Replies to a strategy of ours are summed in the workers; a strategy of Flower's needs every reply here.
    if isinstance(strategy, CohortStrategy):
        holdings = [log.census.holding(message.metadata.dst_node_id) for message in sent]
        answers = grid.reduce(
            *(sent, sums),
            units=units,
            holdings=holdings,
            timeout=server.timeout,
            meanwhile=meanwhile,
            screen=screen,
        )
        for answer in answers:
            log.note(answer)
    else:
        came = grid.stream(sent, timeout=server.timeout, meanwhile=meanwhile, screen=screen)
        aggregate = _aggregated_by(strategy, phase, log, sent, log.watch(sent, came, sums), before)
    # A client whose reply was refused keeps the state that it had before the round.
    for failure in log.failures:
        # A client whose reply is refused must not keep what it trained.
        grid.states.revert(failure.client)
    return sums.result(), aggregate


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
