"""The interface of a grid to the server's rounds: replies as they arrive, sums of replies, and what clients keep."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Answer, CohortSums
from fedssl.exchange.sums import Span
from fedssl.record.snapshot import KeptStates

Result = TypeVar("Result")

Screen = Callable[[Sequence[Message], Sequence[Message]], Iterable[Message]]
"""A function from the requests and all replies of a round to the replies that are used, such as all but outliers."""


def do_nothing() -> None:
    """Do nothing."""


def pass_all(sent: Sequence[Message], replies: Sequence[Message]) -> Iterable[Message]:
    """Return all replies."""
    return replies


class States(Protocol):
    """What clients keep between rounds, as far as the server controls it."""

    @property
    def outlive_run(self) -> bool:
        """Whether the states outlive the process of a run: in its checkpoints, or in files of the clients."""

    @property
    def to_snapshot(self) -> KeptStates | None:
        """The states that a checkpoint stores; None if clients keep their states themselves."""

    def commit(self) -> None:
        """Keep the states that clients staged, because the round is over."""

    def revert(self, client: int) -> None:
        """Forget the state that a client staged, because its reply was refused."""

    def discard(self) -> None:
        """Forget the states that all clients staged, because the round did not end."""

    def restore(self, round: int, states: KeptStates | None) -> None:
        """Begin after a round with the states that clients kept then; None: without states."""


class ClientGrid(Grid):
    """A Flower grid that the server's rounds can run on: one of this machine, or an adapter around any other."""

    incidents: list[str]
    """Problems that did not end the run, such as a lost worker. Code that records an incident removes it here."""

    @property
    @abstractmethod
    def states(self) -> States:
        """What clients keep between rounds."""

    @property
    @abstractmethod
    def is_simulation(self) -> bool:
        """Whether clients are simulated here: then the server deals their data, and this process holds their states."""

    @abstractmethod
    def stream(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = do_nothing,
        screen: Screen = pass_all,
    ) -> Iterator[Message]:
        """Send messages and yield each reply as it arrives.

        Args:
            messages: Requests, each to one client.
            timeout: Seconds after which the grid waits for no more replies; None: no limit.
            meanwhile: Function that is called once, as soon as all workers are busy; first if there are no workers.
            screen: Function that selects the replies to use. It sees all replies together before the first is used. It
                is called only if other parties than this process's own workers make the replies.
        """

    @abstractmethod
    def reduce(
        self,
        messages: Sequence[Message],
        sums: CohortSums,
        *,
        units: Sequence[Span] | None = None,
        holdings: Sequence[Holding] | None = None,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = do_nothing,
        screen: Screen = pass_all,
    ) -> Iterator[Answer]:
        """Send messages, sum the replies in the process in which they arise, and yield the answer to each message.

        Args:
            messages: Requests; those that take longest come first.
            sums: Sums with as many places as there are units. They are complete once the iterator has ended.
            units: Ranges of positions among the messages, in order. The clients of a unit are fused into one step. By
                default every message is a unit of its own.
            holdings: What the census says about each message's client; a reply that contradicts it is refused.
            timeout, meanwhile, screen: As in `stream`.
        """

    @abstractmethod
    def map(
        self,
        function: Callable[..., Result],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Call a function once for each tuple of arguments, on the workers.

        Args:
            function: A function of a module. Its first argument is the name of the worker's device.
            arguments: The other arguments of each call.
            timeout: Seconds that all calls together may take; None: no limit.

        Returns:
            The results, in the order of the arguments.
        """

    @property
    def num_workers(self) -> int:
        """The number of workers of this process that run clients at the same time."""
        return 1

    @property
    def has_gpus(self) -> bool:
        """Whether workers of this process train on GPUs."""
        return False
