"""An adapter from any other Flower grid to `ClientGrid`: clients are other processes, and replies arrive together."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedssl.engine.client_grid import ClientGrid, Result, Screen, do_nothing, pass_all
from fedssl.engine.grid_view import GridView
from fedssl.engine.persistent_grid import PersistentGrid
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import NO_REPLY, Answer, CohortSums
from fedssl.exchange.sums import Span
from fedssl.record.snapshot import KeptStates


class StatesAtClients:
    """The states of clients that keep them themselves, where the server cannot change them.

    Args:
        outlive_run: Whether clients keep them in files; otherwise Flower keeps them in its memory.
    """

    to_snapshot: KeptStates | None = None

    def __init__(self, *, outlive_run: bool) -> None:
        self.outlive_run = outlive_run

    def commit(self) -> None:
        """Do nothing."""

    def revert(self, client: int) -> None:
        """Do nothing: the client goes back by itself when its next request says that the round did not count."""

    def discard(self) -> None:
        """Do nothing."""

    def restore(self, round: int, states: KeptStates | None) -> None:
        """Do nothing."""


class RemoteGrid(GridView, ClientGrid):
    """Serve rounds over a Flower grid whose clients are other processes.

    Args:
        inner: Flower's grid.
    """

    is_simulation = False

    def __init__(self, inner: Grid) -> None:
        super().__init__(inner)
        # The clients of a SuperLink have folders of their own.
        self._states = StatesAtClients(outlive_run=isinstance(inner, PersistentGrid))
        self.incidents: list[str] = []

    @property
    def states(self) -> StatesAtClients:
        """What clients keep themselves."""
        return self._states

    def stream(
        self,
        messages: Iterable[Message],
        *,
        timeout: float | None = None,
        meanwhile: Callable[[], None] = do_nothing,
        screen: Screen = pass_all,
    ) -> Iterator[Message]:
        """Send messages and yield the replies that arrive in time; see `ClientGrid.stream`."""
        meanwhile()
        sent = list(messages)
        yield from screen(sent, list(self.send_and_receive(sent, timeout=timeout)))

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
        """Add each reply here, at the place of its client; see `ClientGrid.reduce`. Every unit is one client."""
        places = {message.metadata.dst_node_id: place for place, message in enumerate(messages)}
        for reply in self.stream(messages, timeout=timeout, meanwhile=meanwhile, screen=screen):
            place = places.pop(reply.metadata.src_node_id, None)
            if place is not None:  # only the first reply of a client counts
                yield sums.add(place, reply, holdings[place] if holdings else None)
        for node, place in places.items():
            yield sums.leave_out(place, node, NO_REPLY)

    def map(
        self,
        function: Callable[..., Result],
        arguments: Sequence[tuple[Any, ...]],
        *,
        timeout: float | None = None,
    ) -> list[Result]:
        """Call the function in this process, which has no workers."""
        return [function("cpu", *each) for each in arguments]


def as_client_grid(grid: Grid) -> ClientGrid:
    """Return a grid as a `ClientGrid`, inside a `RemoteGrid` if it is none."""
    return grid if isinstance(grid, ClientGrid) else RemoteGrid(grid)
