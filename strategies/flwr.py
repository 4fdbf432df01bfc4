"""Any of Flower's own strategies, by name: ``kind = "flwr:FedAdam"``, with its arguments under ``options``."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError, RunFailed, suggest_nearest
from fedssl.core.known_names import NO_STRATEGIES, NOT_OURS, is_flower_strategy
from fedssl.engine.grid_view import GridView
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.strategies.base import Strategy
from fedssl.strategies.keeping import read_attributes, write_attributes

OURS = {
    "fraction_train": "cannot be set: federation.sample decides it",
    "fraction_evaluate": "cannot be set: the server evaluates, and no client does",
    "min_train_nodes": "cannot be set: federation.sample decides it",
    "min_evaluate_nodes": "cannot be set: the server evaluates, and no client does",
    "min_available_nodes": "cannot be set: federation.sample decides it",
    "arrayrecord_key": "cannot be set: fedssl fixes the form of requests",
    "configrecord_key": "cannot be set: fedssl fixes the form of requests",
}
"""Arguments of Flower's strategies that an experiment file must not set, each with the text of the error message."""

LOSS = "loss"
"""Name of the metric in which our clients report their loss."""


class Flwr(Strategy):
    """Hand the aggregation of a seeded cohort to one of Flower's strategies."""

    group: ClassVar[str] = "Flower's own"
    knows_name: ClassVar[Callable[[str], bool]] = is_flower_strategy

    name: str = Field(
        description="name of a strategy class in flwr.serverapp.strategy", examples=["FedMedian"]
    )
    options: dict[str, float | int | str | bool] = Field(
        default_factory=dict, description="keyword arguments of the strategy class"
    )

    def __hash__(self) -> int:
        """Hash the name alone: options are a dict, which has no hash."""
        return hash(self.name)

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the named strategy, which sees the cohorts that we sample and no other client.

        Raises:
            InputError: Flower has no such strategy, the strategy cannot be used here, it refuses the options, or the
                cohort is too small for it.
        """
        # Refuse strategies and options that cannot do what they say.
        known = [name for name in flower_strategies.__all__ if name not in NO_STRATEGIES]
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
        # The strategy asks every client that it sees: `_Seeded` shows it the sampled cohort only.
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
            raise InputError(
                "strategy.options", f"{self.name} refuses these options: {error}"
            ) from None
        if isinstance(inner, flower_strategies.Bulyan):
            least = 4 * inner.num_malicious_nodes + 3
            # With fewer replies, Bulyan leaves the model as it is in every round (flwr 1.41).
            if cohorts.sample < least:
                raise InputError(
                    "federation.sample",
                    f"is {cohorts.sample}, but Bulyan needs {least} replies to withstand "
                    f"{inner.num_malicious_nodes} malicious clients",
                    "sample more, or set strategy.options.num_malicious_nodes",
                )
        return _Seeded(inner, cohorts)


def _check_metric(options: Mapping[str, object], option: str, known: Collection[str]) -> None:
    """Refuse an option that names a metric which our clients do not send, or which does not fit the option.

    Args:
        options: Options of the strategy.
        option: The option that names a metric.
        known: Metrics that the option may name.

    Raises:
        InputError: The option names another metric.
    """
    if option in options and options[option] not in known:
        said = f"is {options[option]!r}"
        raise InputError(f"strategy.options.{option}", said, f"one of: {', '.join(known)}")


class _Seeded(FlowerStrategy):
    """Show a Flower strategy the round's cohort only, and hand it the replies in the cohort's order.

    Each reply is made anew with only the metrics that the strategy reads. Flower's strategies end a run when one reply
    has other metrics than the rest.
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
            # FedAvgM would start from the arrays that it made last, not from those that it is given (flwr 1.41). The
            # server may have changed the model since. None makes FedAvgM take the given arrays.
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
            return None, None  # no reply has a weight, so the model stays as it is
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
    """Return the reply with the named metrics and no other; an error reply if it lacks one of them."""
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
    """Return a metric of a reply; 0 if the reply is an error."""
    return 0.0 if reply.has_error() else protocol.metrics_of(reply)[name]


class _CohortView(GridView):
    """A grid that shows the cohort's nodes only, for strategies that sample by themselves."""

    def __init__(self, grid: Grid, nodes: list[int]) -> None:
        super().__init__(grid)
        self._nodes = nodes

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes
