"""A user's own method, given by dotted name: supervised, but it raises at some clients."""

from pydantic import Field
from torch import nn

from fedssl.methods.base import Batch, Learner, Loss, Method, Progress, State, Views
from fedssl.methods.functional import supervised_loss


class Raising(Method):
    """Raise at clients whose number of images is in a list."""

    sizes: tuple[int, ...] = Field(
        (), description="shard sizes of the clients that raise; none: all"
    )

    def views(self) -> Views:
        return Views(("weak",), ("weak",))

    def begin(self, learner: Learner) -> None:
        if not self.sizes or len(learner.shard) in self.sizes:
            raise RuntimeError("this client is broken on purpose")

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels))
