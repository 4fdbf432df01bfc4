"""Linear classification on frozen features: multinomial logistic regression.

The protocol of Zhang et al., "Colorful Image Colorization", ECCV 2016, arXiv:1603.08511, which contrastive learning
keeps. We solve the regression to its minimum instead of following a schedule of learning rates: so neither a seed nor the
choice of an epoch can change the result. The minimum is unique because of two rules. The weights have a penalty, without
which separable features have no minimum, and the solver starts at 0: softmax does not change when all biases move by the
same number, and no step moves their sum. The regression is over the classes that occur among the labeled images, as a class
without a label would push its bias to minus infinity.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.eager_optimizers import LBFGS
from fedssl.core.slots import Tensors
from fedssl.metrics.evaluators.base import FeatureEvaluator

FLOOR = 0.1
"""A feature's deviation counts as at least this share of the root mean square deviation of all features. With few
labeled images, some features are nearly constant, and division by their deviations would make them explode elsewhere."""

LOG_SHARE_OF_MISSING_CLASS = math.log(1e-6)
"""The logit of a class without a label. The other logits have mean 0, so this class is never predicted, and has at most
this share (as a logarithm) of the probability. Its loss is finite."""

LARGEST_GRADIENT, LEAST_CHANGE = 1e-7, 1e-12
"""The solver is at the minimum when no gradient of the mean loss is larger than the first number, or when a step changes
neither the loss nor any weight by more than the second."""


class LinearProbe(FeatureEvaluator):
    """Train a linear layer on frozen, standardized features, and judge by its last step, never by its best."""

    penalty: float = Field(
        1.0,
        gt=0,
        description="weight of half the squared weights beside the sum of the images' losses: 1 / C of scikit-learn",
    )
    num_steps: int = Field(
        100, ge=1, description="most steps of the solver (L-BFGS); it stops earlier at the minimum"
    )

    def learn_layer(self, features: Tensor, labels: Tensor, num_classes: int) -> Tensors:
        """Return the ``weight`` (C, width) and the ``bias`` (C,) that map features to logits.

        A class without a label is never predicted: its weight is 0 and its bias `LOG_SHARE_OF_MISSING_CLASS`.
        """
        exact = features.double()
        mean, deviation = standardization(exact)
        standardized = (exact - mean) / deviation
        present, targets = torch.unique(labels, return_inverse=True)
        of_present = logistic_regression(
            standardized, targets, len(present), self.penalty, self.num_steps
        )
        weight = exact.new_zeros(num_classes, exact.shape[1]).index_copy(0, present, of_present[0])
        bias = exact.new_full((num_classes,), LOG_SHARE_OF_MISSING_CLASS)
        bias = bias.index_copy(0, present, of_present[1])
        # The standardization is folded into the layer, so that trunk and layer make one network.
        weight = weight / deviation
        bias = bias - weight @ mean
        return {"weight": weight.to(features.dtype), "bias": bias.to(features.dtype)}

    def score_layer(self, learned: Tensors, features: Tensor) -> Tensor:
        """Return the logits of the linear layer, (B, C)."""
        return F.linear(features, learned["weight"], learned["bias"])

    def head(self, learned: Tensors) -> nn.Linear:
        """Return the linear layer."""
        num_classes, width = learned["weight"].shape
        head = nn.Linear(width, num_classes)
        head.load_state_dict(dict(learned))
        return head


def standardization(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the deviation that each feature is standardized by, both (width,).

    A deviation below `FLOOR` times the root mean square deviation of all features is raised to that. If every feature is
    constant, all deviations are 1.

    Args:
        features: Features of the labeled images, (n, width).
    """
    mean = features.mean(0)
    deviation = features.std(0, correction=0)
    floor = FLOOR * deviation.square().mean().sqrt()
    deviation = deviation.clamp_min(float(floor))
    return mean, torch.where(deviation > 0, deviation, torch.ones_like(deviation))


@torch.enable_grad()
def logistic_regression(
    features: Tensor, labels: Tensor, num_classes: int, penalty: float, num_steps: int
) -> tuple[Tensor, Tensor]:
    """Return weight (C, width) and bias (C,) that minimize sum of cross-entropies + penalty / 2 ||weight||^2.

    The start is 0 and the solver is deterministic. The bias is not penalized; weights and biases sum to 0 over the classes.

    Args:
        features: Standardized features, float64 (n, width).
        labels: Classes, int64 (n,); every class must occur.
        num_classes: C, the number of classes.
        penalty: Weight of the penalty.
        num_steps: Most steps of L-BFGS.
    """
    features = features.detach()
    weight = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    solver = LBFGS(
        [weight, bias],
        max_iter=num_steps,
        max_eval=2 * num_steps,
        tolerance_grad=LARGEST_GRADIENT,
        tolerance_change=LEAST_CHANGE,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        cross_entropy = F.cross_entropy(F.linear(features, weight, bias), labels)
        total = cross_entropy + penalty / (2 * len(features)) * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    solver.step(loss)
    return weight.detach(), bias.detach()
