"""The state that stays the same over a phase, such as a frozen teacher: it travels once to each client that needs it."""

from collections.abc import Sequence

import numpy as np
from flwr.app import Message, RecordDict
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.kept import as_array, from_array
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.initial_state import initial_state
from fedssl.server.method_state import attach_state
from fedssl.server.round_log import RoundLog
from fedssl.training.recipe import Recipe

HOLDERS = "(holders)"
"""Name of the kept array that lists the clients which have the state; no slot has this name."""


class PhaseState:
    """Hold the state of a phase at the server, and know which clients have it.

    Clients of a simulation are given the state in every request, because all requests of a round share one content and
    nothing is copied. Only the first time counts as traffic. Other clients keep the state themselves. If one of them
    fails, it may have lost the state, and its next request carries the state again.
    """

    def __init__(self) -> None:
        self._arrays: NamedArrays = {}
        self._holders: set[int] = set()

    def kept(self) -> NamedArrays:
        """Return the state and the clients that have it."""
        return {**self._arrays, HOLDERS: as_array(sorted(self._holders))}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        self._arrays = {name: array for name, array in kept.items() if name != HOLDERS}
        self._holders = set(from_array(kept[HOLDERS])) if HOLDERS in kept else set()

    def forget_holders(self) -> None:
        """Assume that no client has the state, because clients that keep it themselves may have lost it meanwhile."""
        self._holders = set()

    def begin_phase(
        self, recipe: Recipe, network: nn.Module, spec: ImageSpec, previous: nn.Module | None
    ) -> None:
        """Make the state anew from the weights with which a phase begins; no client has it yet.

        Args:
            recipe: How clients of the phase learn.
            network: The phase's network with the weights it begins with.
            spec: What all images have in common.
            previous: The classifier of the last phase's network with its final weights; None in the first phase.
        """
        made = initial_state(recipe, network, spec, "phase", previous)
        self._arrays = {name: np.array(array) for name, array in made.items()}
        self._holders = set()

    def attach(self, messages: Sequence[Message], census: Census, *, is_simulation: bool) -> None:
        """Put the state into the requests that need it, in place.

        Args:
            messages: The requests of the round.
            census: The clients.
            is_simulation: Whether clients are simulated here.
        """
        if not self._arrays:
            return
        if is_simulation:
            attach_state({protocol.PHASE_STATE: self._arrays}, messages)
            return
        client_at = census.client_at
        lacking = [m for m in messages if client_at[m.metadata.dst_node_id] not in self._holders]
        contents = {id(message.content): message.content for message in lacking}
        extended = {key: self._extended(content) for key, content in contents.items()}
        for message in lacking:
            message.content = extended[id(message.content)]

    def _extended(self, content: RecordDict) -> RecordDict:
        """Return a content with the state, and with the request to keep it; other messages may share the old content."""
        extended = protocol.with_config(content, {protocol.KEEP_STATE: True})
        extended[protocol.PHASE_STATE] = protocol.to_record(self._arrays)
        return extended

    def saved_bytes(self, message: Message, client: int) -> int:
        """Return how many bytes of a request need not travel: the state, if the client has it already."""
        is_saved = client in self._holders and protocol.PHASE_STATE in message.content
        return protocol.encoded_bytes(self._arrays) if is_saved else 0

    @property
    def holders(self) -> frozenset[int]:
        """The clients that have the state; none if the phase has no such state."""
        return frozenset(self._holders)

    def note(self, log: RoundLog) -> None:
        """Note which clients have the state after a round, and which may have lost it."""
        if self._arrays:
            failed = {failure.client for failure in log.failures}
            self._holders = (self._holders - failed) | log.counted_clients
