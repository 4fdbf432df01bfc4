"""Pieces that methods share: tensors in, tensors out."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.methods.base import Tensors


def supervised_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of labeled images, mean over the batch; 0 for an empty one.

    Args:
        network: From images to logits (B, num_classes).
        images: Normalized views, shape (B, C, H, W).
        labels: Classes, int64 (B,).
    """
    if len(labels) == 0:
        return images.new_zeros(())
    return F.cross_entropy(network(images), labels)


def masked_cross_entropy(logits: Tensor, pseudo_labels: Tensor, mask: Tensor) -> Tensor:
    """Return sum(mask * CE) / B: the mean over all B examples given, not over those that pass.

    Args:
        logits: Shape (B, num_classes).
        pseudo_labels: Classes, int64 (B,); carry no gradient.
        mask: Weight of each example in [0, 1], shape (B,).

    Reference:
        Sohn et al. (FixMatch), NeurIPS 2020, equation 4.
    """
    per_example = F.cross_entropy(logits, pseudo_labels, reduction="none")
    return (per_example * mask).mean()


def masked_probability_mse(student_logits: Tensor, teacher_logits: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of softmax outputs, mean over classes and over all B examples.

    The mean over classes is the convention of Mean Teacher's code: two different one-hot outputs over C classes
    are 2/C apart. No gradient flows into the teacher.

    Args:
        student_logits, teacher_logits: Shape (B, num_classes).
        mask: Weight of each example in [0, 1], shape (B,).

    Reference:
        Tarvainen & Valpola, NeurIPS 2017, section 2 (J).
    """
    targets = teacher_logits.detach().softmax(1)
    per_example = F.mse_loss(student_logits.softmax(1), targets, reduction="none").mean(1)
    return (per_example * mask).mean()


def sigmoid_ramp(fraction: float, length: float) -> float:
    """Return exp(-5 (1 - t)^2) with t = fraction / length up to 1; 1 where length is 0.

    Args:
        fraction: Share of training that is over, in [0, 1].
        length: Share of training that the ramp takes, in [0, 1].

    Reference:
        Laine & Aila, "Temporal Ensembling", ICLR 2017, section 2.1.
    """
    if length == 0:
        return 1.0
    return math.exp(-5 * (1 - min(1.0, fraction / length)) ** 2)


def warm_decay(decay: float, updates: int) -> float:
    """Return min(1 - 1/(n + 1), decay): the plain mean of the iterates until decay takes over.

    Args:
        decay: Decay of the exponential average, in [0, 1].
        updates: n, updates before this one.

    Reference:
        Tarvainen & Valpola, NeurIPS 2017, official code.
    """
    return min(1 - 1 / (updates + 1), decay)


def snapshot(network: nn.Module) -> Tensors:
    """Return a detached copy of a network's parameters and buffers by name."""
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@torch.no_grad()
def ema_update(average: Tensors, network: nn.Module, decay: float) -> None:
    """Move an average towards a network in place: a <- decay a + (1 - decay) w; buffers are copied.

    Args:
        average: Named tensors, as `snapshot` makes them.
        network: The module that is followed.
        decay: In [0, 1].
    """
    parameters = dict(network.named_parameters())
    followed = [average[name] for name in parameters]
    torch._foreach_lerp_(followed, list(parameters.values()), 1 - decay)
    for name, buffer in network.named_buffers():
        if name in average:
            average[name].copy_(buffer)


def call_with(network: nn.Module, tensors: Tensors, images: Tensor) -> Tensor:
    """Return a network's output with other weights in place of its own, which stay as they are.

    Args:
        network: The module whose code runs, in its current mode.
        tensors: Parameters and buffers by name.
        images: Shape (B, C, H, W).
    """
    logits: Tensor = torch.func.functional_call(network, tensors, (images,))
    return logits
