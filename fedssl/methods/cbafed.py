"""CBAFed: fixed pseudo-labels of a round, and thresholds by class that follow the federation's class counts.

Li, Li & Wang, "Class Balanced Adaptive Pseudo Labeling for Federated Semi-Supervised Learning", CVPR 2023.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import Merge, Slot, State, Tensors
from fedssl.methods.base import (
    FORWARD,
    Batch,
    Fresh,
    Learner,
    Loss,
    Pools,
    Progress,
    SemiSupervised,
    Views,
)
from fedssl.methods.functional import predict, supervised_loss
from fedssl.models.modes import evaluation_mode

LABELS = "labels"
"""Slot of the round's pseudo-labels: the class of every example, and why the example is trained on."""

COUNTS = "counts"
"""Slot of the class counts: those of the last cohort as a client receives them, its own as it sends them."""

SURE, SECOND = 1, 2
"""Why an example is trained on: its most likely class is likely enough, or its second most likely class is rare."""

OLD = "cbafed.old"
"""Note of the parameters to which the next local residual connection goes back."""


class CBAFed(SemiSupervised):
    """Label unlabeled images once a round with the received model, by thresholds that are lower for rarer classes.

    An image gets its most likely class if the class is more likely than the threshold of that class. Any other image gets
    its second most likely class if that class is rare in the federation, and is left out if not. The client trains on
    labeled and pseudo-labeled images alike, by the cross-entropy of weak views; there are no strong views. A client
    without labels and without a pseudo-label sits the round out.

    Thresholds follow the class counts of the last round: of each client, its labels and its pseudo-labels together. The
    server adds the counts of the cohort up, and forgets the counts of earlier rounds. Until some client has replied, all
    classes count alike: no class is rare, and every threshold is `base` + .1. In the warm-up, clients train on labels
    alone, and the counts are those of labels alone; so are the counts that the first round after the warm-up starts from.

    The counts travel, one number a class, both ways. The pseudo-labels stay at the client for one round. A round begins
    with a pass without gradients over the unlabeled images.

    CBAFed is this method together with the strategy of the same name, which weighs a client by its labels and
    pseudo-labels and connects the global model with an earlier one, and with momentum that clients keep.
    `experiments/cifar10/cbafed.toml` has them all.

    Where the paper could not be read, the official code is followed. Deviations from it:

    - In the code, every client takes part in every round. Here a client that is not sampled, or that sits the round out,
      counts neither in the mean nor in the class counts.
    - In the code, all images of a client are labeled or none is. Here a client may have both; each kind has batches of its
      own, and the two losses are added up. Such a client makes no local residual connection.
    - The code trains on the very views that it labeled. Here every step draws new weak views of the same images.
    - The code ends an epoch with a smaller batch, and drops a batch of one image. Here all batches are full. The passes over
      the labeled images are shuffled together and not one by one.
    - The code's residual connections mix the statistics of normalizations, too. Here they mix parameters alone.
    - The code has a learning rate of .03 at labeled clients and .02 at unlabeled ones. An `unlabeled_weight` of 2/3 at the
      rate of .03 does the same, except for weight decay and clipping.
    - Where no image of an unlabeled client exceeds its threshold, the code divides by zero and stops.
    """

    group: ClassVar[str] = "pseudo-labels"
    partner: ClassVar[str] = "cbafed"

    unlabeled_ratio: int = Field(1, ge=1, description="mu, unlabeled images for each labeled one")
    base: float = Field(
        0.84,
        ge=0,
        le=1,
        description="tau, least probability of a class of share 0, before the spread of the shares is subtracted",
    )
    most: float = Field(
        0.95, ge=0, le=1, description="largest threshold; .9 in the code for SVHN and skin images"
    )
    rare_share: float = Field(
        0.03,
        ge=0,
        description="a class is rare if its share is below this; shares are those of ten classes: .1 is an even share",
    )
    warm_up: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of the rounds, at the start, in which clients train on labels alone",
    )
    labeled_passes: int = Field(
        1,
        ge=1,
        description="passes over the labeled images in each local epoch, for train.local_epochs; 11 in the code, whose "
        "clients without labels make one pass",
    )
    residual_every: int = Field(
        5,
        ge=1,
        description="passes between two local residual connections, counted from the end of a round's first pass; clients "
        "all of whose images are labeled make them",
    )
    residual_share: float = Field(
        0.8,
        ge=0,
        lt=1,
        description="share of the old parameters in a local residual connection; 0: none is made",
    )

    def views(self) -> Views:
        """Ask for a weak view of the labeled and of the pseudo-labeled batch."""
        return Views(("weak",), ("weak",), self.unlabeled_ratio)

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of labeling the unlabeled images."""
        return FORWARD * (num_examples - num_labeled)

    def slots(self) -> tuple[Slot, ...]:
        """Hold the pseudo-labels for the round, and exchange class counts, whose plain mean is their sum up to scale."""
        return (Slot(LABELS, "reset"), Slot(COUNTS, "server", Merge(weight="uniform")))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return the first content of a slot.

        - ``labels``: ``classes``, (n,), and ``reason``, (n,), which is 0 for an example that is left out.
        - ``counts``: one of each class, (num_classes,), so that all classes count alike.
        """
        if name == COUNTS:
            return {"classes": torch.ones(fresh.spec.num_classes, device=fresh.device)}
        assert fresh.shard is not None, "the pseudo-labels of a round live at the client"
        classes = torch.zeros_like(fresh.shard.labels)
        return {"classes": classes, "reason": torch.zeros_like(classes)}

    def begin(self, learner: Learner) -> None:
        """Label a weak view of every unlabeled image in evaluation mode, unless clients are warming up."""
        hidden = (learner.shard.labels < 0).nonzero().squeeze(1)
        if len(hidden) == 0 or learner.progress.is_within(self.warm_up):
            return
        labels = learner.state[LABELS]
        shares = shares_of_ten(learner.state[COUNTS]["classes"])
        thresholds = class_thresholds(shares, self.base, self.most)
        with evaluation_mode(learner.network):
            for ids, weak in learner.show("weak", hidden, name=LABELS):
                probs = predict(learner.network, weak)
                classes, reason = select(probs, thresholds, shares < self.rare_share)
                labels["classes"][ids], labels["reason"][ids] = classes, reason

    def pools(self, learner: Learner) -> Pools:
        """Return the labeled images, several times, and the images with a pseudo-label."""
        return Pools(
            learner.shard.labeled.repeat(self.labeled_passes),
            learner.state[LABELS]["reason"].nonzero().squeeze(1),
            gives_pseudo_labels=not learner.progress.is_within(self.warm_up),
        )

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u CE(pseudo-label, p(weak')); a term without images is 0."""
        total = supervised_loss(network, batch.labeled[0], batch.labels)
        if progress.is_within(self.warm_up):
            return Loss(total)
        labels = state[LABELS]
        classes = labels["classes"][batch.unlabeled_ids]
        unlabeled = supervised_loss(network, batch.unlabeled[0], classes)
        shares = shares_of_ten(state[COUNTS]["classes"])
        numbers = {
            "selected": (labels["reason"] > 0).float().mean(),
            "second": (labels["reason"] == SECOND).float().mean(),
            "threshold": class_thresholds(shares, self.base, self.most).mean(),
        }
        accepted = torch.ones_like(classes, dtype=torch.float32)
        return Loss(total + self.unlabeled_weight * unlabeled, classes, accepted, numbers=numbers)

    def after_step(self, learner: Learner, batch: Batch, loss: Loss) -> None:
        """Make the local residual connection where it is due: w <- share w_old + (1 - share) w, and keep w as w_old.

        The first w_old is w at the end of the round's first pass over the labeled images.
        """
        size, step = len(learner.shard), learner.progress.step
        if len(learner.shard.labeled) < size or self.residual_share == 0:
            return
        shown = len(batch.labels) * step, len(batch.labels) * (step + 1)
        before, now = (marks_passed(images // size, self.residual_every) for images in shown)
        if now == before:
            return
        with torch.no_grad():
            for name, parameter in learner.network.named_parameters():
                old = learner.scratch.get(OLD, {}).get(name, parameter)
                parameter.lerp_(old, self.residual_share)
        learner.scratch[OLD] = {
            name: parameter.detach().clone()
            for name, parameter in learner.network.named_parameters()
        }

    def end(self, learner: Learner) -> None:
        """Send the client's class counts of this round: its labels and its pseudo-labels."""
        labels, shard = learner.state[LABELS], learner.shard
        trained = torch.cat([shard.labels[shard.labeled], labels["classes"][labels["reason"] > 0]])
        counts = torch.bincount(trained, minlength=shard.spec.num_classes)
        learner.state[COUNTS]["classes"] = counts.float()


def shares_of_ten(counts: Tensor) -> Tensor:
    """Return the share of each class times C / 10, shape (C,); even shares if all counts are 0.

    The factor makes an even share .1 for any number C of classes, so thresholds and the limit of a rare class mean the
    same for all data sets. The official code has it.

    Args:
        counts: Number of examples of each class, up to a common factor, shape (C,).
    """
    total = counts.sum()
    shares = torch.where(total > 0, counts / total.clamp(min=1e-12), 1 / len(counts))
    return shares * (len(counts) / 10)


def class_thresholds(shares: Tensor, base: float, most: float) -> Tensor:
    """Return min(p_c + base - std(p), most) for each class, shape (C,): the more frequent a class, the higher.

    Args:
        shares: p, shares of the classes as `shares_of_ten` returns them, shape (C,), C > 1.
        base: tau, the threshold of a class of share 0 if all shares were alike.
        most: Largest threshold.

    Reference: the official code; the standard deviation is that of a sample, with C - 1.
    """
    return (shares + base - shares.std()).clamp(max=most)


def select(probs: Tensor, thresholds: Tensor, is_rare: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pseudo-label of each image, int64 (B,), and the reason: SURE, SECOND, or 0 for an image left out.

    Args:
        probs: Class probabilities, shape (B, C), C > 1.
        thresholds: Each class's threshold, which the probability of a label must exceed, shape (C,).
        is_rare: Whether a class is taken as the second most likely class, bool (C,).
    """
    confidence, classes = probs.topk(2, dim=1)
    first, second = classes.unbind(1)
    is_sure = confidence[:, 0] > thresholds[first]
    is_second = ~is_sure & is_rare[second]
    return torch.where(is_second, second, first), is_sure * SURE + is_second * SECOND


def marks_passed(num_passes: int, every: int) -> int:
    """Return how many of the passes 1, 1 + every, 1 + 2 every, ... are over after `num_passes` whole passes."""
    return (num_passes + every - 1) // every
