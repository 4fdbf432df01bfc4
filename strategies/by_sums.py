"""Strategies that need only weighted sums of the replies: workers make the sums, and memory does not grow with m."""

from collections.abc import Collection, Iterable

from flwr.app import ArrayRecord, Message, MetricRecord

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.buffers import without_buffers
from fedssl.exchange.census import Cohorts
from fedssl.exchange.reduction import CohortSums, Reduction, Weigh, by_examples
from fedssl.exchange.sums import Sums, cohort_mean
from fedssl.strategies.base import SeededStrategy


class SumStrategy(SeededStrategy):
    """Average the replies of a seeded cohort in the processes that make them.

    A strategy overrides some of three hooks: `select` (which clients take part, each at most once), `combine` (from sums
    to arrays), and `after` (a step of the server's own, such as an optimizer's; it sees parameters only). A hook keeps
    what it needs in the next round as an attribute.

    Workers add their replies to a `WeightedSum`. So memory does not grow with m, and the bits do not depend on the
    order in which replies arrive. For grids that cannot sum replies, `aggregate_train` sums them at the server.

    Args:
        cohorts: The clients of the run, and how many of them take part in a round.
        weigh: Returns a reply's weight from its metrics; by default its number of examples. The function travels to the
            workers, so it must be pure.
    """

    def __init__(self, cohorts: Cohorts, weigh: Weigh = by_examples) -> None:
        super().__init__(cohorts)
        self.weigh = weigh

    def combine(self, sums: Sums, total_weight: float, arrays: NamedArrays) -> NamedArrays:
        """Return the aggregate of a cohort's weighted sums; by default their mean."""
        return cohort_mean(sums, total_weight, arrays)

    def after(self, server_round: int, arrays: NamedArrays, aggregate: NamedArrays) -> NamedArrays:
        """Return the next global parameters; by default the aggregate's.

        Buffers, such as the statistics of batch normalization, are not parameters, and no step may move them. So
        neither argument contains buffers; the server takes the buffers of the aggregate.

        Args:
            server_round: Round of the run, from 1.
            arrays: The last global parameters.
            aggregate: The parameters that `combine` returned.
        """
        return aggregate

    def conclude(
        self,
        server_round: int,
        arrays: NamedArrays,
        sums: Sums | None,
        total_weight: float,
        buffers: Collection[str] = (),
    ) -> NamedArrays:
        """Return the next global arrays; the last global arrays if no reply counts.

        Args:
            server_round: Round of the run, from 1.
            arrays: The last global arrays.
            sums, total_weight: The cohort's sums, as `WeightedSum.result` returns them; None if no reply counts.
            buffers: Names of the arrays that `after` must not move.
        """
        if sums is None:
            return arrays
        aggregate = self.combine(sums, total_weight, arrays)
        moved = self.after(
            server_round, without_buffers(arrays, buffers), without_buffers(aggregate, buffers)
        )
        return {name: aggregate[name] if name in buffers else moved[name] for name in arrays}

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global arrays and the sum of the replies' weights; the old arrays if no reply counts.

        `buffers` says which arrays no step may move.
        """
        reduction = Reduction.of({protocol.ARRAYS: self._arrays}, {protocol.ARRAYS: self.weigh})
        total = CohortSums(reduction, len(self._nodes))
        missing = {node: place for place, node in enumerate(self._nodes)}
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in missing:  # a node's second reply does not count
                total.add(missing.pop(node), reply, self.cohorts.census.holding(node))
        total.skip(missing.values())
        sums, weight = total.result()[protocol.ARRAYS]
        arrays = self.conclude(server_round, self._arrays, sums, weight, self.buffers)
        return protocol.to_record(arrays), MetricRecord({"total-weight": weight})
