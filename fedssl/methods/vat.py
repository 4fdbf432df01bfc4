"""Virtual adversarial training.

Miyato, Maeda, Koyama & Ishii, "Virtual Adversarial Training: A Regularization Method for Supervised and
Semi-Supervised Learning", TPAMI 2018, arXiv:1704.03976.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.methods.base import Batch, Loss, Progress, SemiSupervised, Views
from fedssl.methods.functional import (
    at_least_single,
    call_with,
    entropy,
    kl_divergence,
    supervised_loss,
)
from fedssl.slots import State


class VAT(SemiSupervised):
    """Keep the prediction where a small push in the worst direction would change it most.

    The passes that look for that direction leave the statistics of batch normalization alone. Distances are in units
    of normalized pixels. Deviation: xi is 1e-2, not 1e-6; in single precision so small a push is rounded away
    and the direction is noise.
    """

    unlabeled_weight: float = Field(0.3, ge=0, description="weight of the adversarial loss")
    unlabeled_ratio: int = Field(3, ge=1, description="mu, unlabeled images for each labeled one")
    entropy_weight: float = Field(
        0.06, ge=0, description="weight of the predictions' entropy (the paper's VAT+EntMin)"
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
        logits = network(images)
        probs = at_least_single(logits.detach()).softmax(1)
        push = self.epsilon * self.worst_direction(network, images, probs, batch.generator)
        pushed = call_with(network, {}, images + push)
        total = (
            supervised
            + self.unlabeled_weight * kl_divergence(probs, pushed).mean()
            + self.entropy_weight * entropy(logits).mean()
        )
        return Loss(total, probs.argmax(1), probs.new_ones(len(probs)))

    def worst_direction(
        self, network: nn.Module, images: Tensor, probs: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the unit direction in which the prediction changes fastest, shape (B, C, H, W).

        Args:
            network: From images to logits.
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
                    probs = call_with(network, {}, images).softmax(1)
            for _ in range(self.power_iterations):
                pushed = (images + self.xi * _unit(direction)).requires_grad_()
                change = kl_divergence(probs, call_with(network, {}, pushed)).sum()
                (direction,) = torch.autograd.grad(change, pushed)
        return _unit(direction)


def _unit(direction: Tensor) -> Tensor:
    """Scale each row to length 1; a row of zeros stays."""
    largest = direction.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    scaled = direction / largest  # the squares of a gradient as small as xi would vanish
    lengths = scaled.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return scaled / lengths.clamp(min=1e-12)
