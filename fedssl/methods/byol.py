"""BYOL.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020, arXiv:2006.07733.
"""

import math
from collections.abc import Callable

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.base import FORWARD, Batch, Fresh, Learner, Loss, Progress
from fedssl.methods.functional import call_with, ema_update, snapshot
from fedssl.methods.projection import (
    Encoder,
    Projected,
    ProjectionNorm,
    projection_head,
    spread,
    unit_vectors,
)
from fedssl.methods.self_supervised import SelfSupervised, check_widths, projected
from fedssl.models.base import Classifier


class Predicting(Projected):
    """A classifier with a projection head, and a predictor on top of the projection head.

    Args:
        classifier, projection: As in `Projected`.
        predictor: Maps projections (B, dim) to predictions of another view's projections, (B, dim).
    """

    def __init__(
        self, classifier: Classifier, projection: nn.Sequential, predictor: nn.Sequential
    ) -> None:
        super().__init__(classifier, projection)
        self.predictor = predictor

    def predict(self, images: Tensor) -> Tensor:
        """Return predictions of the embeddings of other views of images: unit vectors (B, dim), in single precision."""
        return unit_vectors(self.predictor(self.project(images)))


class BYOL(SelfSupervised):
    """Predict, from one view of an image, the embedding that a slowly moving target network gives another view.

    There are no negatives, so the batch may be small. What keeps the embeddings from becoming all the same is the
    predictor, the target and, in small federations, the normalization of the projection head: without one, the features
    of digits collapse (watch the number ``spread``, which goes to 0). A batch of one image is normalized by the running
    statistics.

    In a federation, the trunk, both heads and the predictor travel. The target starts each round from the received
    weights, stays with the client, or is averaged by the server, which adds the traffic of the target. A step costs two
    passes with gradients and two without for each image.

    The paper's hidden widths are 4096, its projections have 256 dimensions, its decay starts at 0.996, and its views
    differ in blur and solarization, which two names in ``unlabeled_views`` can express.
    """

    projection: tuple[int, ...] = Field(
        (256, 128),
        min_length=1,
        description="width of each layer of the projection head; the last is the dimension of the embeddings",
    )
    projection_norm: ProjectionNorm = Field(
        "batch",
        description="normalization of the hidden layers of the projection head and of the predictor",
    )
    predictor: tuple[int, ...] = Field(
        (256,), description="width of each hidden layer of the predictor"
    )
    target_decay: float = Field(
        0.99,
        ge=0,
        le=1,
        description="tau_base, decay of the target at first, per local step",
    )
    decay_rises: bool = Field(
        True,
        description="whether the decay rises to 1 over the phase, as in the paper; false: it stays",
    )
    target_scope: ChangingScope = Field(
        "reset",
        description="where the target lives: it starts each round from the global model (reset), stays with its client, "
        "or is averaged by the server",
    )

    @field_validator("predictor")
    @classmethod
    def _predictor_widths_are_positive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        return check_widths(widths)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put the projection head and the predictor beside the classifier's own head."""
        classifier, dim = build(), self.projection[-1]
        predictor = projection_head(dim, (*self.predictor, dim), norm=self.projection_norm)
        return Predicting(classifier, self.head(classifier.width), predictor)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: both views pass through the network and, without gradients, through the target."""
        return 2 * num_unlabeled * (1 + FORWARD)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the target in the scope that the experiment says."""
        return (Slot("target", self.target_scope),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start the target at the network's weights; it has no predictor and no head for classes."""
        return snapshot(Encoder(projected(fresh.network)))

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return mean(2 - 2 cos(p(view 1), z'(view 2))) + mean(2 - 2 cos(p(view 2), z'(view 1))).

        Reference: equation 2 and its symmetric form.
        """
        assert isinstance(network, Predicting)
        first, second = batch.unlabeled
        with torch.no_grad():
            targets = [
                call_with(Encoder(network), state["target"], view) for view in (second, first)
            ]
        total = sum(
            (2 - 2 * (network.predict(view) * target).sum(1)).mean()
            for view, target in zip((first, second), targets, strict=True)
        )
        assert isinstance(total, Tensor)
        return Loss(total, numbers={"spread": spread(targets[0])})

    def after_step(self, learner: Learner, batch: Batch, loss: Loss) -> None:
        """Move the target towards the network."""
        decay = self.target_decay
        if self.decay_rises:
            decay = rising_decay(decay, learner.progress.fraction)
        ema_update(learner.state["target"], Encoder(projected(learner.network)), decay)


def rising_decay(base: float, fraction: float) -> float:
    """Return 1 - (1 - base) (cos(pi fraction) + 1) / 2, which rises from base to 1.

    Args:
        base: tau_base, in [0, 1].
        fraction: Share of training that is over, k / K, in [0, 1].

    Reference: Grill et al. (BYOL), section 3.1.
    """
    return 1 - (1 - base) * (math.cos(math.pi * fraction) + 1) / 2
