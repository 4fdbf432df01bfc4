"""The family of strategies, and `SeededStrategy`, from which our own Flower strategies derive.

A strategy is a frozen section that builds a Flower `Strategy`. Ours are of two kinds, by what they need of the replies:
`fedssl.strategies.by_sums.SumStrategy` needs weighted sums, which workers make, and
`fedssl.strategies.by_replies.ReplyStrategy` needs the reply of each client. A strategy may also have a client half: the
section's `correction` (`fedssl.training.correction`).
"""

from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.experiment.experiment import PhasePlan
from fedssl.methods.base import Method
from fedssl.strategies.keeping import read_attributes, write_attributes
from fedssl.training.correction import WithClientHalf


class Strategy(WithClientHalf):
    """The ``[strategy]`` section: settings that build a Flower strategy.

    Example:
        A new strategy defines `build`, and one hook of `SumStrategy`. This one halves the way to the cohort's mean.

        >>> import numpy as np
        >>> from fedssl.exchange.census import Census
        >>> from fedssl.strategies.by_sums import SumStrategy
        >>> class Halfway(SumStrategy):
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
    group: ClassVar[str] = "other"
    """The sort of strategies to which this one belongs, in the field's terms; `fedssl list strategies` groups by it."""
    repeats_clients: ClassVar[bool] = False
    """Whether a round may ask a client several times. Such a strategy is refused under ``[privacy]``."""

    @abstractmethod
    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the Flower strategy that runs a phase.

        Args:
            cohorts: The clients of the run, and how many of them take part in a round.
        """

    def check(self, method: Method, arrays: NamedArrays) -> None:
        """Raise `InputError` if the strategy cannot work with a method; by default it can.

        Args:
            method: The method of the phase.
            arrays: The arrays that the server would send to the phase's clients in the first round.
        """


def strategy_of(phase: PhasePlan) -> Strategy:
    """Return a phase's strategy.

    Raises:
        InputError: The section ``[strategy]`` names a plug-in that is not a strategy.
    """
    if not isinstance(phase.strategy, Strategy):
        raise InputError("strategy.kind", f"{phase.strategy.kind!r} is not a strategy")
    return phase.strategy


class SeededStrategy(FlowerStrategy):
    """Sample m of K clients by seed, and send them the global model.

    Args:
        cohorts: The clients of the run, and how many of them take part in a round.
    """

    buffers: Collection[str] = ()
    """Names of the arrays that are not parameters, such as the statistics of normalizations: no step may move them. A
    server that calls `aggregate_train` sets them before the first round. fedssl's own server does not call it, and hands
    the names to `conclude`."""

    def __init__(self, cohorts: Cohorts) -> None:
        self.cohorts = cohorts
        self._nodes: list[int] = []
        self._arrays: NamedArrays = {}

    def select(self, server_round: int) -> list[int]:
        """Return the client numbers of a round; by default m of K, uniformly."""
        return self.cohorts.draw(server_round)

    def extra(self, server_round: int, client: int) -> Mapping[str, NamedArrays]:
        """Return arrays for one client alone, by record and name; by default none.

        The client finds them in `Learner.extra`. They come on top of the global model, which all clients share.
        """
        return {}

    def bytes_saved_down(self, client: int) -> int:
        """Return how many bytes of the model in a client's request need not travel in this round; by default 0.

        Our messages carry whole arrays. A strategy that has a client rebuild a part of them from what it holds says here
        what the message would save. The record and virtual time count that many bytes less.
        """
        return 0

    def numbers(self) -> Mapping[str, float]:
        """Return the numbers that the strategy measured in the round it has just concluded, by name; by default none.

        The run's record holds each number as ``strategy.NAME``.
        """
        return {}

    def kept(self) -> NamedArrays:
        """Return a copy of what the strategy keeps between rounds, for a checkpoint; by default all its attributes.

        Attributes that a server sets before the first round, or that a round makes anew, are left out.

        Raises:
            InputError: An attribute is not a number, a text, an array, a tensor, or a list or table of these.
        """
        return read_attributes(self, without=("_nodes", "_arrays", "buffers"))

    def take_up(self, kept: NamedArrays) -> None:
        """Give a strategy that was just built what `kept` returned."""
        write_attributes(self, kept)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request for each entry of `select`, in its order.

        Requests without extra arrays share one content; second requests to a client share another one, and so on.
        """
        clients = self.select(server_round)
        self._nodes = self.cohorts.nodes(clients)
        self._arrays = protocol.from_record(arrays)
        times = Counter(clients)
        shared = [
            _content(server_round, arrays, config, n) for n in range(max(times.values(), default=0))
        ]
        asked: Counter[int] = Counter()
        messages = []
        for client, node in zip(clients, self._nodes, strict=True):
            content, own = shared[asked[client]], self.extra(server_round, client)
            content = _with_extra(content, own) if own else content
            group = str(server_round)
            messages.append(protocol.new_message(MessageType.TRAIN, node, content, group))
            asked[client] += 1
        return messages

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


def _content(
    server_round: int, arrays: ArrayRecord, config: ConfigRecord, repeat: int
) -> RecordDict:
    own = ConfigRecord(dict(config))
    own[protocol.ROUND] = server_round
    if repeat:
        own[protocol.REPEAT] = repeat
    return RecordDict({protocol.ARRAYS: arrays, protocol.CONFIG: own})


def _with_extra(content: RecordDict, extra: Mapping[str, NamedArrays]) -> RecordDict:
    """Return a content with further records; the records of the old content are shared."""
    records = {f"{protocol.EXTRA}{name}": protocol.to_record(own) for name, own in extra.items()}
    return RecordDict({**dict(content), **records})
