"""Functions that the training loop gives to a method's hooks: shard passes, further batches, and gradients without a step."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedssl.core.slots import State, Tensors
from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, Learner, Pools, View, Views
from fedssl.training.batches import BatchLoader, default_pools, show_in_order
from fedssl.training.optimization import Descent
from fedssl.training.recipe import Recipe


class LearnerFunctions:
    """The functions of one client's `Learner` in one round.

    Args:
        network: The module being trained.
        shard: The client's examples.
        recipe: The method, the optimization and the augmentations.
        state: Contents of all slots.
        descent: Takes the steps.
        stream: Makes the generator for a purpose.
    """

    def __init__(
        self,
        network: nn.Module,
        shard: Shard,
        recipe: Recipe,
        state: State,
        descent: Descent,
        stream: Callable[[str], torch.Generator],
    ) -> None:
        self.learner: Learner
        """The learner that has these functions; it is set once it exists."""
        self._network = network
        self._shard = shard
        self._recipe = recipe
        self._state = state
        self._descent = descent
        self._stream = stream

    def gradients(self, total: Tensor, name: str) -> Tensors:
        """Return gradients by parameter; see `Learner.gradients`."""
        names = {id(parameter): key for key, parameter in self._network.named_parameters()}
        return {
            names[id(parameter)]: gradient
            for parameter, gradient in self._descent.gradients(total, name)
        }

    def show(
        self, view: View, ids: Tensor | None = None, *, name: str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Show examples once, in order; see `fedssl.methods.base.Show`."""
        chosen = self._shard.unlabeled if ids is None else ids
        generator = self._stream(f"show/{name}")
        return show_in_order(
            view, chosen, self._shard, self._recipe.augment, self._state, generator
        )

    def batches(self, pools: Pools, views: Views, *, name: str) -> Iterator[Batch]:
        """Make further batches; see `fedssl.methods.base.Batches`. The first one is made when it is asked for."""

        def stream(purpose: str) -> torch.Generator:
            return self._stream(f"{name}/{purpose}")

        yield from self._loader(pools, views, self.learner.progress.num_steps, stream)

    def main_batches(self, pools: Pools | None, num_steps: int) -> Iterator[Batch]:
        """Make the batches that every step is given.

        Args:
            pools: The pools that the method chose; None: it chose none.
            num_steps: Steps of the round.
        """
        drawn = default_pools(self._shard) if pools is None else pools
        views = self._recipe.method.views()
        return iter(self._loader(drawn, views, num_steps, self._stream))

    def _loader(
        self,
        pools: Pools,
        views: Views,
        num_steps: int,
        stream: Callable[[str], torch.Generator],
    ) -> BatchLoader:
        augment, size = self._recipe.augment, self._recipe.train.batch_size
        return BatchLoader(self._shard, pools, views, augment, self._state, size, num_steps, stream)
