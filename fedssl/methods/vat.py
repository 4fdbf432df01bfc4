"""Virtual adversarial training.

Miyato, Maeda, Koyama & Ishii, "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", TPAMI 2018, arXiv:1704.03976.
"""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Progress, SemiSupervised, Views
from fedssl.methods.functional import (
    at_least_single,
    call_with,
    entropy,
    kl_divergence,
    supervised_loss,
)


class VAT(SemiSupervised):
    """Keep the prediction where a small push in the worst direction would change it most.

    All passes of a step over the unlabeled images share one dropout mask, as in the authors' TensorFlow code: under
    masks of their own, the search would follow the difference of the masks and not the push. The passes that look for
    the direction leave the statistics of batch normalization alone. Distances are in units of normalized pixels.

    Deviations: xi is 1e-2, not 1e-6, because single precision rounds so small a push away and the direction is noise.
    The default weight and length are those of Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning
    Algorithms", NeurIPS 2018, arXiv:1804.09170; the entropy weight is that of the USB library. Miyato et al. weigh both
    terms by 1 and push by 10 (CIFAR-10), by 8 (CIFAR-10 with augmentation) and by 2.5 or 3.5 (SVHN).
    """

    unlabeled_weight: float = Field(0.3, ge=0, description="weight of the adversarial loss")
    unlabeled_ratio: int = Field(3, ge=1, description="mu, unlabeled images for each labeled one")
    entropy_weight: float = Field(
        0.06, ge=0, description="weight of the predictions' entropy; 1 in the paper's VAT+EntMin"
    )
    epsilon: float = Field(6.0, gt=0, description="length of the adversarial push")
    xi: float = Field(1e-2, gt=0, description="length of the push that finds its direction")
    power_iterations: int = Field(1, ge=1, description="steps towards the worst direction")

    def views(self) -> Views:
        """Ask for one weak view of each batch."""
        return Views(("weak",), ("weak",), self.unlabeled_ratio)

    def can_learn(self, num_labeled: int) -> bool:
        """Learn from unlabeled images alone, unless they weigh nothing."""
        return super().can_learn(num_labeled) or self.entropy_weight > 0

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda KL(sg p(x), p(x + r)) + lambda' H(p(x)), r the virtual adversarial push.

        Reference: equations 5, 6 and 8; the entropy term of section 4.2.
        """
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        images = batch.unlabeled[0]
        repeat = _repeated_passes(network, images.device)
        logits = network(images)
        probs = at_least_single(logits.detach()).softmax(1)
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
            logits_of: From images to logits, under the same dropout mask at every call.
            images: Shape (B, C, H, W).
            probs: Predictions for them, shape (B, num_classes).
            generator: Source of the first direction.

        Reference: Algorithm 1, equations 9 to 12.
        """
        direction = torch.empty_like(images).normal_(generator=generator)
        # What a push of xi changes is below what half precision can tell from nothing.
        halved = torch.is_autocast_enabled(images.device.type)
        with torch.autocast(images.device.type, enabled=False):
            if halved:
                with torch.no_grad():
                    probs = logits_of(images).softmax(1)
            for _ in range(self.power_iterations):
                pushed = (images + self.xi * _unit(direction)).requires_grad_()
                change = kl_divergence(probs, logits_of(pushed)).sum()
                (direction,) = torch.autograd.grad(change, pushed)
        return _unit(direction)


def _repeated_passes(network: nn.Module, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits that draws at each call what the network would draw now.

    It does not write to the network's buffers.
    """
    rewind = rng.rewinder(device)

    def logits_of(images: Tensor) -> Tensor:
        rewind()
        return call_with(network, {}, images)

    return logits_of


def _unit(direction: Tensor) -> Tensor:
    """Scale each row to length 1; a row of zeros stays."""
    largest = direction.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    scaled = direction / largest  # the squares of a gradient as small as xi would vanish
    lengths = scaled.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return scaled / lengths.clamp(min=1e-12)
