"""ReMixMatch.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Alignment and Augmentation Anchoring",
ICLR 2020, arXiv:1911.09785. Its strong views are those of CTAugment: ``augment.strong = "ctaugment"``.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import FORWARD, Batch, Fresh, Learner, Loss, Progress, View, Views
from fedssl.methods.functional import (
    Mixing,
    align_distribution,
    class_shares,
    linear_ramp,
    mix_with_shuffled,
    mixing_weights,
    sharpen,
    supervised_loss,
)
from fedssl.methods.heads import TwoHeads, quarter_turns
from fedssl.methods.labeling import PseudoLabeling
from fedssl.models.base import Classifier


class ReMixMatch(PseudoLabeling):
    """Anchor several strong views to one weak view's aligned and sharpened guess, mix images, and predict rotations.

    Deviations: mixed labeled and mixed unlabeled images run through the network one after the other, as in our
    MixMatch. The wanted class distribution starts from even classes and moves to the distribution of the labels, as in
    the official code. The official running mean has a decay of 0.999; ours has 0.99, because a federation takes a few
    thousand steps. The labels' distribution is a ratio of sums, so that every label of the cohort counts the same,
    whichever client holds it. It moves at the end of a client's round. Both distributions are the cohort's by default,
    because a skewed client's own guesses would be wrong if they were aligned to even classes.
    """

    group: ClassVar[str] = "mixing"

    unlabeled_weight: float = Field(
        1.5, ge=0, description="lambda_U, weight of the mixed unlabeled loss"
    )
    unlabeled_ratio: int = Field(1, ge=1, description="mu, unlabeled images for each labeled image")
    unmixed_weight: float = Field(
        0.5, ge=0, description="lambda_U1, weight of the loss of the first strong view before MixUp"
    )
    rotation_weight: float = Field(0.5, ge=0, description="lambda_r, weight of the rotation loss")
    num_strong: int = Field(8, ge=1, le=32, description="K, strong views of each unlabeled image")
    temperature: float = Field(0.5, gt=0, description="T of the sharpened guesses")
    alpha: float = Field(
        0.75, ge=0, description="parameter of MixUp's Beta(alpha, alpha); 0 mixes nothing"
    )
    mixing: Mixing = Field(
        "example",
        description="whether each example has its own lambda, as in the official code, or the batch shares one",
    )
    ramp_up: float = Field(
        1 / 64,
        ge=0,
        le=1,
        description="share of the rounds over which lambda_U and lambda_U1 grow linearly, as in the "
        "official code",
    )
    labeled_view: View = Field(
        "strong",
        description="view of the labeled batch; the paper's is strong, the official code's is weak",
    )
    alignment_window: int = Field(
        128,
        ge=1,
        description="number of last batches whose mean prediction is aligned to the labels' distribution",
    )
    label_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="decay, per step, of the even classes from which the wanted class distribution starts",
    )
    alignment_scope: ChangingScope = Field(
        "server",
        description="where the running distributions live: they start anew each round (reset), stay with the "
        "client, or are averaged by the server",
    )

    def views(self) -> Views:
        """Ask for one view of the labeled batch, and one weak and K strong views of the unlabeled batch."""
        strong: View = "strong"
        unlabeled = ("weak", *(strong,) * self.num_strong)
        return Views((self.labeled_view,), unlabeled, self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: the guess, the mixed views, and the first strong view unmixed and turned."""
        unmixed = 1 + (self.rotation_weight > 0)
        return num_labeled + num_unlabeled * (FORWARD + 1 + self.num_strong + unmixed)

    def check(self, spec: ImageSpec) -> None:
        """Refuse images that are not square, unless the rotation loss has no weight."""
        _, height, width = spec.shape
        if height != width and self.rotation_weight > 0:
            raise InputError(
                "method.rotation_weight",
                f"is {self.rotation_weight:g}, but images of {height}x{width} cannot be turned by a quarter",
                "set it to 0",
            )

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put a head for the four rotations beside the classifier's own."""
        return TwoHeads(build(), 4)

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the classifier without the head for rotations."""
        assert isinstance(network, TwoHeads)
        return network.classifier

    def slots(self) -> tuple[Slot, ...]:
        """Keep the running distributions in the scope that the experiment says."""
        return (*super().slots(), Slot("alignment", self.alignment_scope))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start with no labels, no steps, and even mean predictions of the last batches, (window, C).

        ``labels``, shape (C,), is the client's number of labels of each class per image, summed over rounds. Its mean
        over clients, weighted by their images, is the cohort's number of labels of each class per image.
        """
        if name != "alignment":
            return super().init_slot(name, fresh)
        num_classes, device = fresh.spec.num_classes, fresh.device
        even = torch.full((num_classes,), 1 / num_classes, device=device)
        return {
            "labels": torch.zeros_like(even),
            "steps": torch.zeros((), device=device),
            "recent": even.repeat(self.alignment_window, 1),
        }

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return H(X') + r(t) (lambda_U H(U') + lambda_U1 H(U1)) + lambda_r H(rotation).

        Reference: Algorithm 1, sections 3.1 to 3.3.
        """
        assert isinstance(network, TwoHeads)
        weak, *strong = batch.unlabeled
        guesses = self.guess(network, weak, state)
        alignment = state["alignment"]
        wanted = self.wanted_distribution(alignment)
        aligned = align_distribution(guesses, wanted, alignment["recent"].mean(0))
        targets = sharpen(aligned, self.temperature)
        labels = F.one_hot(batch.labels, targets.shape[1]).to(targets.dtype)
        images = torch.cat([*batch.labeled, *strong, weak])
        classes = torch.cat([labels, *[targets] * (self.num_strong + 1)])
        weights = mixing_weights(len(images), self.alpha, self.mixing, batch.generator)
        images, classes = mix_with_shuffled(images, classes, weights, batch.generator)
        supervised = supervised_loss(network, images[: len(labels)], classes[: len(labels)])
        unlabeled = self.unlabeled_weight * _cross_entropy(
            network, images[len(labels) :], classes[len(labels) :]
        ) + self.unmixed_weight * _cross_entropy(network, strong[0], targets)
        rotation = self.rotation_loss(network, strong[0], batch.generator)
        total = (
            supervised
            + linear_ramp(progress.fraction, self.ramp_up) * unlabeled
            + self.rotation_weight * rotation
        )
        # This step's guesses join the window only now, because they were aligned by the guesses before them.
        recent = torch.cat([alignment["recent"][1:], guesses.mean(0, keepdim=True)])
        updates = {"alignment": {"recent": recent}}
        return Loss(total, targets.argmax(1), targets.new_ones(len(targets)), updates)

    def wanted_distribution(self, alignment: Tensors) -> Tensor:
        """Return d even + (1 - d) labels / sum(labels), shape (C,), with d = label_decay^steps.

        This is the value of a running mean of the labels' distribution that starts from even classes. Without labels,
        it is even.
        """
        labels = alignment["labels"]
        even = torch.full_like(labels, 1 / len(labels))
        count = labels.sum()
        shares = torch.where(count > 0, labels / count.clamp(min=1e-12), even)
        return torch.lerp(shares, even, self.label_decay ** alignment["steps"].clamp(min=0))

    def end(self, learner: Learner) -> None:
        """Count the client's labels and steps."""
        shard, alignment = learner.shard, learner.state["alignment"]
        own = class_shares(shard.labels[shard.labeled], len(alignment["labels"]))
        labels_per_image = len(shard.labeled) / len(shard)
        alignment["labels"] = alignment["labels"] + own * labels_per_image
        alignment["steps"] = alignment["steps"] + learner.progress.num_steps

    def rotation_loss(
        self, network: TwoHeads, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the cross-entropy of predicting by how many quarters each image was turned.

        Reference: section 3.3, after Gidaris et al., ICLR 2018, arXiv:1803.07728.
        """
        if self.rotation_weight == 0:
            return images.new_zeros(())
        turns = torch.randint(4, (len(images),), generator=generator, device=images.device)
        return F.cross_entropy(network.second_logits(quarter_turns(images, turns)), turns)


def _cross_entropy(network: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(network(images), targets)
