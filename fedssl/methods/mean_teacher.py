"""Mean Teacher.

Tarvainen & Valpola, "Mean teachers are better role models: Weight-averaged consistency targets improve
semi-supervised deep learning results", NeurIPS 2017, arXiv:1703.01780.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.base import (
    FORWARD,
    Batch,
    Fresh,
    Learner,
    Loss,
    Progress,
    SemiSupervised,
    Views,
)
from fedssl.methods.functional import (
    call_with,
    ema_update,
    probability_mse,
    sigmoid_ramp,
    snapshot,
    supervised_loss,
    warm_decay,
    widen_half_precision,
)


class MeanTeacher(SemiSupervised):
    """Agree with a teacher, the moving average of the student, on unlabeled images.

    Deviation: the paper weighs consistency by up to 100 over CIFAR-10's whole training set; here each experiment sets
    the weight that suits its federation.
    """

    group: ClassVar[str] = "consistency"
    is_elementwise: ClassVar[bool] = True

    unlabeled_weight: float = Field(
        10.0, ge=0, description="largest weight of the consistency loss"
    )
    unlabeled_ratio: int = Field(3, ge=1, description="mu, unlabeled images for each labeled image")
    ramp_up: float = Field(
        0.2, ge=0, le=1, description="share of the rounds over which the weight grows"
    )
    ema_decay: float = Field(0.99, ge=0, le=1, description="decay of the teacher, per local step")
    temperature: float = Field(
        1.0,
        gt=0,
        description="temperature T that sharpens the teacher's targets; the paper's is 1, which does not sharpen",
    )
    threshold: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least confidence of the teacher at which an image counts; the paper's is 0, all images count",
    )
    student_view: Literal["weak", "strong"] = Field(
        "weak", description="view that the student sees; the paper's is weak, like the teacher's"
    )
    teacher_scope: ChangingScope = Field(
        "reset",
        description="where the teacher lives: it starts each round from the global model (reset), stays with "
        "its client, or is averaged by the server",
    )

    def views(self) -> Views:
        """Ask for a weak view of the labeled batch, and the student's and teacher's views of the unlabeled batch."""
        return Views(("weak",), (self.student_view, "weak"), self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: the teacher's view needs no gradient."""
        return num_labeled + num_unlabeled * (1 + FORWARD)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the teacher in the scope that the experiment says."""
        return (Slot("teacher", self.teacher_scope),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start the teacher at the network's weights."""
        return snapshot(fresh.network)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + w(t) MSE(p_student(view), sg p_teacher(another view)).

        Reference: section 2; w(t) as in appendix B.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        student_view, teacher_view = batch.unlabeled
        with torch.no_grad():
            teacher_logits = widen_half_precision(
                call_with(network, state["teacher"], teacher_view)
            )
            confidence, pseudo_labels = teacher_logits.softmax(1).max(1)
            mask = (confidence >= self.threshold).to(confidence.dtype)
            targets = (teacher_logits / self.temperature).softmax(1)
        consistency = probability_mse(network(student_view), targets, mask)
        weight = self.unlabeled_weight * sigmoid_ramp(progress.fraction, self.ramp_up)
        return Loss(supervised + weight * consistency, pseudo_labels, mask)

    def after_step(self, learner: Learner, batch: Batch, loss: Loss) -> None:
        """Move the teacher towards the student, with the paper's warm-up of the decay."""
        decay = warm_decay(self.ema_decay, learner.progress.global_step)
        ema_update(learner.state["teacher"], learner.network, decay)
