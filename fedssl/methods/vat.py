"""Virtual adversarial training.

Miyato, Maeda, Koyama & Ishii, "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", TPAMI 2018, arXiv:1704.03976.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Progress, SemiSupervised, Views
from fedssl.methods.functional import (
    call_with,
    entropy,
    kl_divergence,
    supervised_loss,
    widen_half_precision,
)


class VAT(SemiSupervised):
    """Keep predictions unchanged under a small push of the image in the direction that would change them most.

    All passes of a step over the unlabeled images share one dropout mask, as in the authors' TensorFlow code. With a
    mask for each pass, the search would follow the difference of the masks and not the push. The passes that look for
    the direction do not change the statistics of batch normalization. Distances are in units of normalized pixels.

    Deviations: xi is 1e-2, not 1e-6, because single precision rounds so small a push away and the direction is noise.
    The default weight and length are those of Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning
    Algorithms", NeurIPS 2018, arXiv:1804.09170; the entropy weight is that of the USB library. Miyato et al. weigh both
    terms by 1 and push by 10 (CIFAR-10), by 8 (CIFAR-10 with augmentation) and by 2.5 or 3.5 (SVHN).
    """

    group: ClassVar[str] = "consistency"

    unlabeled_weight: float = Field(0.3, ge=0, description="weight of the adversarial loss")
    unlabeled_ratio: int = Field(3, ge=1, description="mu, unlabeled images for each labeled image")
    entropy_weight: float = Field(
        0.06, ge=0, description="weight of the predictions' entropy; 1 in the paper's VAT+EntMin"
    )
    epsilon: float = Field(6.0, gt=0, description="length of the adversarial push")
    xi: float = Field(1e-2, gt=0, description="length of the push that finds its direction")
    power_iterations: int = Field(1, ge=1, description="steps towards the worst direction")

    def views(self) -> Views:
        """Ask for one weak view of each batch."""
        return Views(("weak",), ("weak",), self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: beside the views, the pushed images and every step towards the worst direction."""
        further = 1 + self.power_iterations
        return super().images_per_step(num_labeled, num_unlabeled) + further * num_unlabeled

    def can_learn(self, num_labeled: int) -> bool:
        """Say yes to a client without labels too, unless both unlabeled terms have no weight."""
        return super().can_learn(num_labeled) or self.entropy_weight > 0

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda KL(sg p(x), p(x + r)) + lambda' H(p(x)), r the virtual adversarial push.

        Reference: equations 5, 6 and 8; the entropy term of section 4.2.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        images = batch.unlabeled[0]
        repeat = _make_repeatable(network, images.device)
        logits = network(images)
        probs = widen_half_precision(logits.detach()).softmax(1)
        push = self.epsilon * self.worst_direction(repeat, images, probs, batch.generator)
        pushed = repeat(images + push)
        total = (
            supervised
            + self.unlabeled_weight * kl_divergence(probs, pushed).mean()
            + self.entropy_weight * entropy(logits).mean()
        )
        return Loss(total, probs.argmax(1), probs.new_ones(len(probs)))

    def worst_direction(
        self,
        logits_of: Callable[[Tensor], Tensor],
        images: Tensor,
        probs: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """Return the unit direction in which the prediction changes fastest, shape (B, C, H, W).

        Args:
            logits_of: Function from images to logits, with the same dropout mask at every call.
            images: Shape (B, C, H, W).
            probs: Predictions for the images, shape (B, num_classes).
            generator: Source of the first direction.

        Reference: Algorithm 1, equations 9 to 12.
        """
        direction = torch.empty_like(images).normal_(generator=generator)
        # Half precision cannot tell the change by a push of xi from 0.
        halved = torch.is_autocast_enabled(images.device.type)
        with torch.autocast(images.device.type, enabled=False):
            if halved:
                with torch.no_grad():
                    probs = logits_of(images).softmax(1)
            for _ in range(self.power_iterations):
                pushed = (images + self.xi * _scale_to_length_1(direction)).requires_grad_()
                change = kl_divergence(probs, logits_of(pushed)).sum()
                (direction,) = torch.autograd.grad(change, pushed)
        return _scale_to_length_1(direction)


def _make_repeatable(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits whose every call draws what the network would draw now.

    The function does not write to the network's buffers.
    """
    rewind = rng.make_rewinder(device)

    def logits_of(images: Tensor) -> Tensor:
        rewind()
        return call_with(network, {}, images)

    return logits_of


def _scale_to_length_1(direction: Tensor) -> Tensor:
    """Scale each row to length 1; a row of zeros stays as it is."""
    largest = direction.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    scaled = (
        direction / largest
    )  # without this, the squares of a gradient as small as xi would vanish
    lengths = scaled.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return scaled / lengths.clamp(min=1e-12)
