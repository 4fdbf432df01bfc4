"""Noisy Student: the last phase's network labels all images once, and a new network learns from them under noise.

Xie, Luong, Hovy & Le, "Self-Training with Noisy Student Improves ImageNet Classification", CVPR 2020, arXiv:1911.04252.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

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
from fedssl.methods.earlier import TEACHER, teacher_logits, teacher_weights
from fedssl.methods.functional import sharpen

LABELS = "labels"
"""Slot of the labels that the teacher gave; a client keeps them for the phase."""


class NoisyStudent(SemiSupervised):
    """Let the last phase's network label every image once, and train a student from scratch on strong views.

    The teacher is the network with which the last phase ended. It travels once to each client. When a client takes part in
    the phase for the first time, the teacher labels the client's unlabeled images without augmentation, dropout and
    gradient, and the client keeps the labels for the whole phase. Confident labels stay; the client can balance their
    classes. The student learns given labels and teacher's labels, under strong views and its model's dropout.

    The student may have another ``[model]`` than the teacher, in the phase's table: the paper's students are equal or
    larger. For more rounds of teaching, write one phase after another, each with this method. The first phase needs another
    method, such as ``supervised``.

    A step costs as much as one of supervised training on the same number of images. One pass of the teacher over the
    unlabeled images comes before the steps of a client's first round. With ``train.local_epochs``, a round is as long as
    its pools, which ``threshold`` shortens and ``per_class`` can lengthen; virtual time counts all images once.

    Deviations:

    - Passes over given and teacher's labels run one after the other and not as one batch, as in the other methods here.
    - The classes are balanced over the images of one client, and by default they are not balanced at all: the classes of
      a skewed client would be repeated many times.
    - The student has no stochastic depth, which the models here do not have.
    - A student of the teacher's architecture begins with the weights with which the first phase began, because initial
      weights depend on the seed and the model alone.
    """

    group: ClassVar[str] = "pseudo-labels"

    unlabeled_weight: float = Field(
        1.0, ge=0, description="lambda_u, weight of the loss on the teacher's labels"
    )
    unlabeled_ratio: int = Field(5, ge=1, description="mu, unlabeled images for each labeled image")
    threshold: float = Field(
        0.3, ge=0, le=1, description="a label is kept if its confidence is above this"
    )
    per_class: int | None = Field(
        None,
        ge=1,
        description="class balance: each class of a client has so many images, the most confident ones, repeated if there "
        "are fewer; unset: no balance",
    )
    targets: Literal["soft", "hard"] = Field(
        "soft", description="the teacher's labels: probabilities, or the most probable class"
    )
    temperature: float = Field(
        1.0, gt=0, description="T of soft labels: p^(1/T), normalized; 1 changes nothing"
    )
    label_smoothing: float = Field(
        0.1, ge=0, lt=1, description="label smoothing of given labels and of hard labels"
    )
    start: Literal["scratch", "teacher"] = Field(
        "scratch", description="whether the student begins anew, or with the teacher's weights"
    )
    labeled_view: View = Field("strong", description="view of labeled images")
    unlabeled_view: View = Field("strong", description="view of images with a teacher's label")

    def views(self) -> Views:
        """Ask for one view of each batch."""
        return Views((self.labeled_view,), (self.unlabeled_view,), self.unlabeled_ratio)

    def images_before_first_round(self, num_labeled: int, num_examples: int) -> float:
        """Count the teacher's pass over the unlabeled images."""
        return FORWARD * (num_examples - num_labeled)

    def comes_from(self, key: str) -> str | None:
        """Let every weight begin anew, unless the student starts from its teacher."""
        return key if self.start == "teacher" else None

    def slots(self) -> tuple[Slot, ...]:
        """Send the teacher once, and keep its labels at the client."""
        return (Slot(TEACHER, "phase"), Slot(LABELS, "client"))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return the teacher's weights, or the labels before the client is first seen.

        The labels are ``probs`` of shape (n, C); ``copies``, how often an image is in the pool, int64 (n,); and ``made``,
        whether the teacher has labeled the images, int64 ().

        Raises:
            InputError: It is the first phase, so there is no teacher.
        """
        if name == TEACHER:
            return teacher_weights(self.kind, fresh)
        assert fresh.shard is not None, "labels are kept at the client"
        copies = torch.zeros_like(fresh.shard.labels)
        num_classes = fresh.spec.num_classes
        probs = torch.full((len(copies), num_classes), 1 / num_classes, device=copies.device)
        return {"probs": probs, "copies": copies, "made": copies.new_zeros(())}

    def begin(self, learner: Learner) -> None:
        """Let the teacher label the client's unlabeled images, when the client is first seen in the phase."""
        labels = learner.state[LABELS]
        if labels["made"]:
            return
        hidden = (learner.shard.labels < 0).nonzero().squeeze(1)
        for ids, images in learner.show("plain", hidden, name=LABELS):
            labels["probs"][ids] = teacher_logits(learner, images).softmax(1)
        confidence, classes = labels["probs"][hidden].max(1)
        copies = (confidence > self.threshold).long()
        if self.per_class is not None:
            copies = balanced_copies(
                classes, confidence, copies.bool(), self.per_class, learner.stream("copies")
            )
        labels["copies"][hidden] = copies
        labels["made"] = torch.ones_like(labels["made"])

    def pools(self, learner: Learner) -> Pools:
        """Return the labeled examples, and each example with a teacher's label as often as it has copies."""
        copies = learner.state[LABELS]["copies"]
        ids = torch.arange(len(copies), device=copies.device).repeat_interleave(copies)
        return Pools(learner.shard.labeled, ids)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(strong)) + lambda_u CE(q, p(strong)), q = the teacher's label; each a mean over its batch."""
        total = batch.labeled[0].new_zeros(())
        if len(batch.labels) > 0:
            logits = network(batch.labeled[0])
            total = F.cross_entropy(logits, batch.labels, label_smoothing=self.label_smoothing)
        probs = state[LABELS]["probs"][batch.unlabeled_ids]
        classes = probs.argmax(1)
        if len(classes) > 0:
            logits = network(batch.unlabeled[0])
            if self.targets == "hard":
                taught = F.cross_entropy(logits, classes, label_smoothing=self.label_smoothing)
            else:
                taught = F.cross_entropy(logits, sharpen(probs, self.temperature))
            total = total + self.unlabeled_weight * taught
        return Loss(total, classes, torch.ones_like(classes, dtype=torch.float32))


def balanced_copies(
    classes: Tensor,
    confidence: Tensor,
    kept: Tensor,
    per_class: int,
    generator: torch.Generator,
) -> Tensor:
    """Return how often each image is repeated so that every class has about the same number of images, int64 (B,).

    A class with more images than `per_class` keeps the most confident ones, once each. A class with fewer repeats every
    image n / count times: the whole part of it for certain, and one more with the probability of the rest. A class without
    images has none.

    Args:
        classes: Class of each image, int64 (B,).
        confidence: Confidence of each image, shape (B,).
        kept: The images to choose among, bool (B,).
        per_class: n, wanted number of images of each class.
        generator: Source of the draws.

    Reference: section 3.1, and the official code.
    """
    draws = torch.rand(len(classes), generator=generator, device=classes.device)
    copies = torch.zeros_like(classes)
    for label in sorted(set(classes[kept].tolist())):
        own = (kept & (classes == label)).nonzero().squeeze(1)
        if len(own) >= per_class:
            copies[own[confidence[own].argsort(descending=True, stable=True)[:per_class]]] = 1
        else:
            whole, rest = divmod(per_class, len(own))
            copies[own] = whole + (draws[own] < rest / len(own)).long()
    return copies
