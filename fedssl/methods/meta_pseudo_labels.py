"""Meta Pseudo Labels: a teacher learns from how well a student does that learns from the teacher's labels.

Pham, Dai, Xie, Luong & Le, "Meta Pseudo Labels", CVPR 2021, arXiv:2003.10580.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import FORWARD, Batch, Fresh, Learner, Loss, Progress, SemiSupervised
from fedssl.methods.functional import (
    linear_ramp,
    masked_cross_entropy,
    predict,
    sharpen,
    supervised_loss,
    widen_half_precision,
)
from fedssl.models.base import Classifier, WithFeatures

BASELINE = "baseline"
"""Name of the slot that holds the moving mean of the feedback."""


class StudentAndTeacher(WithFeatures):
    """Two classifiers of one architecture with different initial weights; the student's output is the network's output.

    Args:
        student, teacher: Classifiers that map images to logits (B, num_classes).
    """

    def __init__(self, student: Classifier, teacher: Classifier) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher

    def forward(self, images: Tensor) -> Tensor:
        """Return the student's logits, shape (B, num_classes)."""
        logits: Tensor = self.student(images)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the student's features, shape (B, width)."""
        return self.student.features(images)


@dataclass(frozen=True)
class Lesson:
    """What a teacher's passes over one batch give.

    Args:
        loss: UDA's loss of the teacher.
        labels: Class that the teacher gives each unlabeled image, int64 (mu B,).
        strong_logits: The teacher's logits of the strong views, with a graph, shape (mu B, C).
    """

    loss: Tensor
    labels: Tensor
    strong_logits: Tensor


class MetaPseudoLabels(SemiSupervised):
    """Let a student learn from a teacher's labels alone, and let the teacher learn whether these labels helped.

    A step has three parts. The teacher labels the strong views of the unlabeled images. The student takes a step down the
    cross-entropy of these labels. Then the teacher takes a step down the loss of UDA (on labeled images, and between weak
    and strong views), plus h times the cross-entropy of its own labels. The feedback h is the decrease of the student's
    loss on the labeled batch. So labels that helped the student become more likely, and labels that harmed it less.

    The student is judged, and a later phase goes on from the student. Both networks and their optimizers train at the
    client, and both networks travel, so the traffic is twice the model's. A step costs about as much as two and a half
    passes with gradients over the unlabeled images. Nothing stays at the client but the moving mean of the feedback, if
    ``baseline_decay`` is set.

    A client without labels cannot tell whether a label helped: there h = 0. Its teacher learns from UDA's unlabeled part,
    and its student from the teacher's labels. So the method is meant for labels at the clients. A run in which no client
    holds labels is refused, because its teacher would never see one, unless an earlier phase gives the teacher its weights.
    With few labels at a client, h is noisy.

    In the paper, the student is at last trained on the labels alone, with a small learning rate. That is a phase of its own
    here, with ``kind = "supervised"``.

    Deviations:

    - The official code gives soft labels in the teacher's step. The cross-entropy of a prediction with itself as a soft
      label has the gradient 0, so the feedback has no effect. Labels here are hard: the most probable class, or a draw.
    - The official code has h = new loss - old loss, which is the wrong sign. The paper's derivation gives the learning rate
      times a product of two gradients. To first order that is old loss - new loss, so no further factor is needed.
    - The official code measures the old loss within the student's pass over the unlabeled images, and the new loss in a
      pass of its own. Here both losses come from a pass of their own with the same dropout mask, so that h measures the
      step and nothing else.
    - Passes run one after the other and not as one concatenated batch, as in the other methods here.
    - Waiting and ramp are shares of the rounds. Of its 300,000 or more steps, the official code has 500 and 5,000.
    """

    group: ClassVar[str] = "pseudo-labels"
    needs_labels_at_clients: ClassVar[bool] = True

    unlabeled_weight: float = Field(
        8.0, ge=0, description="lambda_u, weight of the unlabeled part of the teacher's loss"
    )
    threshold: float = Field(
        0.6, ge=0, le=1, description="least confidence at which an image counts in that part"
    )
    temperature: float = Field(0.7, gt=0, description="T of the sharpened targets in that part")
    ramp_up: float = Field(
        0.0, ge=0, le=1, description="share of the rounds over which lambda_u grows linearly"
    )
    wait: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the rounds, at the start, in which the teacher learns alone",
    )
    labels: Literal["hard", "sampled"] = Field(
        "hard",
        description="the teacher's labels: its most probable class, or a class drawn from its prediction",
    )
    label_view: Literal["weak", "strong"] = Field(
        "strong",
        description="view that the teacher labels: the strong view, which the student sees, as in the official code; or "
        "the weak view",
    )
    feedback: bool = Field(
        True,
        description="whether the teacher learns from the student's progress; false is the ablation h = 0",
    )
    baseline_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of a client's moving mean of h, which is subtracted from h; 0.99 in the official code; unset: "
        "nothing is subtracted",
    )

    def can_learn(self, num_labeled: int) -> bool:
        """Say yes: the student learns from the teacher's labels at any client."""
        return True

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step after the waiting: the weak views and the student's losses need no gradient."""
        measured = 2 * num_labeled if self.feedback else 0
        return num_labeled + 2 * num_unlabeled + FORWARD * (num_unlabeled + measured)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put two classifiers side by side."""
        return StudentAndTeacher(build(), build())

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the student."""
        assert isinstance(network, StudentAndTeacher)
        return network.student

    def comes_from(self, key: str) -> str | None:
        """Let the teacher start from the last phase's classifier, as the student does; without it, it would know nothing.

        After another phase with this method, both networks start from that phase's student.
        """
        return key.removeprefix("teacher.")

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        """Give each network an optimizer of its own."""
        assert isinstance(network, StudentAndTeacher)
        return {
            "student": make(network.student.parameters()),
            "teacher": make(network.teacher.parameters()),
        }

    def slots(self) -> tuple[Slot, ...]:
        """Keep the moving mean of the feedback at the client, if there is one."""
        return () if self.baseline_decay is None else (Slot(BASELINE, "client"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start the moving mean at 0."""
        return {"mean": torch.zeros((), device=fresh.device)}

    def is_waiting(self, progress: Progress) -> bool:
        """Say whether the student does not learn yet."""
        return progress.is_within(self.wait)

    def step(self, learner: Learner, batch: Batch) -> Loss:
        """Take a step of the student, and then a step of the teacher with the student's feedback.

        Returns:
            The sum of both losses. The number ``feedback`` is h before the moving mean is subtracted.

        Reference: Algorithm 1 and appendix A.
        """
        network, labels = learner.network, batch.labels
        assert isinstance(network, StudentAndTeacher)
        lesson = self.teach(network.teacher, batch, learner.progress)
        if self.is_waiting(learner.progress):
            learner.descend(lesson.loss, "teacher")
            nobody = torch.zeros_like(lesson.labels, dtype=torch.float32)
            return Loss(lesson.loss, lesson.labels, nobody)
        # The student's loss on labels before and after its step; both passes draw the same dropout masks.
        measures = self.feedback and len(labels) > 0
        rewind = rng.make_rewinder(labels.device)
        old = measured_loss(network.student, batch) if measures else None
        student_loss = F.cross_entropy(network.student(batch.unlabeled[1]), lesson.labels)
        learner.descend(student_loss, "student")
        total, numbers = lesson.loss, {}
        if old is not None:
            rewind()
            gained = old - measured_loss(network.student, batch)
            numbers["feedback"] = gained
            gained = self._above_baseline(gained, learner)
            total = total + feedback_loss(lesson.strong_logits, lesson.labels, gained)
        learner.descend(total, "teacher")
        everybody = torch.ones_like(lesson.labels, dtype=torch.float32)
        return Loss(total + student_loss, lesson.labels, everybody, numbers=numbers)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return the losses of both networks without the feedback, which only a step can measure."""
        assert isinstance(network, StudentAndTeacher)
        lesson = self.teach(network.teacher, batch, progress)
        student_loss = F.cross_entropy(network.student(batch.unlabeled[1]), lesson.labels)
        everybody = torch.ones_like(lesson.labels, dtype=torch.float32)
        return Loss(lesson.loss + student_loss, lesson.labels, everybody)

    def teach(self, teacher: nn.Module, batch: Batch, progress: Progress) -> Lesson:
        """Return CE(y, p(weak)) + lambda_u(t) mean(1[max q >= tau] CE(sharpen(q, T), p(strong))), and the labels.

        Here q = p(weak) is the teacher's prediction, outside the graph. As in the official code, the sharpened prediction
        must reach the threshold.

        Args:
            teacher: Maps images to logits.
            batch: A labeled view; a weak and a strong unlabeled view.
            progress: How far training has come.
        """
        supervised = supervised_loss(teacher, batch.labeled[0], batch.labels)
        weak, strong = batch.unlabeled
        probs = predict(teacher, weak)
        targets = sharpen(probs, self.temperature)
        confidence = targets.max(1).values
        mask = (confidence >= self.threshold).to(confidence.dtype)
        logits = teacher(strong)
        consistency = masked_cross_entropy(logits, targets, mask)
        weight = self.unlabeled_weight * linear_ramp(progress.fraction, self.ramp_up)
        if self.label_view == "strong":
            probs = widen_half_precision(logits.detach()).softmax(1)
        return Lesson(
            supervised + weight * consistency, self._labels_of(probs, batch.generator), logits
        )

    def _labels_of(self, probs: Tensor, generator: torch.Generator) -> Tensor:
        """Return the classes, int64 (mu B,), that predictions (mu B, C) give."""
        if self.labels == "hard":
            return probs.argmax(1)
        return torch.multinomial(probs, 1, generator=generator).squeeze(1)

    def _above_baseline(self, feedback: Tensor, learner: Learner) -> Tensor:
        """Move the client's moving mean towards the feedback, and return the feedback minus that mean."""
        if self.baseline_decay is None:
            return feedback
        kept = learner.state[BASELINE]
        kept["mean"] = torch.lerp(
            feedback.to(kept["mean"].dtype), kept["mean"], self.baseline_decay
        )
        return feedback - kept["mean"]


@torch.no_grad()
def measured_loss(student: nn.Module, batch: Batch) -> Tensor:
    """Return the student's mean cross-entropy of the labeled batch, outside the graph and in the current mode."""
    logits = widen_half_precision(student(batch.labeled[0]))
    return F.cross_entropy(logits, batch.labels)


def feedback_loss(logits: Tensor, labels: Tensor, feedback: Tensor) -> Tensor:
    """Return h CE(label, logits), mean over the batch; its gradient in a row of logits is h (p - one-hot) / B.

    Args:
        logits: The teacher's logits, shape (B, C).
        labels: The classes that the teacher gave, int64 (B,). Soft labels would make the gradient 0.
        feedback: h, a scalar without gradient: positive if the student learned from the labels.

    Reference: appendix A.
    """
    return feedback.detach() * F.cross_entropy(logits, labels)
