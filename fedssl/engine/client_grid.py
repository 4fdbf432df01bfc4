"""What the server's rounds ask of any grid: replies as they come, sums of them, and what clients keep."""

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
"""Turns the requests and all replies of a round into the replies that are used, such as one without outliers."""


def do_nothing() -> None:
    """Do nothing."""


def pass_all(sent: Sequence[Message], replies: Sequence[Message]) -> Iterable[Message]:
    """Return all replies."""
    return replies


class States(Protocol):
    """What clients keep between rounds, as far as the server has a say in it."""

    @property
    def to_snapshot(self) -> KeptStates | None:
        """What a checkpoint stores; None where clients keep their states themselves."""

    def commit(self) -> None:
        """Keep what clients staged: the round is over."""

    def revert(self, client: int) -> None:
        """Forget what a client staged: its reply was refused."""

    def discard(self) -> None:
        """Forget what all clients staged: the round did not end."""

    def restore(self, round: int, states: KeptStates | None) -> None:
        """Begin after a round, with what clients kept then; None: nothing."""


class ClientGrid(Grid):
    """A Flower grid that the server's rounds can run on: one of this machine, or an adapter around any other."""

    incidents: list[str]
    """What went wrong and was mended, such as a lost worker; whoever records an incident takes it out."""

    @property
    @abstractmethod
    def states(self) -> States:
        """What clients keep between rounds."""

    @property
    @abstractmethod
    def is_simulation(self) -> bool:
        """Whether clients are simulated here: their data is dealt by the server, and their states are this process's."""

    @abstractmethod
    def stream(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = do_nothing,
        screen: Screen = pass_all,
    ) -> Iterator[Message]:
        """Send messages and yield each reply as it comes.

        Args:
            messages: Requests, each to one client.
            timeout: Seconds after which nothing more is waited for; None waits.
            meanwhile: Called once: when all workers have something to do, or first where there are none but this process.
            screen: Is shown all replies together before the first is used, where others than this process made them.
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
        """Send messages, add what comes back to sums where it arises, and yield what is left of each reply.

        Args:
            messages: Requests, those that take longest first.
            sums: Of as many places as there are units; filled once the iterator has ended.
            units: Messages whose clients are fused into one step, as positions, in order; by default each is alone.
            holdings: What the census said of each message's client; a reply that says otherwise is refused.
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
        """Call a function of some module once for each tuple of arguments, on the workers.

        Args:
            function: What to call, with the name of the worker's device and the arguments.
            arguments: One call each.
            timeout: Seconds that all of it may take; None waits.

        Returns:
            Results in order.
        """

    @property
    def num_workers(self) -> int:
        """How many workers of this process run clients at once."""
        return 1

    @property
    def has_gpus(self) -> bool:
        """Whether workers of this process train on GPUs."""
        return False
