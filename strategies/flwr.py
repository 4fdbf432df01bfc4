"""Any strategy of Flower's own by name: ``kind = "flwr:FedAdam"``, its arguments under ``options``."""

import inspect
from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.engine.grid_view import GridView
from fedssl.errors import InputError, nearest
from fedssl.strategies.base import NamedArrays, Strategy
from fedssl.strategies.census import Cohorts
from fedssl.strategies.strategy_state import read_attributes, write_attributes

OURS = ("fraction_train", "fraction_evaluate", "min_train_nodes", "min_available_nodes")
"""Arguments that `federation.sample` decides."""


NOT_OURS = {
    "FedProx": "its proximal term is the client's to add, and ours do not",
    "FedXgbBagging": "it aggregates trees, not networks",
    "FedXgbCyclic": "it aggregates trees, not networks",
}
"""Strategies that would run and not do what they say, or not run."""


class Flwr(Strategy):
    """Hand the aggregation of a seeded cohort to one of Flower's strategies."""

    name: str = Field(description="class in flwr.serverapp.strategy")
    options: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="its keyword arguments"
    )

    def __hash__(self) -> int:
        """Hash by name: options are a plain table."""
        return hash(self.name)

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the named strategy, restricted to our cohorts.

        Raises:
            InputError: There is no such strategy, or it does not take these options.
        """
        known = [name for name in flower_strategies.__all__ if name not in ("Result", "Strategy")]
        if self.name not in known:
            raise InputError(
                "strategy.kind", f"Flower has no strategy {self.name!r}", nearest(self.name, known)
            )
        if self.name in NOT_OURS:
            raise InputError("strategy.kind", f"{self.name} cannot be used: {NOT_OURS[self.name]}")
        for option in set(self.options) & set(OURS):
            raise InputError(f"strategy.options.{option}", "federation.sample decides this")
        make = getattr(flower_strategies, self.name)
        options: dict[str, Any] = dict(self.options)
        takes = inspect.signature(make).parameters
        options |= (
            {"fraction_train": 1.0, "fraction_evaluate": 0.0} if "fraction_train" in takes else {}
        )
        options |= {name: 1 for name in ("min_train_nodes", "min_available_nodes") if name in takes}
        try:
            inner: FlowerStrategy = make(**options)
        except (TypeError, ValueError) as error:
            raise InputError("strategy.options", f"{self.name} refuses them: {error}") from None
        return _Seeded(inner, cohorts)


class _Seeded(FlowerStrategy):
    """Show a Flower strategy only the round's cohort, and its replies in the cohort's order."""

    def __init__(self, inner: FlowerStrategy, cohorts: Cohorts) -> None:
        self._inner = inner
        self._cohorts = cohorts
        self._places: dict[int, int] = {}

    def state(self) -> NamedArrays:
        return read_attributes(self._inner)

    def load_state(self, state: NamedArrays) -> None:
        write_attributes(self._inner, state)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        nodes = self._cohorts.nodes(self._cohorts.draw(server_round))
        self._places = {node: place for place, node in enumerate(nodes)}
        only = _CohortView(grid, nodes)
        messages = self._inner.configure_train(server_round, arrays, config, only)
        return sorted(messages, key=lambda message: self._places[message.metadata.dst_node_id])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        ordered = sorted(replies, key=lambda reply: self._places[reply.metadata.src_node_id])
        return self._inner.aggregate_train(server_round, ordered)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        self._inner.summary()


class _CohortView(GridView):
    """A grid as it would be if only the cohort were connected, for strategies that sample by themselves."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        super().__init__(grid)
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes
