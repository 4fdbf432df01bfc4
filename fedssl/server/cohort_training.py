"""One round's requests at work: sent over a grid, their replies noted, checked and summed."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from flwr.app import Message
from flwr.serverapp import Grid

from fedssl.core.arrays import NamedArrays
from fedssl.engine.local_grid import LocalGrid
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
"""What was summed of the replies, by record."""


def train_cohort(
    grid: Grid,
    phase: Phase,
    log: RoundLog,
    sent: Sequence[Message],
    units: Sequence[Span],
    carried: Mapping[str, NamedArrays],
    meanwhile: Callable[[], None],
) -> tuple[Sums, NamedArrays | None]:
    """Let clients train.

    Args:
        grid: Where they are.
        phase: Says who sums their weights: the grid, where the strategy is one of ours, or the strategy.
        log: Takes note of every reply.
        sent: Requests, longest first.
        units: Which of them are answered together, as positions.
        carried: Arrays that a reply must look like, by record.
        meanwhile: What the server has to do while they work; called once.

    Returns:
        The sums of method state, and of weights where the grid sums them; the next global arrays, where a strategy
        that sums itself makes them.
    """
    strategy = phase.strategy
    weigh: dict[str, Weigh] = {protocol.STATE: by_examples}
    if isinstance(strategy, CohortStrategy):
        weigh[protocol.ARRAYS] = strategy.weigh
    longest = longest_update(phase.experiment, carried[protocol.ARRAYS])
    reduction = Reduction.of(carried, weigh, longest)
    sums = CohortSums(reduction, len(units))
    timeout = phase.experiment.server.timeout
    aggregate, whole = None, None
    if isinstance(strategy, CohortStrategy) and isinstance(grid, LocalGrid):
        holdings = [log.census.holding(message.metadata.dst_node_id) for message in sent]
        answers = grid.reduce(
            sent, sums, units=units, holdings=holdings, timeout=timeout, meanwhile=meanwhile
        )
        for answer in answers:
            log.note(answer)
    else:
        if isinstance(grid, LocalGrid):
            came = grid.stream(sent, timeout=timeout, meanwhile=meanwhile)
        else:
            meanwhile()
            came = without_outliers(
                sent,
                list(grid.send_and_receive(sent, timeout=timeout)),
                carried,
                phase.experiment.server.max_update_ratio,
            )
        replies = log.watch(sent, came, sums)
        if not isinstance(strategy, CohortStrategy):
            statistics = CohortStatistics(phase.buffers, sent)
            replies = statistics.set_aside(replies)
            aggregate, _ = strategy.aggregate_train(log.round, replies)
        deque(replies, maxlen=0)  # one that stops early must not hide a reply from the record
        if aggregate is not None:
            made = protocol.from_record(aggregate)
            whole = {**made, **statistics.mean(carried[protocol.ARRAYS])}
    if isinstance(grid, LocalGrid):
        for failure in log.failures:
            grid.states.revert(failure.client)  # of a reply that was refused
    return sums.result(), whole
