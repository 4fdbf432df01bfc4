"""What every strategy is, and the one that samples a seeded cohort and averages it.

A strategy is a frozen section that builds a Flower `Strategy`. Those of ours derive from `CohortStrategy` and override
some of its hooks: `select` (who takes part), `combine` (sums to arrays), `after` (a step of the server's own,
such as an optimizer, which is handed parameters only). How much a reply counts is a function that they are built with.
What a hook keeps for the next round is an attribute.
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
    """The ``[strategy]`` section: settings that build a Flower strategy."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the Flower strategy that runs a phase.

        Args:
            cohorts: Who is there and how many take part in a round.
        """


def strategy_of(phase: PhasePlan) -> Strategy:
    """Return the strategy of an experiment as it stands in a phase.

    Raises:
        InputError: The section names a plugin that is no strategy.
    """
    if not isinstance(phase.strategy, Strategy):
        raise InputError("strategy.kind", f"{phase.strategy.kind!r} is not a strategy")
    return phase.strategy


class CohortStrategy(FlowerStrategy):
    """Sample m of K clients by seed and average their replies wherever they arise.

    Replies are added to a `WeightedSum` in the workers that made them, so that memory does not grow with m and the bits
    do not depend on the order of arrival. A grid that knows nothing of that is served by `aggregate_train`.

    Args:
        cohorts: Who is there and how many take part in a round.
        weigh: How much a reply counts, by its metrics; a pure function, for it travels to the workers. By default its
            number of examples.
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
        """Return the next parameters from the last ones and the aggregate's; by default the aggregate's.

        Buffers, such as the statistics of batch normalization, are no parameters: no step may move them, so they are
        in neither of the two, and those of the aggregate are taken.
        """
        return aggregate

    def numbers(self) -> Mapping[str, float]:
        """Return what the strategy measured in the round that it has just concluded, by name; by default nothing.

        The run's record holds each as ``strategy.NAME``.
        """
        return {}

    def kept(self) -> NamedArrays:
        """Return a copy of what is kept between rounds, for a checkpoint; by default all attributes.

        Raises:
            InputError: One of them is no number, text, array or tensor, nor made of them.
        """
        return read_attributes(self, without=("_places", "_arrays"))

    def take_up(self, kept: NamedArrays) -> None:
        """Take up what `kept` returned, in a strategy just built."""
        write_attributes(self, kept)

    def conclude(
        self,
        server_round: int,
        arrays: NamedArrays,
        sums: Sums | None,
        total_weight: float,
        buffers: Collection[str] = (),
    ) -> NamedArrays:
        """Return the next global arrays from the last ones and a cohort's sums; the last ones if no reply counts.

        Args:
            server_round: From 1.
            arrays: The last global arrays.
            sums, total_weight: As `WeightedSum.result` returns them.
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
        """Return one request a client of the round's cohort, all around the same content."""
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
        """Return the next global arrays and the weight behind them; the old arrays if no reply counts."""
        reduction = Reduction.of({protocol.ARRAYS: self._arrays}, {protocol.ARRAYS: self.weigh})
        total = CohortSums(reduction, len(self._places))
        missing = dict(self._places)
        for reply in replies:
            node = reply.metadata.src_node_id
            if node in missing:  # of two replies of a node the first one counts
                total.add(missing.pop(node), reply, self.cohorts.census.holding(node))
        total.skip(missing.values())
        sums, weight = total.result()[protocol.ARRAYS]
        arrays = self.conclude(server_round, self._arrays, sums, weight)
        return protocol.to_record(arrays), MetricRecord({"total-weight": weight})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask no client to evaluate: the server does, on images no client holds."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Return nothing, for nothing was asked."""
        return None

    def summary(self) -> None:
        """Log nothing: the record says what runs."""


def _content(server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
    own = ConfigRecord(dict(config))
    own[protocol.ROUND] = server_round
    return RecordDict({protocol.ARRAYS: arrays, protocol.CONFIG: own})
