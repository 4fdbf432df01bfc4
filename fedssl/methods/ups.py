"""UPS: pseudo-labels of which the network is certain under dropout, and labels of classes that an image is not.

Rizve, Duarte, Rawat & Shah, "In Defense of Pseudo-Labeling: An Uncertainty-Aware Pseudo-label Selection Framework for
Semi-Supervised Learning", ICLR 2021, arXiv:2101.06329.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import (
    FORWARD,
    Batch,
    Fresh,
    Learner,
    Loss,
    Pools,
    Progress,
    SemiSupervised,
    View,
    Views,
)
from fedssl.methods.functional import supervised_loss, widen_half_precision
from fedssl.models.base import Classifier, WithFeatures
from fedssl.models.modes import dropout_layers, only_dropout

LABELS = "labels"
"""Slot of the round's pseudo-labels."""


class WithDropout(WithFeatures):
    """A classifier with dropout between its trunk and its head.

    Args:
        classifier: The classifier; its own dropout stays.
        dropout: Probability that a feature is dropped in training.
    """

    def __init__(self, classifier: Classifier, dropout: float) -> None:
        super().__init__()
        self.classifier = classifier
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images (B, C, H, W), shape (B, num_classes)."""
        logits: Tensor = self.classifier.head(self.dropout(self.classifier.trunk(images)))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the classifier's features, without dropout, shape (B, width)."""
        return self.classifier.features(images)


@dataclass(frozen=True)
class Selection:
    """The pseudo-labels of some images.

    Args:
        classes: The most probable class of each image, int64 (B,).
        spread: Standard deviation of the probability of that class over the passes, shape (B,).
        is_positive: Whether the image is trained to be of that class, bool (B,).
        negative: Classes that the image is trained not to be, bool (B, C). A positive image has none, and no image has its
            most probable class among them.
    """

    classes: Tensor
    spread: Tensor
    is_positive: Tensor
    negative: Tensor


class UPS(SemiSupervised):
    """Select pseudo-labels by confidence and by certainty under dropout, once a round, and learn what an image is not.

    At the beginning of a round, the network predicts every unlabeled image of the client several times with dropout and
    without augmentation. A prediction is a positive label if its mean is high and its standard deviation is low. The other
    images get negative labels: the classes whose mean and standard deviation are both low. The loss is the cross-entropy of
    given and positive labels, plus negative learning: -ln(1 - p) of the negative classes.

    In the first rounds, no prediction may meet the limits. Then the round is supervised training on the labels, and a client
    without labels sits the round out. Nothing travels but the weights, and nothing stays at the client. A round begins with
    ``num_passes`` passes without gradients over the unlabeled images.

    The method needs dropout, and so it puts a dropout layer before the classifier's head (``dropout``). With
    ``dropout = 0``, the model must have dropout of its own. A later phase goes on from the classifier without this layer.

    Deviations:

    - The paper labels about 20 times, and each time it trains a new network from scratch. In a federation, a client has no
      time to train one from scratch. Here a round begins with the weights that the server sent, and labels are made anew in
      each round. So wrong labels are not forgotten as they would be by a new network.
    - The official code draws batches from given and pseudo-labeled images together. Here given labels have batches of their
      own, so that a few given labels are not lost among many pseudo-labels.
    - The classes are balanced over the images of one client, as in the official code over all images.
    """

    group: ClassVar[str] = "pseudo-labels"

    num_passes: int = Field(10, ge=2, description="passes with dropout over each unlabeled image")
    dropout: float = Field(
        0.3, ge=0, lt=1, description="dropout before the head; 0: only the model's own dropout"
    )
    positive_threshold: float = Field(
        0.7, ge=0, le=1, description="tau_p, least mean probability of a positive label"
    )
    positive_spread: float = Field(
        0.05, ge=0, description="kappa_p, limit of the standard deviation of a positive label"
    )
    negative_threshold: float = Field(
        0.05, ge=0, le=1, description="tau_n, limit of the mean probability of a negative label"
    )
    negative_spread: float = Field(
        0.005, ge=0, description="kappa_n, limit of the standard deviation of a negative label"
    )
    temperature: float = Field(
        2.0, gt=0, description="T, divides the logits from which negative labels are selected"
    )
    balance: float = Field(
        0.45,
        ge=0,
        le=1,
        description="share of the rounds, at the start, in which each class has at most as many positive labels as the "
        "rarest class",
    )
    least_per_class: int = Field(
        25, ge=0, description="so many positive labels of a class are always kept"
    )
    unlabeled_view: View = Field("strong", description="view of images with pseudo-labels")

    def views(self) -> Views:
        """Ask for a weak view of the labeled batch and for one view of the batch with pseudo-labels."""
        return Views(("weak",), (self.unlabeled_view,), self.unlabeled_ratio)

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of the passes over the unlabeled images."""
        return FORWARD * self.num_passes * (num_examples - num_labeled)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put dropout before the classifier's head.

        Raises:
            InputError: Neither the method nor the model has dropout.
        """
        network = WithDropout(build(), self.dropout)
        if not any(layer.p > 0 for layer in dropout_layers(network)):
            raise InputError(
                "method.dropout",
                "is 0, and the model has no dropout; ups measures uncertainty by dropout",
                "set method.dropout above 0, or take a model with dropout",
            )
        return network

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the classifier; in evaluation mode, it has the output of the whole network."""
        assert isinstance(network, WithDropout)
        return network.classifier

    def slots(self) -> tuple[Slot, ...]:
        """Hold the pseudo-labels of all examples for the round."""
        return (Slot(LABELS, "reset"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start without a pseudo-label: ``classes`` and ``positive`` of shape (n,), ``negative`` of shape (n, C)."""
        assert fresh.shard is not None, "the pseudo-labels of a round live at the client"
        classes = torch.zeros_like(fresh.shard.labels)
        negative = classes.new_zeros(len(classes), fresh.spec.num_classes, dtype=torch.bool)
        positive = torch.zeros_like(classes, dtype=torch.bool)
        return {"classes": classes, "positive": positive, "negative": negative}

    def begin(self, learner: Learner) -> None:
        """Select the pseudo-labels of the round, with the weights as received.

        Reference: section 3.2, equations 3 to 5.
        """
        hidden = (learner.shard.labels < 0).nonzero().squeeze(1)
        if len(hidden) == 0 or self.unlabeled_weight == 0:
            return
        found = []
        with only_dropout(learner.network):
            for _, images in learner.show("plain", hidden, name=LABELS):
                passes = [logits_of(learner.network, images) for _ in range(self.num_passes)]
                found.append(self.select(torch.stack(passes)))
        classes, spread, positive, negative = (
            torch.cat([getattr(part, name) for part in found])
            for name in ("classes", "spread", "is_positive", "negative")
        )
        if learner.progress.is_within(self.balance):
            num_classes = learner.shard.spec.num_classes
            kept = keep_certain(classes, spread, positive, num_classes, self.least_per_class)
            # As in the official code, an image that loses its positive label by balancing may get negative ones.
            positive = kept
        labels = learner.state[LABELS]
        labels["classes"][hidden] = classes
        labels["positive"][hidden] = positive
        labels["negative"][hidden] = negative & ~positive.unsqueeze(1)

    def select(self, logits: Tensor) -> Selection:
        """Return the pseudo-labels that meet the limits.

        Args:
            logits: Logits of the same images in several passes with dropout, shape (passes, B, C).
        """
        probs = logits.softmax(2)
        confidence, classes = probs.mean(0).max(1)
        spread = probs.std(0).gather(1, classes.unsqueeze(1)).squeeze(1)
        is_positive = (confidence >= self.positive_threshold) & (spread < self.positive_spread)
        soft = (logits / self.temperature).softmax(2)
        negative = (soft.mean(0) < self.negative_threshold) & (soft.std(0) < self.negative_spread)
        negative = negative.scatter(1, classes.unsqueeze(1), False)
        return Selection(classes, spread, is_positive, negative)

    def pools(self, learner: Learner) -> Pools:
        """Return the labeled examples, and the examples with a positive or a negative label."""
        labels = learner.state[LABELS]
        chosen = labels["positive"] | labels["negative"].any(1)
        return Pools(learner.shard.labeled, chosen.nonzero().squeeze(1))

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u (CE over positive images + negative learning over the other images).

        Each of the three terms is a mean over its images, and 0 if there are none.

        Reference: equations 6 and 7.
        """
        total = supervised_loss(network, batch.labeled[0], batch.labels)
        labels, ids = state[LABELS], batch.unlabeled_ids
        classes, is_positive = labels["classes"][ids], labels["positive"][ids]
        if len(ids) > 0:
            logits = widen_half_precision(network(batch.unlabeled[0]))
            positive = F.cross_entropy(logits, classes, reduction="none")
            negative = negative_learning(logits, labels["negative"][ids])
            num_positive = is_positive.sum()
            num_negative = labels["negative"][ids].any(1).sum()
            unlabeled = (positive * is_positive).sum() / num_positive.clamp(min=1)
            unlabeled = unlabeled + negative.sum() / num_negative.clamp(min=1)
            total = total + self.unlabeled_weight * unlabeled
        shares = {
            "positive": labels["positive"].float().mean(),
            "negative": labels["negative"].any(1).float().mean(),
        }
        return Loss(total, classes, is_positive.float(), numbers=shares)


def logits_of(network: nn.Module, images: Tensor) -> Tensor:
    """Return logits in single precision outside the graph, shape (B, C)."""
    with torch.no_grad():
        return widen_half_precision(network(images))


def negative_learning(logits: Tensor, negative: Tensor) -> Tensor:
    """Return -sum_c g_c ln(1 - p_c) / sum_c g_c of each row, shape (B,); 0 for a row without a negative class.

    Args:
        logits: Shape (B, C).
        negative: g, the classes that an image is not, bool (B, C).

    Reference: equation 7. Probabilities above 1 - 1e-7 count as 1 - 1e-7, as in the official code.
    """
    losses = -(1 - logits.softmax(1)).clamp(min=1e-7).log()
    return (losses * negative).sum(1) / negative.sum(1).clamp(min=1)


def keep_certain(
    classes: Tensor, spread: Tensor, chosen: Tensor, num_classes: int, least: int
) -> Tensor:
    """Return which chosen images are kept so that no class has many more than the rarest class, bool (B,).

    Of each class, the images of the lowest spread are kept: as many as the rarest class has, but at least `least`.

    Args:
        classes: Class of each image, int64 (B,).
        spread: Standard deviation of the prediction of each image, shape (B,).
        chosen: The images to choose among, bool (B,).
        num_classes: Number of classes.
        least: Number of images that every class may keep.
    """
    counts = torch.bincount(classes[chosen], minlength=num_classes)
    limit = max(least, int(counts.min()))
    kept = torch.zeros_like(chosen)
    for label in range(num_classes):
        own = (chosen & (classes == label)).nonzero().squeeze(1)
        kept[own[spread[own].argsort(stable=True)[:limit]]] = True
    return kept
