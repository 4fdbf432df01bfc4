"""DivideMix, for given labels of which some are wrong.

Li, Socher & Hoi, "DivideMix: Learning with Noisy Labels as Semi-supervised Learning", ICLR 2020, arXiv:2002.07394.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
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
    View,
    Views,
)
from fedssl.methods.functional import (
    call_with,
    entropy,
    linear_ramp,
    mix_with_shuffled,
    mixing_weights,
    probability_mse,
    sharpen,
    widen_half_precision,
)
from fedssl.methods.mixture import judge_labels, scale_to_unit
from fedssl.methods.two_networks import TwoNetworks, mean_prediction
from fedssl.models.base import Classifier
from fedssl.models.modes import evaluation_mode

NUM_VIEWS = 2
"""Weak views of each image; the mean of their predictions refines a label or is a guess."""


class DivideMix(SemiSupervised):
    """Judge which given labels are clean by their losses, drop the other labels, and train two networks by MixMatch.

    In the first rounds (``warm_up``), both networks learn the given labels. In every later round, each network computes
    the loss of every given label with the weights as received. A mixture of two Gaussians divides the losses. Each
    network then trains with the labels that the other network judges clean; all other images are unlabeled.

    The warm-up must last until the networks know every class. Labels of a class that they do not know have high losses,
    so all of them are judged wrong, and the networks never learn the class.

    Both networks travel, so the traffic is twice the model's. A step costs about twelve times a supervised step, because
    each network trains on four batches of views and guesses on six. A round begins with one pass of both networks over
    the labeled images. Nothing stays at the client, unless ``history`` is above 1: then the last losses of every label
    do. A client without labels sits the warm-up out and learns from its unlabeled images afterwards. If a client has few
    labels, the mixture tells little. Labels at the server are not judged; the server believes them.

    Deviations:

    - The official code trains one network for an epoch and then the other. Here they take turns at every step. In both
      cases, the second network's partner has been updated when it guesses.
    - The network in training guesses in training mode and its partner in evaluation mode, as in the official code. But
      here, guesses move no running statistics, so the statistics move once per step. In the official code, the four
      guesses move them too.
    - Predictions are pulled towards the class distribution of the federation's given labels and not towards even
      classes, which would be wrong if classes are skewed (``prior``).
    - If no label is judged clean or if all losses are equal, all given labels count as clean; the official code fails.
    - Warm-up and ramp are shares of the rounds. Of its 300 epochs, the official code has 10 (CIFAR-10) or 30 (CIFAR-100)
      and 16. The default warm-up is longer, because a federation takes fewer steps.
    """

    group: ClassVar[str] = "noisy labels"

    unlabeled_weight: float = Field(
        25.0,
        ge=0,
        description="lambda_u, largest weight of the unlabeled loss; the paper's is 0 to 150, larger for more noise",
    )
    unlabeled_ratio: int = Field(1, ge=1, description="mu, unlabeled images for each labeled image")
    warm_up: float = Field(
        0.3, ge=0, le=1, description="share of the rounds that learn all given labels, at the start"
    )
    entropy_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the entropy that the warm-up rewards; 1 in the official code if the noise is "
        "asymmetric, because such noise makes networks certain of wrong labels",
    )
    threshold: float = Field(
        0.5, ge=0, lt=1, description="a label is clean if its probability to be clean is above this"
    )
    history: int = Field(
        1,
        ge=1,
        description="rounds of the client over which a label's loss is averaged; the official code's is 5 at 90 % noise",
    )
    temperature: float = Field(0.5, gt=0, description="T of the sharpened labels and guesses")
    alpha: float = Field(
        4.0, ge=0, description="parameter of MixUp's Beta(alpha, alpha); 0 mixes nothing"
    )
    ramp_up: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the rounds, after the warm-up, over which lambda_u grows linearly",
    )
    prior: Literal["federation", "client", "uniform"] = Field(
        "federation",
        description="class distribution of the mean prediction: that of all given labels of the last cohort (the server "
        "averages the clients' counts), that of the client's own given labels, or even classes as in the paper",
    )

    def views(self) -> Views:
        """Ask for two weak views of both batches."""
        weak: View = "weak"
        return Views((weak,) * NUM_VIEWS, (weak,) * NUM_VIEWS, self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step after the warm-up: each network trains on all views and guesses on more."""
        trained = NUM_VIEWS * (num_labeled + num_unlabeled)
        refined, guessed = NUM_VIEWS * num_labeled, 2 * NUM_VIEWS * num_unlabeled
        return 2 * (trained + FORWARD * (refined + guessed))

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of a pass of both networks over the labeled images."""
        return 2 * FORWARD * num_labeled

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put two classifiers side by side."""
        return TwoNetworks(build(), build())

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        """Give each network an optimizer of its own."""
        assert isinstance(network, TwoNetworks)
        first, second = network.both()
        return {"main": make(first.parameters()), "second": make(second.parameters())}

    def slots(self) -> tuple[Slot, ...]:
        """Keep this round's judgments, the counts of labels that give the prior, and the history of losses, if any."""
        merge = Merge(weight="uniform", over="cohort")  # the mean of counts is the cohort's counts
        prior = Slot("prior", "server" if self.prior == "federation" else "reset", merge)
        history = (Slot("losses", "client"),) if self.history > 1 else ()
        return (Slot("clean", "reset"), prior, *history)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return the first content of a slot.

        - ``clean``: the probability that a given label is clean, as the first and as the second network judge, (n, 2).
          Every given label is clean at first, and 0 stands for an image without a label.
        - ``prior``: the number of given labels of each class, (C,); ones until a cohort has replied.
        - ``losses``: the last losses of every given label in [0, 1], oldest first, (n, history, 2), and the number of
          rounds that have written some.
        """
        device, shard = fresh.device, fresh.shard
        if name == "prior":
            if shard is None or self.prior != "client":
                return {"counts": torch.ones(fresh.spec.num_classes, device=device)}
            return {"counts": count_labels(shard.labels[shard.labeled], fresh.spec.num_classes)}
        assert shard is not None, "a label is judged where it is"
        if name == "clean":
            return {"probs": (shard.labels >= 0).float().unsqueeze(1).repeat(1, 2)}
        return {
            "values": torch.zeros(len(shard), self.history, 2, device=device),
            "rounds": torch.zeros((), dtype=torch.int64, device=device),
        }

    def is_warming_up(self, progress: Progress) -> bool:
        """Say whether a round belongs to the warm-up."""
        return progress.is_within(self.warm_up)

    def weight_at(self, progress: Progress) -> float:
        """Return lambda_u at a step: it grows linearly after the warm-up."""
        after = max(0.0, progress.fraction - self.warm_up)
        return self.unlabeled_weight * linear_ramp(after, self.ramp_up)

    def begin(self, learner: Learner) -> None:
        """Let both networks judge every given label, unless they are still warming up.

        Reference: section 3.1.
        """
        labeled = learner.shard.labeled
        if self.is_warming_up(learner.progress) or len(labeled) == 0:
            return
        losses = scale_to_unit(losses_of_labels(learner))
        if self.history > 1:
            losses = self._mean_with_earlier(learner.state["losses"], losses, labeled)
        for judge in range(2):
            judged = judge_labels(losses[:, judge], self.threshold)
            learner.state["clean"]["probs"][labeled, judge] = judged.to(labeled.device).float()

    def _mean_with_earlier(self, kept: Tensors, losses: Tensor, labeled: Tensor) -> Tensor:
        """Add this round's losses, (num_labeled, 2), to the history, and return their mean over the history."""
        newest = torch.zeros_like(kept["values"][:, 0])
        newest[labeled] = losses.to(newest)
        kept["values"] = torch.cat([kept["values"][:, 1:], newest.unsqueeze(1)], 1)
        kept["rounds"] = kept["rounds"] + 1
        known = min(int(kept["rounds"]), self.history)
        return kept["values"][labeled, -known:].to(losses).mean(1)

    def pools(self, learner: Learner) -> Pools:
        """Return the first network's examples, and note the batches of the second network in the scratch."""
        first, second = (self._pools_of(place, learner) for place in range(2))
        learner.scratch["second"] = learner.batches(second, self.views(), name="second")
        num_clean = torch.tensor(float(len(first.labeled) + len(second.labeled)))
        learner.scratch["clean_share"] = num_clean / (2 * len(learner.shard.labeled))
        return first

    def _pools_of(self, place: int, learner: Learner) -> Pools:
        """Return all labeled examples in the warm-up; later the labels that the other network judges clean, and the rest."""
        if self.is_warming_up(learner.progress):
            labeled = learner.shard.labeled
            return Pools(labeled, labeled[:0], gives_pseudo_labels=False)
        is_clean = learner.state["clean"]["probs"][:, 1 - place] > self.threshold
        return Pools(is_clean.nonzero().squeeze(1), (~is_clean).nonzero().squeeze(1))

    def step(self, learner: Learner, batch: Batch) -> Loss:
        """Take a step of the first network on the batch, then a step of the second network on a batch of its own.

        Returns:
            The first network's result, with the mean loss of both networks.
        """
        first = self.loss(learner.network, batch, learner.state, learner.progress)
        learner.descend(first.total, "main")
        own = next(learner.scratch["second"])
        second = self.loss_of(1, learner.network, own, learner.state, learner.progress)
        learner.descend(second.total, "second")
        total = (first.total + second.total) / 2
        return replace(first, total=total, numbers={"clean_share": learner.scratch["clean_share"]})

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return the first network's loss; `step` uses the second network's too."""
        return self.loss_of(0, network, batch, state, progress)

    def loss_of(
        self, place: int, network: nn.Module, batch: Batch, state: State, progress: Progress
    ) -> Loss:
        """Return CE(X') + lambda_u(t) MSE(U') + KL(prior || mean prediction), or the warm-up's loss.

        Reference: sections 3.2 and 3.3, equations 3 to 12.

        Args:
            place: 0 for the loss of the first network, 1 for the loss of the second network.
            network, batch, state, progress: As in `loss`.
        """
        assert isinstance(network, TwoNetworks)
        own, other = network.both()[place], network.both()[1 - place]
        if self.is_warming_up(progress):
            return Loss(warm_up_loss(own(batch.labeled[0]), batch.labels, self.entropy_weight))
        prior = class_distribution(state["prior"]["counts"])
        # Targets (B + mu B, C): the own network refines labels, and both networks guess where there are none.
        quietly = functools.partial(call_with, own, {})
        refining = mean_prediction(quietly, batch.labeled, len(prior))
        guesses = mean_prediction(quietly, batch.unlabeled, len(prior))
        with evaluation_mode(other):
            guesses = (guesses + mean_prediction(other, batch.unlabeled, len(prior))) / 2
        clean_probs = state["clean"]["probs"][batch.labeled_ids, 1 - place]
        labels = refine_labels(batch.labels, clean_probs, refining)
        targets = sharpen(
            torch.cat([*[labels] * NUM_VIEWS, *[guesses] * NUM_VIEWS]), self.temperature
        )
        # All views are mixed with each other, and one pass takes all of them.
        images = torch.cat([*batch.labeled, *batch.unlabeled])
        weights = mixing_weights(len(images), self.alpha, "batch", batch.generator)
        images, targets = mix_with_shuffled(images, targets, weights, batch.generator)
        logits = own(images)
        num_labeled = NUM_VIEWS * len(labels)
        total = mixed_loss(logits, targets, num_labeled, self.weight_at(progress))
        total = total + prior_penalty(logits, prior)
        return Loss(total, guesses.argmax(1), guesses.new_ones(len(guesses)))

    def end(self, learner: Learner) -> None:
        """Send the number of the client's given labels of each class, if the federation's labels give the prior."""
        if self.prior == "federation":
            shard = learner.shard
            counts = count_labels(shard.labels[shard.labeled], shard.spec.num_classes)
            learner.state["prior"]["counts"] = counts


@torch.no_grad()
def losses_of_labels(learner: Learner) -> Tensor:
    """Return the cross-entropy of every given label by both networks, on the CPU, float64 (num_labeled, 2).

    The images are not augmented, and the networks are in evaluation mode.
    """
    network, labels = learner.network, learner.shard.labels
    assert isinstance(network, TwoNetworks)
    found = []
    with evaluation_mode(network):
        for ids, images in learner.show("plain", learner.shard.labeled, name="judge"):
            logits = [widen_half_precision(own(images)) for own in network.both()]
            each = [F.cross_entropy(z, labels[ids], reduction="none") for z in logits]
            found.append(torch.stack(each, 1))
    return torch.cat(found).cpu().double()


def warm_up_loss(logits: Tensor, labels: Tensor, entropy_weight: float) -> Tensor:
    """Return the mean cross-entropy of given labels minus the weighted mean entropy of the predictions.

    Reference: section 3.1, equation 2.
    """
    return F.cross_entropy(logits, labels) - entropy_weight * entropy(logits).mean()


def refine_labels(labels: Tensor, clean_probs: Tensor, probs: Tensor) -> Tensor:
    """Return w y + (1 - w) p, shape (B, C): the less a label is trusted, the more a prediction replaces it.

    Args:
        labels: Given labels y, int64 (B,).
        clean_probs: w, the probability that each label is clean, shape (B,).
        probs: Predictions p, shape (B, C).

    Reference: equation 3.
    """
    given = F.one_hot(labels, probs.shape[1]).to(probs.dtype)
    return torch.lerp(probs, given, clean_probs.to(probs.dtype).unsqueeze(1))


def mixed_loss(logits: Tensor, targets: Tensor, num_labeled: int, weight: float) -> Tensor:
    """Return the mean cross-entropy of the first rows plus the weighted mean squared error of the other rows.

    The squared error is a mean over classes too, as in the official code.

    Args:
        logits: Shape (R, C).
        targets: Probabilities, shape (R, C).
        num_labeled: Number of the first rows, from 0 to R.
        weight: Weight of the squared error.

    Reference: equations 9 to 12.
    """
    total = logits.new_zeros(())
    if num_labeled > 0:
        total = total + F.cross_entropy(logits[:num_labeled], targets[:num_labeled])
    if num_labeled < len(logits):
        total = total + weight * probability_mse(logits[num_labeled:], targets[num_labeled:])
    return total


def prior_penalty(logits: Tensor, prior: Tensor) -> Tensor:
    """Return KL(prior || mean prediction) in nats.

    Args:
        logits: Shape (R, C), at least one row.
        prior: Class distribution, shape (C,).

    Reference: equation 11.
    """
    log_probs = widen_half_precision(logits).log_softmax(1)
    # The logarithm of a mean of tiny probabilities stays finite this way.
    log_mean = log_probs.logsumexp(0) - math.log(len(logits))
    return (torch.xlogy(prior, prior) - prior * log_mean).sum()


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Return how many labels name each class, float (num_classes,)."""
    return F.one_hot(labels, num_classes).sum(0, dtype=torch.float32)


def class_distribution(counts: Tensor) -> Tensor:
    """Return the share of each class in counts (C,); even shares if all counts are 0."""
    total = counts.sum()
    even = torch.full_like(counts, 1 / len(counts))
    return torch.where(total > 0, counts / total.clamp(min=1e-12), even)
