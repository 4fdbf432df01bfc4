"""Any strategy of Flower's own by name: ``kind = "flwr:FedAdam"``, its arguments under ``options``."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError, RunFailed, suggest_nearest
from fedssl.engine.grid_view import GridView
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.strategies.base import Strategy
from fedssl.strategies.keeping import read_attributes, write_attributes

OURS = {
    "fraction_train": "federation.sample decides this",
    "fraction_evaluate": "the server evaluates",
    "min_train_nodes": "federation.sample decides this",
    "min_evaluate_nodes": "the server evaluates",
    "min_available_nodes": "federation.sample decides this",
    "arrayrecord_key": "requests have one form",
    "configrecord_key": "requests have one form",
}
"""Arguments that are not the file's to set, and why."""

LOSS = "loss"
"""The metric in which our clients report their loss."""

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
                "strategy.kind",
                f"Flower has no strategy {self.name!r}",
                suggest_nearest(self.name, known),
            )
        if self.name in NOT_OURS:
            raise InputError("strategy.kind", f"{self.name} cannot be used: {NOT_OURS[self.name]}")
        for option in sorted(set(self.options) & set(OURS)):
            raise InputError(f"strategy.options.{option}", OURS[option], "take it out")
        _check_metric(self.options, "weighted_by_key", protocol.COUNTS)
        _check_metric(self.options, "train_loss_key", (LOSS,))
        make = getattr(flower_strategies, self.name)
        options: dict[str, Any] = dict(self.options)
        takes = inspect.signature(make).parameters
        options |= (
            {"fraction_train": 1.0, "fraction_evaluate": 0.0} if "fraction_train" in takes else {}
        )
        options |= {name: 1 for name in ("min_train_nodes", "min_available_nodes") if name in takes}
        if "train_loss_key" in takes:
            options["train_loss_key"] = LOSS
        try:
            inner: FlowerStrategy = make(**options)
        except (TypeError, ValueError) as error:
            raise InputError("strategy.options", f"{self.name} refuses them: {error}") from None
        if isinstance(inner, flower_strategies.Bulyan):
            least = 4 * inner.num_malicious_nodes + 3
            if (
                cohorts.sample < least
            ):  # it would leave the model as it is, round by round (flwr 1.41)
                raise InputError(
                    "federation.sample",
                    f"is {cohorts.sample}, but Bulyan needs {least} replies to stand "
                    f"{inner.num_malicious_nodes} malicious clients",
                    "sample more, or set strategy.options.num_malicious_nodes",
                )
        return _Seeded(inner, cohorts)


def _check_metric(options: Mapping[str, object], option: str, known: Collection[str]) -> None:
    """Refuse an option that names a metric which our clients do not send, or which cannot mean what it says."""
    if option in options and options[option] not in known:
        said = f"is {options[option]!r}"
        raise InputError(f"strategy.options.{option}", said, f"one of: {', '.join(known)}")


class _Seeded(FlowerStrategy):
    """Show a Flower strategy only the round's cohort, and its replies in the cohort's order.

    Replies are made anew of the metrics that the strategy reads: it ends a run over one that has a metric more.
    """

    def __init__(self, inner: FlowerStrategy, cohorts: Cohorts) -> None:
        self._inner = inner
        self._cohorts = cohorts
        self._places: dict[int, int] = {}

    def kept(self) -> NamedArrays:
        return read_attributes(self._inner)

    def take_up(self, kept: NamedArrays) -> None:
        write_attributes(self._inner, kept)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        if hasattr(self._inner, "current_arrays"):
            # FedAvgM goes on from the arrays that it made last, whatever the server made of them since (flwr 1.41).
            self._inner.current_arrays = None
        nodes = self._cohorts.nodes(self._cohorts.draw(server_round))
        self._places = {node: place for place, node in enumerate(nodes)}
        only = _CohortView(grid, nodes)
        messages = self._inner.configure_train(server_round, arrays, config, only)
        return sorted(messages, key=lambda message: self._places[message.metadata.dst_node_id])

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        ordered = sorted(replies, key=lambda reply: self._places[reply.metadata.src_node_id])
        read = [LOSS] if hasattr(self._inner, "train_loss_key") else []
        read += protocol.COUNTS
        handed = [_with_metrics(reply, read) for reply in ordered]
        weighted_by = getattr(self._inner, "weighted_by_key", protocol.NUM_EXAMPLES)
        if not any(_metric(reply, weighted_by) for reply in handed):
            return None, None  # nothing counts: the model stays as it is
        try:
            return self._inner.aggregate_train(server_round, handed)
        except Exception as error:
            name = type(self._inner).__name__
            raise RunFailed(
                f"{name} cannot aggregate round {server_round}: {type(error).__name__}: {error}"
            ) from error

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


def _with_metrics(reply: Message, names: Collection[str]) -> Message:
    """Return a reply that carries these metrics and no other; an error where it lacks one."""
    if reply.has_error():
        return reply
    metrics = protocol.metrics_of(reply)
    lacking = [name for name in names if name not in metrics]
    if lacking:
        return protocol.refuse_reply(reply, f"refused: the reply lacks its {lacking[0]}")
    arrays = reply.content.array_records[protocol.ARRAYS]
    own = MetricRecord({name: metrics[name] for name in names})
    content = RecordDict({protocol.ARRAYS: arrays, protocol.METRICS: own})
    return protocol.message_of(reply.metadata, content)


def _metric(reply: Message, name: str) -> float:
    """Return a metric of a reply; 0 of an error."""
    return 0.0 if reply.has_error() else protocol.metrics_of(reply)[name]


class _CohortView(GridView):
    """A grid as it would be if only the cohort were connected, for strategies that sample by themselves."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        super().__init__(grid)
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes
