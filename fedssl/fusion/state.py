"""What several clients keep, stacked: as hooks see it, and as each client's loss sees it."""

from collections.abc import Sequence

import torch

from fedssl.core.slots import State, Tensors
from fedssl.fusion.stacked import Stacked


class GroupState:
    """The state of M clients in one round.

    A tensor with the name and shape of a weight or buffer, such as a teacher's, is laid out as the stacked weights are, so
    that hooks that treat every number alike can move all clients' state in one call. Any other tensor, such as a running
    mean, has shape (M, ...).

    Args:
        states: The state of each client, of the same slots.
        stacked: The clients' networks.

    Raises:
        ValueError: A slot's tensors have other names or shapes at some clients, such as one row for each image.
    """

    def __init__(self, states: Sequence[State], stacked: Stacked) -> None:
        self._stacked = stacked
        self._laid_out: dict[str, set[str]] = {}
        self.for_hooks: State = {}
        """The state as hooks see it; they may write to it and replace its tensors."""
        for slot in states[0]:
            self.for_hooks[slot] = self._stack(slot, [state[slot] for state in states])

    def for_losses(self) -> State:
        """Return the state as the clients' losses see it: every tensor is (M, *shape), and shares memory with `for_hooks`."""
        return {slot: self._by_client(slot) for slot in self.for_hooks}

    def update(self, updates: State) -> None:
        """Put tensors of shape (M, *shape), by slot and name, in place of those that the clients had."""
        for slot, tensors in updates.items():
            self.for_hooks[slot].update(self._in_layout(slot, tensors))

    def _stack(self, slot: str, each: Sequence[Tensors]) -> Tensors:
        shapes = [{name: tensor.shape for name, tensor in own.items()} for own in each]
        if any(own != shapes[0] for own in shapes):
            raise ValueError(f"clients keep state of different shapes: {slot}")
        is_laid_out = self._stacked.is_laid_out
        self._laid_out[slot] = {n for n, shape in shapes[0].items() if is_laid_out(n, shape)}
        stacks = {name: torch.stack([own[name] for own in each]) for name in shapes[0]}
        return self._in_layout(slot, stacks)

    def _in_layout(self, slot: str, tensors: Tensors) -> Tensors:
        return {**tensors, **self._stacked.laid_out(self._like_weights(slot, tensors))}

    def _by_client(self, slot: str) -> Tensors:
        tensors = self.for_hooks[slot]
        return {**tensors, **self._stacked.by_client(self._like_weights(slot, tensors))}

    def _like_weights(self, slot: str, tensors: Tensors) -> Tensors:
        return {name: tensor for name, tensor in tensors.items() if name in self._laid_out[slot]}
