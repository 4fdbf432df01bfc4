"""What methods share that learn features from two views of each image, without any label."""

from collections.abc import Callable, Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from fedssl.methods.base import Method, View, Views
from fedssl.methods.projection import Projected, ProjectionNorm, projection_head
from fedssl.models.base import Classifier


class SelfSupervised(Method):
    """A method that trains the trunk and a projection head, and never the classes' head.

    The classes' head travels with the weights as it is, so that a later phase can train it. A server that holds labels
    does not train in such a phase. Judge the phase by its features: ``[server.evaluator] kind = "linear_probe"``.
    """

    is_abstract: ClassVar[bool] = True
    group: ClassVar[str] = "self-supervised"
    trains_classifier: ClassVar[bool] = False

    unlabeled_views: tuple[View, View] = Field(
        ("contrast", "contrast"), description="the two views of each image"
    )
    projection: tuple[int, ...] = Field(
        (128, 128),
        min_length=1,
        description="width of each layer of the projection head; the last is the dimension of the embeddings",
    )
    projection_norm: ProjectionNorm = Field(
        "none", description="normalization of the projection head's layers"
    )

    @field_validator("projection")
    @classmethod
    def _widths_are_positive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        return check_widths(widths)

    def views(self) -> Views:
        """Ask for two views of the unlabeled batch, and for no labels."""
        return Views(labeled=(), unlabeled=self.unlabeled_views)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put the projection head beside the classifier's own head."""
        classifier = build()
        return Projected(classifier, self.head(classifier.width))

    def head(self, width: int) -> nn.Sequential:
        """Return a new projection head for features (B, width)."""
        return projection_head(width, self.projection, norm=self.projection_norm)

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the classifier without the projection head."""
        return projected(network).classifier

    def representations(self, network: nn.Module) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return the classifier's features, ``"backbone"``, and the projection head's first layer, ``"projection"``."""
        return projected(network).representations()

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        """Return one optimizer over all parameters but those of the classes' head."""
        left_out = {id(parameter) for parameter in projected(network).classifier.head.parameters()}
        trained = (p for p in network.parameters() if id(p) not in left_out)
        return {"main": make(trained)}


def check_widths(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Return the widths of layers; raise `ValueError` if one of them is not positive."""
    for width in widths:
        if width < 1:
            raise ValueError(f"widths must be positive, not {width}")
    return widths


def projected(network: nn.Module) -> Projected:
    """Return the network of a self-supervised method as what it is."""
    assert isinstance(network, Projected)
    return network
