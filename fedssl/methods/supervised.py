"""Supervised learning on the labeled images alone: the baseline of every comparison."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Method, Progress, View, Views
from fedssl.methods.functional import supervised_loss


class Supervised(Method):
    """Minimize cross-entropy on labeled images; unlabeled images are not used.

    Methods that train on strong views gain by the views as well as by the unlabeled images. The fair baseline of such a
    method shows the labeled images in strong views too: ``labeled_view = "strong"``.
    """

    group: ClassVar[str] = "baseline"

    labeled_view: View = Field("weak", description="view of the labeled batch")

    def views(self) -> Views:
        """Ask for one view of the labeled batch."""
        return Views(labeled=(self.labeled_view,))

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(view))."""
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels))
