"""Functions that methods share; they take tensors and return tensors."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.core.slots import Tensors

Mixing = Literal["example", "batch"]
"""Whether MixUp draws one lambda for each example or one lambda for the batch."""


def supervised_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of labeled images, mean over the batch; 0 for an empty batch.

    Args:
        network: Module that maps images to logits (B, num_classes).
        images: Normalized views, shape (B, C, H, W).
        labels: Classes, int64 (B,), or probabilities (B, num_classes).
    """
    if len(labels) == 0:
        return images.new_zeros(())
    return F.cross_entropy(network(images), labels)


def widen_half_precision(logits: Tensor) -> Tensor:
    """Return logits of half precision in single precision, and other logits as they are.

    In half precision .9479 reaches a threshold of .95, and a divergence can be negative.
    """
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


@torch.no_grad()
def predict(network: nn.Module, images: Tensor) -> Tensor:
    """Return class probabilities of images, shape (B, num_classes), outside the graph and in the current mode."""
    probs: Tensor = widen_half_precision(network(images)).softmax(1)
    return probs


def masked_cross_entropy(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Return sum(mask * CE) / B, the mean over all B examples and not only over the accepted examples.

    Args:
        logits: Shape (B, num_classes).
        targets: Classes, int64 (B,), or probabilities (B, num_classes); no gradient flows into them.
        mask: Weight of each example in [0, 1], shape (B,).

    Reference:
        Sohn et al. (FixMatch), NeurIPS 2020, equation 4.
    """
    per_example = F.cross_entropy(logits, targets.detach(), reduction="none")
    return (per_example * mask).mean()


def mean_where(values: Tensor, mask: Tensor, *, of_all: bool = False) -> Tensor:
    """Return the mean of the values whose mask is 1, a scalar; 0 if there is none.

    Args:
        values: Shape (B,).
        mask: Bool, or 0 and 1, shape (B,).
        of_all: Whether the sum is divided by the number of all values.
    """
    count = max(1, len(values)) if of_all else mask.sum().clamp(min=1)
    return (values * mask).sum() / count


def probability_mse(logits: Tensor, target_probs: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the squared distance of softmax outputs to targets, mean over classes and over all B examples.

    The mean over classes is the convention of Mean Teacher's and MixMatch's code: two different one-hot outputs over
    C classes are 2/C apart. Gradients flow into the targets if the targets carry gradients.

    Args:
        logits: Shape (B, num_classes).
        target_probs: Shape (B, num_classes), rows sum to 1.
        mask: Weight of each example in [0, 1], shape (B,); None: every example counts.

    Reference:
        Tarvainen & Valpola, NeurIPS 2017, section 2 (J).
    """
    per_example = (widen_half_precision(logits).softmax(1) - target_probs).square().mean(1)
    return (per_example if mask is None else per_example * mask).mean()


def kl_divergence(target_probs: Tensor, logits: Tensor) -> Tensor:
    """Return KL(targets || softmax(logits)), shape (B,); no gradient flows into the targets.

    Args:
        target_probs: Shape (B, num_classes), rows sum to 1.
        logits: Shape (B, num_classes).
    """
    targets = target_probs.detach()
    return (
        torch.xlogy(targets, targets) - targets * widen_half_precision(logits).log_softmax(1)
    ).sum(1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy of softmax(logits) in nats, shape (B,)."""
    logits = widen_half_precision(logits)
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def sharpen(probs: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T), normalized: T = 1 changes nothing, T towards 0 is the most probable class.

    Args:
        probs: Shape (B, num_classes), rows sum to 1.
        temperature: T, positive.

    Reference:
        Berthelot et al. (MixMatch), NeurIPS 2019, equation 7.
    """
    return (probs.log() / temperature).softmax(1)


def align_distribution(probs: Tensor, prior: Tensor, marginal: Tensor) -> Tensor:
    """Return q * prior / marginal, normalized: predictions whose mean is `marginal` come to follow `prior`.

    Args:
        probs: Shape (B, num_classes), rows sum to 1.
        prior: Wanted class distribution, shape (num_classes,).
        marginal: Mean of the recent predictions, shape (num_classes,).

    Reference:
        Berthelot et al. (ReMixMatch), ICLR 2020, section 3.1.
    """
    # The bound is far from 0, because a class that was never predicted must not cause a division by 0.
    aligned = probs * (prior / marginal.clamp(min=1e-6))
    return aligned / aligned.sum(1, keepdim=True)


def draw_mixing_shares(count: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Return lambda drawn from Beta(alpha, alpha), shape (count,): the share of the first of two images that are mixed.

    Args:
        count: Number of draws.
        alpha: Parameter of the Beta distribution; 0 mixes nothing, so every share is 1.
        generator: Source of the draws.

    Reference:
        Zhang et al. (MixUp), ICLR 2018, arXiv:1710.09412, section 2.
    """
    device = generator.device
    if alpha == 0 or count == 0:
        return torch.ones(count, device=device)
    uniform = torch.rand(count, generator=generator, device=device)
    from scipy.special import betaincinv  # imported here: most methods mix nothing

    quantiles = betaincinv(alpha, alpha, uniform.cpu().numpy())
    return torch.from_numpy(quantiles).to(uniform)


def mixing_weights(count: int, alpha: float, mixing: Mixing, generator: torch.Generator) -> Tensor:
    """Return lambda' = max(lambda, 1 - lambda) with lambda drawn from Beta(alpha, alpha), shape (count,).

    Args:
        count: Number of examples to mix.
        alpha: Parameter of the Beta distribution; 0 mixes nothing.
        mixing: Whether each example draws its own lambda, or the batch shares one lambda.
        generator: Source of the draws.

    Reference:
        Berthelot et al. (MixMatch), NeurIPS 2019, equations 8 and 9.
    """
    share = draw_mixing_shares(count if mixing == "example" else min(count, 1), alpha, generator)
    return torch.maximum(share, 1 - share).expand(count)


def mix_with_shuffled(
    images: Tensor, targets: Tensor, weights: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return w * row + (1 - w) * other row, where the other rows are one shuffle of all rows.

    Args:
        images: Images to mix, the labeled images first, shape (B, C, H, W).
        targets: Class probabilities, shape (B, num_classes).
        weights: w of each row, at least 1/2, so that a mixed row stays closer to itself, shape (B,).
        generator: Source of the shuffle.

    Reference:
        Berthelot et al. (MixMatch), NeurIPS 2019, Algorithm 1, lines 11 to 15.
    """
    other = torch.randperm(len(images), generator=generator, device=images.device)
    mixed_images = torch.lerp(images[other], images, weights.view(-1, 1, 1, 1))
    return mixed_images, torch.lerp(targets[other], targets, weights.view(-1, 1))


def running_mean(average: Tensors, now: Tensors, steps: Tensor, decay: float) -> Tensors:
    """Return averages moved towards this step's values, with `warm_decay`: at first, they are the plain mean.

    Args:
        average: Averages by name; their initial values do not matter.
        now: This step's values, of the same names.
        steps: Number of steps before this step, a float scalar that may be an average over clients.
        decay: Largest decay of the averages, in [0, 1].
    """
    kept = torch.clamp(1 - 1 / (steps.clamp(min=0) + 1), max=decay)
    return {name: torch.lerp(value, average[name], kept) for name, value in now.items()}


def class_shares(classes: Tensor, num_classes: int) -> Tensor:
    """Return the share of each class in a batch, shape (num_classes,); zeros for an empty batch.

    Args:
        classes: Class of each example, int64 (B,).
        num_classes: The number of classes.
    """
    counts = F.one_hot(classes, num_classes).sum(0, dtype=torch.get_default_dtype())
    return counts / max(1, len(classes))


def mean_by_example(values: Tensor, ids: Tensor, num_examples: int) -> tuple[Tensor, Tensor]:
    """Average rows that belong to the same example, which a small client may show more than once in a step.

    Args:
        values: Shape (B, D).
        ids: Example of each row, int64 (B,).
        num_examples: n; every id is below it.

    Returns:
        Means, shape (n, D), zero for examples not shown, and whether each example was shown, bool (n,).
    """
    counts = values.new_zeros(num_examples).index_add_(0, ids, values.new_ones(len(ids)))
    sums = values.new_zeros(num_examples, values.shape[1]).index_add_(0, ids, values)
    return sums / counts.clamp(min=1).unsqueeze(1), counts > 0


def sigmoid_ramp(fraction: float, length: float) -> float:
    """Return exp(-5 (1 - t)^2) with t = fraction / length up to 1; 1 if length is 0.

    Args:
        fraction: Share of training that is over, in [0, 1].
        length: Share of training that the ramp takes, in [0, 1].

    Reference:
        Laine & Aila, "Temporal Ensembling", ICLR 2017, appendix A.
    """
    if length == 0:
        return 1.0
    return math.exp(-5 * (1 - min(1.0, fraction / length)) ** 2)


def linear_ramp(fraction: float, length: float) -> float:
    """Return fraction / length up to 1; 1 if length is 0. Arguments as in `sigmoid_ramp`."""
    return 1.0 if length == 0 else min(1.0, fraction / length)


def warm_decay(decay: float, updates: int) -> float:
    """Return min(1 - 1/(n + 1), decay): the plain mean of the iterates until decay takes over.

    The initial value has no share in the average. Deviation: the official code counts its steps from 1, so that its
    initial weights count as one iterate.

    Args:
        decay: Decay of the exponential average, in [0, 1].
        updates: n, the number of updates before this update.

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

    So the average normalizes by the batch statistics of the latest weights. (In Mean Teacher's code, the teacher has
    the statistics of its own passes.)

    Args:
        average: Named tensors, as `snapshot` returns them; written in place.
        network: The module that the average follows.
        decay: Decay of the average, in [0, 1].
    """
    parameters = dict(network.named_parameters())
    followed = [average[name] for name in parameters]
    torch._foreach_lerp_(followed, list(parameters.values()), 1 - decay)
    for name, buffer in network.named_buffers():
        if name in average:
            average[name].copy_(buffer)


def call_with(network: nn.Module, tensors: Tensors, images: Tensor) -> Tensor:
    """Return a network's output with other weights in place of its own.

    Neither the network's buffers nor the given tensors are written to, whatever normalizations would track.

    Args:
        network: The module whose code runs, in its current mode.
        tensors: Parameters and buffers by name; for missing names, the network's own are used.
        images: Shape (B, C, H, W).
    """
    buffers = {n: tensors.get(n, buffer).clone() for n, buffer in network.named_buffers()}
    logits: Tensor = torch.func.functional_call(network, tensors | buffers, (images,))
    return logits
