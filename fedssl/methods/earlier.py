"""A frozen teacher: the classifier of the last phase, whose weights travel once to each client in a ``phase`` slot.

A method with such a teacher declares the slot ``Slot(TEACHER, "phase")``, makes its content with `teacher_weights`, and
asks the teacher with `teacher_logits`.
"""

import torch
from torch import Tensor

from fedssl.core.errors import InputError
from fedssl.core.slots import Tensors
from fedssl.methods.base import Fresh, Learner
from fedssl.methods.functional import call_with, snapshot, widen_half_precision

TEACHER = "teacher"
"""Name of the slot that holds the teacher's weights."""


def teacher_weights(kind: str, fresh: Fresh) -> Tensors:
    """Return the content of the teacher's slot: all weights and buffers of the last phase's classifier.

    Args:
        kind: Kind of the method that asks.
        fresh: What the slot is made of.

    Raises:
        InputError: It is the first phase.
    """
    if fresh.previous is None:
        raise needs_earlier_phase(kind)
    return snapshot(fresh.previous)


def needs_earlier_phase(kind: str) -> InputError:
    """Return the error that a method which goes on from the last phase is the method of the first phase."""
    return InputError(
        "method.kind",
        f"is {kind!r}, which goes on from the network of an earlier phase, and this is the first phase",
        "put a phase with another method before it, as a [[phases]] table",
    )


@torch.no_grad()
def teacher_logits(learner: Learner, images: Tensor) -> Tensor:
    """Return the teacher's logits in evaluation mode and outside the graph, shape (B, num_classes).

    Args:
        learner: A client's training; its slot `TEACHER` holds the teacher's weights.
        images: Normalized images, shape (B, C, H, W). The teacher is not called for an empty batch, which some networks
            cannot take.
    """
    teacher = learner.previous
    assert teacher is not None, "a phase slot was made, so there is a last phase"
    if len(images) == 0:
        return images.new_zeros(0, learner.shard.spec.num_classes)
    return widen_half_precision(call_with(teacher, learner.state[TEACHER], images))
