"""Proxies of the classes: sets of classes, and a contrastive loss between images and the rows of a classifier.

Chen & Wang, "ProxyFL: A Proxy-Guided Framework for Federated Semi-Supervised Learning", CVPR 2026, arXiv:2602.21078.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.methods.functional import widen_half_precision
from fedssl.methods.projection import Projected, projection_head, unit_vectors
from fedssl.models.base import Classifier

LEAST_SIMILARITY = 1e-6
"""Pairs of images that are less alike than this push each other in the paper, but not in the official code."""


class WithProxyHeads(Projected):
    """A classifier with the two linear layers of the official code, on its features and on its proxies.

    Args:
        classifier: The classifier; its head is a linear layer.
    """

    def __init__(self, classifier: Classifier) -> None:
        width = classifier.width
        super().__init__(classifier, projection_head(width, (width,)))
        self.proxy_projection = nn.Linear(width, width, bias=False)

    def embed_features(self, features: Tensor) -> Tensor:
        """Return the embeddings of features (B, width): unit vectors (B, width)."""
        return unit_vectors(self.projection(features))

    def proxies(self) -> Tensor:
        """Return the embeddings of the proxies: unit vectors (C, width)."""
        return unit_vectors(self.proxy_projection(proxies_of(self.classifier)))


class Rows(NamedTuple):
    """Images of a batch, as the contrastive loss sees them.

    Args:
        features: Shape (B, d).
        sets: The class set of each image, bool (B, C).
        ids: Rows of the images in the shard, int64 (B,).
    """

    features: Tensor
    sets: Tensor
    ids: Tensor

    def and_also(self, others: "Rows") -> "Rows":
        """Return these images and then others."""
        return Rows(*(torch.cat(pair) for pair in zip(self, others, strict=True)))

    def mapped(self, embed: Callable[[Tensor], Tensor]) -> "Rows":
        """Return the same images with other features."""
        return self._replace(features=embed(self.features))


def class_sets(probs: Tensor, prior: Tensor, is_confident: Tensor) -> Tensor:
    """Return the class set of each unlabeled image, bool (B, C).

    A confident image has its most probable class. Any other image has every class above the prior; it has none if the
    prediction is exactly the prior.

    Args:
        probs: Predictions of the received model, (B, C).
        prior: P', (C,).
        is_confident: Bool (B,).

    Reference: equation 4 and section 5.2.1.
    """
    label = F.one_hot(probs.argmax(1), probs.shape[1]).bool()
    return torch.where(is_confident.unsqueeze(1), label, probs > prior)


def candidate_weights(probs: Tensor, sets: Tensor, is_confident: Tensor) -> Tensor:
    """Return the weight of each proxy in the positive proxy of each image, (B, C).

    It is 1 for the label of a confident image, and the probability of each candidate of any other image.

    Args:
        probs: Predictions whose probabilities weigh, without a gradient, (B, C).
        sets: Class sets, bool (B, C).
        is_confident: Bool (B,).

    Reference: equation 6.
    """
    return sets * torch.where(is_confident.unsqueeze(1), 1.0, probs)


def contrast_loss(
    anchors: Rows, positives: Tensor, others: Rows, *, least_similarity: float = -torch.inf
) -> Tensor:
    """Return -log(e^(z_i w_i) / (e^(z_i w_i) + sum_j e^(z_i z_j))) for each anchor i, (A,); 0 for one without negatives.

    The negatives j of i are images among the anchors and the others whose class sets share no class with that of i.

    Args:
        anchors: The unlabeled images, with features z.
        positives: w, the positive proxy of each anchor, (A, d).
        others: Further images, with features z, which are negatives only.
        least_similarity: Images whose product z_i z_j is below this are no negatives.

    Reference: equations 7 and 8.
    """
    everyone = anchors.and_also(others)
    features = widen_half_precision(everyone.features)
    own = features[: len(anchors.ids)]
    similarity = own @ features.T
    known = everyone.sets.to(features.dtype)
    is_negative = anchors.sets.to(features.dtype) @ known.T == 0
    is_negative &= anchors.sets.any(1).unsqueeze(1) & everyone.sets.any(1)
    is_negative &= anchors.ids.unsqueeze(1) != everyone.ids
    is_negative &= similarity >= least_similarity
    positive = (own * positives).sum(1, keepdim=True)
    # The positive is the first column, so that an anchor without negatives has -log(1) = 0 and not the log of 0.
    logits = torch.cat([positive, similarity.masked_fill(~is_negative, -torch.inf)], 1)
    return -logits.log_softmax(1)[:, 0]


def proxies_of(classifier: Classifier) -> Tensor:
    """Return the proxies: the rows of the classifier's last layer, (C, width)."""
    assert isinstance(classifier.head, nn.Linear)
    return classifier.head.weight


def with_proxy_heads(network: nn.Module) -> WithProxyHeads:
    """Return the network, which `ProxyFL.network` made with two linear layers."""
    assert isinstance(network, WithProxyHeads)
    return network
