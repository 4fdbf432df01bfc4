"""Supervised learning on the labeled images alone: the baseline of every comparison."""

from torch import nn

from fedssl.methods.base import Batch, Loss, Method, Progress, Views
from fedssl.methods.functional import supervised_loss
from fedssl.slots import State


class Supervised(Method):
    """Minimize cross-entropy on weakly augmented labeled images; unlabeled ones are not used."""

    def views(self) -> Views:
        """Ask for one weak view of the labeled batch."""
        return Views(labeled=("weak",))

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak))."""
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels))
