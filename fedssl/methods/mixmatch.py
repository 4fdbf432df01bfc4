"""MixMatch.

Berthelot et al., "MixMatch: A Holistic Approach to Semi-Supervised Learning", NeurIPS 2019, arXiv:1905.02249.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from fedssl.core.slots import State
from fedssl.methods.base import FORWARD, Batch, Loss, Progress, View, Views
from fedssl.methods.functional import (
    Mixing,
    linear_ramp,
    mix_with_shuffled,
    mixing_weights,
    probability_mse,
    sharpen,
    supervised_loss,
)
from fedssl.methods.labeling import PseudoLabeling


class MixMatch(PseudoLabeling):
    """Guess labels from the mean of several weak views, sharpen them, and mix labeled and unlabeled images.

    Deviation: mixed labeled and mixed unlabeled images run through the network one after the other; the official code
    interleaves the images for the sake of batch normalization.
    """

    group: ClassVar[str] = "mixing"

    unlabeled_weight: float = Field(75.0, ge=0, description="largest weight of the unlabeled loss")
    unlabeled_ratio: int = Field(1, ge=1, description="mu, unlabeled images for each labeled image")
    num_views: int = Field(2, ge=1, le=16, description="K, weak views whose mean is the guess")
    temperature: float = Field(0.5, gt=0, description="T of the sharpened guesses")
    alpha: float = Field(
        0.75, ge=0, description="parameter of MixUp's Beta(alpha, alpha); 0 mixes nothing"
    )
    mixing: Mixing = Field(
        "example",
        description="whether each example has its own lambda, as in the official code, or the batch shares one",
    )
    ramp_up: float = Field(
        1 / 64, ge=0, le=1, description="share of the rounds over which the weight grows linearly"
    )

    def views(self) -> Views:
        """Ask for a weak view of the labeled batch and K weak views of the unlabeled batch."""
        weak: View = "weak"
        return Views((weak,), (weak,) * self.num_views, self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: it guesses on all views of the unlabeled batch, and trains on all mixed views."""
        return num_labeled + num_unlabeled * self.num_views * (1 + FORWARD)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(X') + lambda_u(t) MSE(U'), X' and U' each mixed with labeled and unlabeled examples.

        Reference: Algorithm 1, equations 3 to 5.
        """
        guesses = torch.stack([self.guess(network, view, state) for view in batch.unlabeled]).mean(
            0
        )
        targets = sharpen(guesses, self.temperature)
        labels = F.one_hot(batch.labels, targets.shape[1]).to(targets.dtype)
        images = torch.cat([*batch.labeled, *batch.unlabeled])
        classes = torch.cat([labels, *[targets] * self.num_views])
        weights = mixing_weights(len(images), self.alpha, self.mixing, batch.generator)
        images, classes = mix_with_shuffled(images, classes, weights, batch.generator)
        num_labeled = len(labels)
        supervised = supervised_loss(network, images[:num_labeled], classes[:num_labeled])
        unlabeled = probability_mse(network(images[num_labeled:]), classes[num_labeled:])
        weight = self.unlabeled_weight * linear_ramp(progress.fraction, self.ramp_up)
        total = supervised + weight * unlabeled
        return Loss(total, guesses.argmax(1), guesses.new_ones(len(guesses)))
