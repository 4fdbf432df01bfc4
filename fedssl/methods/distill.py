"""Distillation: a student learns the predictions of a frozen teacher, the network of the last phase.

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531; on unlabeled images as
the third step of SimCLR v2: Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020,
arXiv:2006.10029.
"""

import copy
from collections.abc import Callable
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import (
    FORWARD,
    Batch,
    Fresh,
    Learner,
    Loss,
    Method,
    Previous,
    Progress,
    View,
    Views,
)
from fedssl.methods.earlier import TEACHER, needs_earlier_phase, teacher_logits, teacher_weights
from fedssl.methods.functional import supervised_loss, widen_half_precision
from fedssl.models.base import Classifier

ANSWERS = "answers"
"""Name of the slot that holds the teacher's logits for the unlabeled batch of a step."""


class Distill(Method):
    """Learn the teacher's predictions on unlabeled images, and the labels too if the weight leaves them a share.

    The teacher is the classifier of the last phase with its final global weights. It is frozen, is asked in evaluation
    mode, and sees the view that the student sees. The student may be another model: ``[model]`` in the phase.

    In a federation, the student travels: one model's traffic. The teacher travels once to each client and stays there
    for the phase. A step takes one pass with gradients for each image, and one pass of the teacher without.
    """

    group: ClassVar[str] = "transfer"

    temperature: float = Field(
        1.0, gt=0, description="tau, by which the logits of teacher and student are divided"
    )
    distill_weight: float = Field(
        1.0,
        gt=0,
        le=1,
        description="alpha, weight of the teacher's predictions; the labels have the weight 1 - alpha",
    )
    start: Literal["scratch", "teacher"] = Field(
        "scratch",
        description="the weights that the student starts from; scratch: initial weights of [model]; teacher: a copy of the "
        "teacher, whatever [model] is",
    )
    view: View = Field("weak", description="view of an image, for the teacher and for the student")
    unlabeled_ratio: int = Field(7, ge=1, description="mu, unlabeled images for each labeled one")

    def views(self) -> Views:
        """Ask for one view of the unlabeled batch, and of the labeled batch if the labels have any weight."""
        labeled = (self.view,) if self.distill_weight < 1 else ()
        return Views(labeled, (self.view,), self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Count the student's passes, and the teacher's as passes without gradients of a network of the same size."""
        labeled = num_labeled if self.distill_weight < 1 else 0
        return labeled + num_unlabeled * (1 + FORWARD)

    @property
    def builds_on_previous(self) -> bool:
        """Whether the student is a copy of the teacher."""
        return self.start == "teacher"

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Return the student; raise `InputError` if it should be a copy of the teacher in the first phase."""
        if self.start == "teacher":
            raise needs_earlier_phase(self.kind)
        return build()

    def network_after(self, build: Callable[[], Classifier], previous: Previous) -> nn.Module:
        """Return a copy of the teacher."""
        return copy.deepcopy(previous.classifier)

    def comes_from(self, key: str) -> str | None:
        """Take over every weight of the teacher, or none."""
        return key if self.start == "teacher" else None

    def slots(self) -> tuple[Slot, ...]:
        """Keep the teacher for the phase, and its answers for a step."""
        return (Slot(TEACHER, "phase"), Slot(ANSWERS, "reset"))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Freeze the last phase's classifier; start without answers."""
        return teacher_weights(self.kind, fresh) if name == TEACHER else {}

    def step(self, learner: Learner, batch: Batch) -> Loss:
        """Ask the teacher, then take a plain step."""
        learner.state[ANSWERS]["logits"] = teacher_logits(learner, batch.unlabeled[0])
        return super().step(learner, batch)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return alpha tau^2 CE(p_t(tau), z_s / tau) + (1 - alpha) CE(y, z_s).

        Reference: SimCLR v2, equations 2 and 3; the factor tau^2 is Hinton et al.'s, section 2, and the official code's.
        """
        (images,), answers = batch.unlabeled, state[ANSWERS]["logits"]
        total = self.distill_weight * distillation_loss(answers, network(images), self.temperature)
        if self.distill_weight < 1:
            labeled = supervised_loss(network, batch.labeled[0], batch.labels)
            total = total + (1 - self.distill_weight) * labeled
        return Loss(total)


def distillation_loss(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Return tau^2 times the cross-entropy of the student's probabilities to the teacher's, mean over the batch.

    Both are softmaxes of logits divided by tau. The factor keeps the gradient's size, which falls with tau^2 otherwise.
    No gradient flows into the teacher's logits.

    Args:
        teacher, student: Logits, shape (B, num_classes).
        temperature: tau, positive.

    Reference: Hinton et al. 2015, section 2.
    """
    goal = widen_half_precision(teacher.detach()) / temperature
    logits = widen_half_precision(student) / temperature
    # In this form the gradient is p_s - p_t, both rounded alike, so it is exactly 0 where the student agrees.
    targets = (goal - goal.logsumexp(1, keepdim=True)).exp()
    return temperature**2 * (logits.logsumexp(1) - (targets * logits).sum(1)).mean()
