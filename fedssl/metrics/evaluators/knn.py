"""Weighted nearest neighbors in the space of features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, arXiv:1805.01978,
section 3.4.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedssl.core.slots import Tensors
from fedssl.metrics.evaluators.base import FeatureEvaluator

LEAST = 1e-6
"""A class without a vote gets this share of the votes, so that the loss stays finite."""


class KNN(FeatureEvaluator):
    """Let the nearest labeled images vote for their classes, each with the weight exp(cosine similarity / temperature)."""

    num_neighbors: int = Field(
        200, ge=1, description="k, labeled images that vote; all labeled images if there are fewer"
    )
    temperature: float = Field(
        0.07, gt=0, description="temperature of the votes; a lower one favors the nearest images"
    )

    @property
    def title(self) -> str:
        """What tables and charts call the evaluator."""
        return "kNN"

    def learn_layer(self, features: Tensor, labels: Tensor, num_classes: int) -> Tensors:
        """Return the bank: features of unit length (n, width), and classes as one-hot rows (n, C)."""
        votes = F.one_hot(labels, num_classes).to(features.dtype)
        return {"features": F.normalize(features), "votes": votes}

    def score_layer(self, learned: Tensors, features: Tensor) -> Tensor:
        """Return the logarithm of each class's share of the votes, (B, C)."""
        similarities = F.normalize(features) @ learned["features"].T
        nearest, places = similarities.topk(min(self.num_neighbors, similarities.shape[1]), dim=1)
        weights = (nearest / self.temperature).softmax(1)
        # A row of weights over the whole bank makes the sum a product of matrices, whose bits are fixed.
        spread = torch.zeros_like(similarities).scatter(1, places, weights)
        return (spread @ learned["votes"]).clamp_min(LEAST).log()
