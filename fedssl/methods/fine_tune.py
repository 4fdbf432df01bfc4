"""Fine-tuning of a pre-trained network on labels: the second step of SimCLR v2.

Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020, arXiv:2006.10029.
"""

from collections.abc import Callable, Collection, Iterator
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.slots import State
from fedssl.methods.base import (
    FORWARD,
    Batch,
    Learner,
    Loss,
    Method,
    Previous,
    Progress,
    View,
    Views,
)
from fedssl.methods.earlier import needs_earlier_phase
from fedssl.methods.functional import supervised_loss
from fedssl.methods.projection import Projected
from fedssl.models.base import Classifier


class HeadOnLayer(nn.Module):
    """A head that begins with a layer of a projection head.

    Args:
        layer: Maps features (B, width) to features (B, dim).
        output: Maps these to logits (B, num_classes).
    """

    def __init__(self, layer: nn.Module, output: nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.output = output

    def hidden(self, features: Tensor) -> Tensor:
        """Return the layer's output for features (B, width) or maps (B, width, h, w), which are averaged over their pixels."""
        pooled = features.mean((2, 3)) if features.dim() == 4 else features
        hidden: Tensor = self.layer(pooled)
        return hidden

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits, shape (B, num_classes); the argument is that of `hidden`."""
        logits: Tensor = self.output(self.hidden(features))
        return logits


class FineTune(Method):
    """Train a network that an earlier phase has pre-trained, with a new output layer, on labeled images.

    The trunk starts from the last phase's weights. If that phase had a projection head, so does the first layer of the
    projection head with its ReLU, which stays in the network; SimCLR v2 found it better than to throw the whole head
    away. A further phase of fine-tuning keeps this layer too. The output layer starts at 0 in each of them. With
    ``frozen``, only the output layer is trained: a linear probe that the federation trains together.

    In a federation, the whole network travels: one model's traffic, plus the layer. A step takes one pass for each
    labeled image. Clients without labels take no step.
    """

    group: ClassVar[str] = "transfer"

    start: Literal["backbone", "projection"] | None = Field(
        None,
        description="where the new output layer stands; backbone: on the features; projection: on the first layer of the last "
        "phase's projection head, or on the layer that its fine-tuning kept of one; unset: projection if there is one, else "
        "backbone",
    )
    frozen: bool = Field(
        False, description="whether everything but the output layer stays as it is"
    )
    labeled_view: View = Field("weak", description="view of the labeled batch")

    def views(self) -> Views:
        """Ask for one view of the labeled batch."""
        return Views(labeled=(self.labeled_view,))

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Count one pass for each labeled image; it is a pass without gradients if the trunk is frozen."""
        return num_labeled * (FORWARD if self.frozen else 1)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Raise `InputError`: there is nothing to fine-tune in the first phase."""
        raise needs_earlier_phase(self.kind)

    @property
    def builds_on_previous(self) -> bool:
        """Whether the network is made from the last phase's: always."""
        return True

    def network_after(self, build: Callable[[], Classifier], previous: Previous) -> nn.Module:
        """Return the model's trunk with a new output layer, after a layer of the last phase's projection head if wanted.

        Raises:
            InputError: The model has no output layer apart from its trunk; or the head must begin with a projection head's
                layer, and the last phase has none.
        """
        built, layer = build(), layer_of(previous)
        if not any(True for _ in built.head.parameters()):
            raise InputError(
                "model.kind",
                f"builds a {type(built.trunk).__name__} without an output layer apart from its trunk, and {self.kind!r} "
                "trains such a layer",
                "take a [model] whose logits are made by a linear layer at its end",
            )
        if self.start == "backbone" or (self.start is None and layer is None):
            output: nn.Module = built.head
            head = output
        elif layer is not None:
            width, num_classes = (outputs_of(module) for module in (layer, built.head))
            output = nn.Linear(width, num_classes)
            head = HeadOnLayer(layer, output)
        else:
            raise InputError(
                "method.start",
                "is 'projection', but the network of the last phase has no projection head",
                "set it to 'backbone', or pre-train with a method that has one, such as 'simclr'",
            )
        for parameter in last_layer(output).parameters():
            nn.init.zeros_(parameter)
        return Classifier(built.trunk, head, built.width)

    def comes_from(self, key: str) -> str | tuple[str, ...] | None:
        """Take over the trunk and the projection head's first layer, and begin the output layer anew.

        A network that was fine-tuned before has the layer in its head.
        """
        part, _, name = key.partition(".")
        if part == "trunk":
            return key
        inner, _, name = name.partition(".")
        return (f"projection.0.{name}", key) if inner == "layer" else None

    def check_carried(self, carried: Collection[str], begun: Collection[str]) -> None:
        """Raise `InputError` if any weight but the output layer's begins anew."""
        lost = [key for key in begun if self.comes_from(key) is not None]
        if lost:
            raise InputError(
                "method.kind",
                f"is {self.kind!r}, but {len(lost)} of {len(lost) + len(carried)} pre-trained weights are not in the network "
                f"of the last phase in the same shape, {lost[0]!r} for one",
                "give this phase the [model] of the last phase",
            )

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        """Return one optimizer over all parameters, or over the output layer's if the others are frozen."""
        trained = body_and_output(network)[1] if self.frozen else network
        return {"main": make(trained.parameters())}

    def begin(self, learner: Learner) -> None:
        """Put a frozen network into evaluation mode, so that a round moves no statistics and drops nothing out."""
        if self.frozen:
            learner.network.eval()

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(view))."""
        images = batch.labeled[0]
        if not self.frozen or not len(images):
            return Loss(supervised_loss(network, images, batch.labels))
        body, output = body_and_output(network)
        with torch.no_grad():
            features = body(images)
        return Loss(supervised_loss(output, features, batch.labels))


def layer_of(previous: Previous) -> nn.Module | None:
    """Return the first layer of the last phase's projection head, or the layer that its head kept of one; None if neither."""
    if isinstance(previous.network, Projected):
        return previous.network.projection[0]
    last = previous.classifier
    if isinstance(last, Classifier) and isinstance(last.head, HeadOnLayer):
        return last.head.layer
    return None


def body_and_output(network: nn.Module) -> tuple[Callable[[Tensor], Tensor], nn.Module]:
    """Return the part of a fine-tuned network that was pre-trained, as a function of images, and its output layer."""
    assert isinstance(network, Classifier)
    trunk, head = network.trunk, network.head
    if isinstance(head, HeadOnLayer):
        return lambda images: head.hidden(trunk(images)), head.output
    return trunk, head


def last_layer(module: nn.Module) -> nn.Module:
    """Return the last part of a module that has parameters of its own; the module itself if no part has any."""
    own = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return own[-1] if own else module


def outputs_of(module: nn.Module) -> int:
    """Return the number of outputs of a module: the width of its last linear layer or convolution.

    Raises:
        InputError: The module has neither.
    """
    found = [part for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    if not found:
        raise InputError(
            "method.start",
            "is 'projection', but the model's output layer is neither linear nor a convolution",
            "set it to 'backbone', or take another [model]",
        )
    return found[-1].weight.shape[0]
