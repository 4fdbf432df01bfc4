"""The base class of every strategy, and `CohortStrategy`, which samples a seeded cohort and averages its replies.

A strategy is a frozen section that builds a Flower `Strategy`. Our own Flower strategies derive from `CohortStrategy`
and override some of its hooks: `select` (which clients take part), `combine` (from sums to arrays), and `after`
(a step of the server's own, such as an optimizer's; it sees parameters only). The constructor takes the function that
says how much a reply counts. A hook keeps what it needs in the next round as an attribute.
"""

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.registry import Plugin
from fedssl.exchange import protocol
from fedssl.exchange.buffers import without_buffers
from fedssl.exchange.census import Cohorts
from fedssl.exchange.reduction import CohortSums, Reduction, Weigh, by_examples
from fedssl.exchange.sums import Sums, cohort_mean
from fedssl.experiment.experiment import PhasePlan
from fedssl.strategies.keeping import read_attributes, write_attributes


class Strategy(Plugin):
    """The ``[strategy]`` section: settings that build a Flower strategy.

    Example:
        A new strategy defines `build`, and one hook of `CohortStrategy`. This one halves the way to the cohort's mean.

        >>> import numpy as np
        >>> from fedssl.exchange.census import Census
        >>> class Halfway(CohortStrategy):
        ...     def after(self, server_round, arrays, aggregate):
        ...         return {name: (arrays[name] + aggregate[name]) / 2 for name in arrays}
        >>> class HalfwaySection(Strategy):
        ...     def build(self, cohorts):
        ...         return Halfway(cohorts)
        >>> strategy = HalfwaySection().build(Cohorts(Census.unknown(10), sample=2, seed=0))
        >>> last, sums = {"w": np.zeros(1)}, {"w": np.array([8.0])}
        >>> strategy.conclude(1, last, sums, total_weight=2.0)["w"].tolist()  # the cohort's mean is 8 / 2
        [2.0]
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the Flower strategy that runs a phase.

        Args:
            cohorts: The clients of the run, and how many of them take part in a round.
        """


def strategy_of(phase: PhasePlan) -> Strategy:
    """Return a phase's strategy.

    Raises:
        InputError: The section ``[strategy]`` names a plug-in that is not a strategy.
    """
    if not isinstance(phase.strategy, Strategy):
        raise InputError("strategy.kind", f"{phase.strategy.kind!r} is not a strategy")
    return phase.strategy


class CohortStrategy(FlowerStrategy):
    """Sample m of K clients by seed, and average their replies in the processes that make them.

    Workers add their replies to a `WeightedSum`. So memory does not grow with m, and the bits do not depend on the
    order in which replies arrive. For grids that cannot sum replies, `aggregate_train` sums them at the server.

    Args:
        cohorts: The clients of the run, and how many of them take part in a round.
        weigh: Returns a reply's weight from its metrics; by default its number of examples. The function travels to the
            workers, so it must be pure.
    """

    def __init__(self, cohorts: Cohorts, weigh: Weigh = by_examples) -> None:
        self.cohorts = cohorts
        self.weigh = weigh
        self._places: dict[int, int] = {}
        self._arrays: NamedArrays = {}

    def select(self, server_round: int) -> list[int]:
        """Return the client numbers of a round; by default m of K, uniformly."""
        return self.cohorts.draw(server_round)

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

    def numbers(self) -> Mapping[str, float]:
        """Return the numbers that the strategy measured in the round it has just concluded, by name; by default none.

        The run's record holds each number as ``strategy.NAME``.
        """
        return {}

    def kept(self) -> NamedArrays:
        """Return a copy of what the strategy keeps between rounds, for a checkpoint; by default all its attributes.

        Raises:
            InputError: An attribute is not a number, a text, an array, a tensor, or a list or table of these.
        """
        return read_attributes(self, without=("_places", "_arrays"))

    def take_up(self, kept: NamedArrays) -> None:
        """Give a strategy that was just built what `kept` returned."""
        write_attributes(self, kept)

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

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request for each client of the round's cohort; all requests share one content."""
        nodes = self.cohorts.nodes(self.select(server_round))
        self._places = {node: place for place, node in enumerate(nodes)}
        self._arrays = protocol.from_record(arrays)
        content = _content(server_round, arrays, config)
        return [
            protocol.new_message(MessageType.TRAIN, node, content, str(server_round))
            for node in nodes
        ]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global arrays and the sum of the replies' weights; the old arrays if no reply counts."""
        reduction = Reduction.of({protocol.ARRAYS: self._arrays}, {protocol.ARRAYS: self.weigh})
        total = CohortSums(reduction, len(self._places))
        missing = dict(self._places)
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in missing:  # a node's second reply does not count
                total.add(missing.pop(node), reply, self.cohorts.census.holding(node))
        total.skip(missing.values())
        sums, weight = total.result()[protocol.ARRAYS]
        arrays = self.conclude(server_round, self._arrays, sums, weight)
        return protocol.to_record(arrays), MetricRecord({"total-weight": weight})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate: the server evaluates, on images that no client holds."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return None, because no client was asked to evaluate."""
        return None

    def summary(self) -> None:
        """Log nothing: the run's record says which strategy runs."""


def _content(server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
    own = ConfigRecord(dict(config))
    own[protocol.ROUND] = server_round
    return RecordDict({protocol.ARRAYS: arrays, protocol.CONFIG: own})
