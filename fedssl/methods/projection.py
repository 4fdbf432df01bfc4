"""A projection head beside a classifier's own head, for methods that compare embeddings.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (SimCLR), ICML 2020,
arXiv:2002.05709; its second version, NeurIPS 2020, arXiv:2006.10029, has three layers and goes on from the first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.methods.functional import widen_half_precision
from fedssl.models.base import Classifier

ProjectionNorm = Literal["none", "batch", "layer"]
"""Normalization in a projection head: none, by the batch's statistics, or each image by itself (layer)."""


class Projected(nn.Module):
    """A classifier with a projection head on its features.

    Args:
        classifier: The classifier.
        projection: Maps features (B, width) to (B, dim). Element i is the i-th layer, as `projection_head` makes it.
    """

    def __init__(self, classifier: Classifier, projection: nn.Sequential) -> None:
        super().__init__()
        self.classifier = classifier
        self.projection = projection

    def forward(self, images: Tensor) -> Tensor:
        """Return the classifier's logits, shape (B, num_classes)."""
        logits: Tensor = self.classifier(images)
        return logits

    def project(self, images: Tensor) -> Tensor:
        """Return the output of the projection head for normalized images (B, C, H, W), shape (B, dim)."""
        projected: Tensor = self.projection(self.classifier.features(images))
        return projected

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings of normalized images (B, C, H, W): unit vectors (B, dim) in single precision."""
        return unit_vectors(self.project(images))

    def first_layer(self, images: Tensor) -> Tensor:
        """Return the output of the projection head's first layer with its ReLU, shape (B, width of the layer)."""
        hidden: Tensor = self.projection[0](self.classifier.features(images))
        return hidden

    def representations(self) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return what judges of features look at: the classifier's features and the projection head's first layer."""
        return {"backbone": self.classifier.features, "projection": self.first_layer}


class Encoder(Projected):
    """The trunk and the projection head of a network, without the classes' head; it shares the network's weights.

    Its weights have the names that they have in the network. `snapshot`, `ema_update` and `call_with` work on it.

    Args:
        network: The network.
    """

    def __init__(self, network: Projected) -> None:
        own = network.classifier
        super().__init__(Classifier(own.trunk, nn.Identity(), own.width), network.projection)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings of images; see `Projected.embed`."""
        return self.embed(images)


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization of features (B, width); a batch of one image, which has no variance, uses the running statistics.

    Args:
        width: Number of features.
        offset: Whether the layer learns an offset beside its scale.
    """

    def __init__(self, width: int, *, offset: bool = True) -> None:
        super().__init__(width)
        if not offset:
            self.register_parameter("bias", None)

    def forward(self, input: Tensor) -> Tensor:
        """Return normalized features, shape (B, width)."""
        if self.training and len(input) == 1:
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(input, mean, var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def projection_head(
    width: int,
    widths: Sequence[int],
    *,
    norm: ProjectionNorm = "none",
    normalize_last: bool = False,
) -> nn.Sequential:
    """Return a projection head, whose element i is the i-th layer: a linear layer, its normalization and a ReLU.

    The last layer has no ReLU. SimCLR v2 normalizes the last layer too, without an offset. A linear layer before a
    normalization has no bias, because the normalization has an offset or wants none.

    Args:
        width: Number of features that the head is given.
        widths: Width of each layer's output; the last is the dimension of the embeddings.
        norm: Normalization of every layer but the last.
        normalize_last: Whether the last layer is normalized too.

    Reference: Chen et al. (SimCLR v2), section 2 and official code.
    """
    layers = []
    for i, out in enumerate(widths):
        is_last = i == len(widths) - 1
        own: ProjectionNorm = norm if normalize_last or not is_last else "none"
        parts: list[nn.Module] = [nn.Linear(width, out, bias=own == "none")]
        if own == "batch":
            parts.append(BatchNorm(out, offset=not is_last))
        elif own == "layer":
            parts.append(nn.LayerNorm(out, bias=not is_last))
        if not is_last:
            parts.append(nn.ReLU())
        layers.append(nn.Sequential(*parts))
        width = out
    return nn.Sequential(*layers)


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return vectors (B, dim) at length 1; vectors of half precision become vectors of single precision first."""
    return F.normalize(widen_half_precision(vectors), dim=1)


@torch.no_grad()
def spread(embeddings: Tensor) -> Tensor:
    """Return how far embeddings spread over the sphere, a scalar: 1 if they spread evenly, 0 if all are the same.

    It is the standard deviation of a coordinate over the batch, mean over the coordinates, times sqrt(dim).

    Args:
        embeddings: Unit vectors, shape (B, dim).

    Reference: Chen & He (SimSiam), CVPR 2021, arXiv:2011.10566, section 4.1.
    """
    return embeddings.std(0, correction=0).mean() * math.sqrt(embeddings.shape[1])
