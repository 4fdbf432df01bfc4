"""The local step of every contender in plain PyTorch; fedssl takes the same step by its own code.

The loss is FixMatch's (Sohn et al., NeurIPS 2020, arXiv:2001.07685), with noise as the strong view. `check.py` compares
this step with fedssl's, weight by weight.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THRESHOLD, NOISE = 0.95, 0.1
LR, MOMENTUM, WEIGHT_DECAY = 0.05, 0.9, 5e-4

Normalize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Batch:
    """One step's images, normalized, shape (B, C, H, W); labels are int64 (B,)."""

    labeled: Tensor
    labels: Tensor
    weak: Tensor
    strong: Tensor


@dataclass(frozen=True)
class ClientData:
    """The data of a client, ready for use.

    Args:
        images: Floats in [0, 1], shape (n, C, H, W).
        labels: Classes int64 (n,); -1 marks an image without a label.
        labeled: Rows of the images with a label.
    """

    images: Tensor
    labels: Tensor
    labeled: Tensor

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Work:
    """A client's work in a round: the numbers of labeled and unlabeled images per step, and the number of steps."""

    labeled: int
    unlabeled: int
    steps: int


def normalizer(mean: Iterable[float], std: Iterable[float]) -> Normalize:
    """Return a function that normalizes images and lays them out channels last, like all contenders' networks."""
    shift = torch.tensor(tuple(mean)).view(1, -1, 1, 1)
    scale = torch.tensor(tuple(std)).view(1, -1, 1, 1)
    return lambda images: ((images - shift) / scale).contiguous(memory_format=torch.channels_last)


def batches(
    data: ClientData, work: Work, normalize: Normalize, generator: torch.Generator
) -> Iterator[Batch]:
    """Yield a round's batches: shuffled passes over the labeled images and over all images."""
    labeled = _order(data.labeled, work.labeled * work.steps, generator)
    everything = torch.arange(len(data))
    unlabeled = _order(everything, work.unlabeled * work.steps, generator)
    of_labeled = labeled.chunk(work.steps) if len(labeled) else (labeled,) * work.steps
    for ours, theirs in zip(of_labeled, unlabeled.chunk(work.steps), strict=True):
        images = data.images[theirs]
        noise = torch.empty_like(images).normal_(0, NOISE, generator=generator)
        yield Batch(
            normalize(data.images[ours]),
            data.labels[ours],
            normalize(images),
            normalize(noise.add_(images).clamp_(0, 1)),
        )


def fixmatch_loss(network: nn.Module, batch: Batch) -> Tensor:
    """Return CE(y, p(labeled)) + mean(1[max q >= tau] CE(argmax q, p(strong))), q = p(weak).

    For a client without labels, only the second term counts.
    """
    with torch.no_grad():
        confidence, pseudo_labels = network(batch.weak).softmax(1).max(1)
    mask = (confidence >= THRESHOLD).to(confidence.dtype)
    each = F.cross_entropy(network(batch.strong), pseudo_labels, reduction="none")
    unlabeled = (each * mask).mean()
    if len(batch.labels) == 0:
        return unlabeled
    return F.cross_entropy(network(batch.labeled), batch.labels) + unlabeled


def make_optimizer(parameters: Iterable[nn.Parameter], lr: float = LR) -> torch.optim.Optimizer:
    """Return a new optimizer for a client's round."""
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=WEIGHT_DECAY,
        foreach=True,
    )


def train(network: nn.Module, shown: Iterable[Batch]) -> None:
    """Train a network on a round's batches, in place."""
    optimizer = make_optimizer(network.parameters())
    for batch in shown:
        loss = fixmatch_loss(network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _order(pool: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` items of a pool in whole shuffled passes, or no items if the pool is empty."""
    if len(pool) == 0:
        return pool
    passes = -(-count // len(pool))
    order = [torch.randperm(len(pool), generator=generator) for _ in range(passes)]
    return pool[torch.cat(order)[:count]]
