"""(FL)^2: thresholds that follow each client's confidence, and predictions that stay the same at perturbed weights.

Lee, Le, Shin & Lee, "(FL)^2: Overcoming Few Labels in Federated Semi-Supervised Learning", NeurIPS 2024,
arXiv:2410.23227.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import FORWARD, Batch, Fresh, Learner, Loss, Method, Pools, Progress, Views
from fedssl.methods.functional import call_with, kl_divergence, predict, widen_half_precision
from fedssl.models.modes import evaluation_mode

LABELS = "labels"
"""Slot of the round's labels: what the received model says of every example of the shard, and of the client."""

LEAST_UNCERTAINTY = 1e-6
"""Clients whose mean confidence is closer to 1 than this count alike in the server's mean, so weights are never all 0."""

ETA = 0.01
"""Added to the size of each weight in the perturbation, so that weights of 0 are perturbed too."""


class FL2(Method):
    """Train on all images that pass a threshold by class, and regularize with the confident images among them.

    At the start of a round, the client labels a weak view of each of its images with the received model, in evaluation
    mode. The labels are hard, and stay the same for the whole round. The mean confidence tau_k of client k is its
    threshold, scaled down for classes that the model rarely predicts. Images that pass the threshold of their class are
    the train set. Those of them with a confidence of at least .95 are the fixed set. An epoch is one pass over the train
    set, which is never empty.

    A step goes down two losses of the strong views: the cross-entropy of all labels of the batch, and the divergence
    between the predictions at the weights and at perturbed weights. Perturbed weights are a small step up the fixed set's
    cross-entropy, as in adaptive sharpness-aware minimization (ASAM). Only the fixed set counts in the divergence.

    A client sends its weights and the number ``uncertainty``, which is 1 - tau_k. The labels stay at the client. With
    ``strategy.weight = "number:uncertainty"``, less confident clients count more in the mean, as in the paper. A step
    costs as much as 8/3 passes with gradients over its images, and labeling costs a pass without gradients over all
    images, once a round.

    The first round is like every other round: about half of the images pass their thresholds, whatever the received model
    knows. So the method is meant for labels at the server, which corrects the model after each round. Without such a server,
    clients that begin with random weights learn their own mistakes.

    (FL)^2 is this method at the clients together with settings: labels at the server, which trains on them by epochs of
    its own; the weight above; server momentum; momentum that clients keep; clipping; static batch normalization.
    `experiments/labels_at_server/fl2.toml` has them all.

    Deviations:

    - The official code runs the strong views through the network three times: for the predictions, for the perturbation
      and for the labels. Here one pass serves all three, and the perturbed pass has the same dropout mask. Without dropout,
      the gradients are the same.
    - The paper's formula of the regularization is over all images of a batch, and its text says that confident images are
      selected. The official code takes the fixed set, and divides by the size of the whole batch. So does this class.
    - The official code perturbs the weights in place and subtracts the perturbation afterwards, which rounds. Here the
      network's weights are never written to.
    - If all clients are fully confident, the paper's weights are 0/0. Here `LEAST_UNCERTAINTY` makes them equal.
    - The official code ends each epoch with a smaller batch. Here all batches are full, as in SemiFL.
    - A label that a client was given counts as confident. The clients of the paper have none.
    """

    group: ClassVar[str] = "pseudo-labels"

    threshold: float = Field(
        0.95, ge=0, le=1, description="least confidence of an image in the fixed set"
    )
    rho: float = Field(
        0.1,
        ge=0,
        description="length of the perturbation of the weights; 1.0 in the paper for CIFAR-100; 0: no regularization",
    )

    def views(self) -> Views:
        """Ask for a strong view of the train set."""
        return Views((), ("strong",), others=("weak",))

    @property
    def learns_from_labels(self) -> bool:
        """Say yes: a given label takes the place of the received model's label."""
        return True

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: two passes with gradients, and a second way back through the first pass."""
        return (2 + (1 - FORWARD)) * num_unlabeled

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of labeling all images."""
        return FORWARD * num_examples

    def slots(self) -> tuple[Slot, ...]:
        """Hold the labels of all examples for the round."""
        return (Slot(LABELS, "reset"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start without a label: classes, train set and fixed set of shape (n,), and the client's uncertainty."""
        assert fresh.shard is not None, "the labels of a round live at the client"
        classes = torch.zeros_like(fresh.shard.labels)
        nothing = torch.zeros_like(classes, dtype=torch.bool)
        return {
            "classes": classes,
            "selected": nothing,
            "confident": nothing.clone(),
            "uncertainty": torch.ones((), device=classes.device),
        }

    def begin(self, learner: Learner) -> None:
        """Label a weak view of every example with the received model, and select examples by the model's confidence."""
        given = learner.shard.labels >= 0
        with evaluation_mode(learner.network):
            shown = learner.show("weak", name=LABELS)
            probs = torch.cat([predict(learner.network, weak) for _, weak in shown])
        confidence, classes = probs.max(1)
        selected = confidence >= class_thresholds(probs)[classes]
        learner.state[LABELS].update(
            classes=torch.where(given, learner.shard.labels, classes),
            selected=selected | given,
            confident=selected & (confidence >= self.threshold) | given,
            uncertainty=(1 - mean_confidence(probs)).clamp(min=LEAST_UNCERTAINTY).float(),
        )

    def pools(self, learner: Learner) -> Pools:
        """Return the train set; the loss takes its labels from the slot."""
        selected = learner.state[LABELS]["selected"].nonzero().squeeze(1)
        return Pools(selected[:0], selected)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return the batch's mean of CE(y, p(strong; w)) + [fixed] KL(sg p(strong; w) || p(strong; w + eps)).

        eps is a constant: no gradient flows through it. With an empty fixed set, eps and the second term are exactly 0.
        """
        (strong,), labels = batch.unlabeled, state[LABELS]["classes"][batch.unlabeled_ids]
        fixed = state[LABELS]["confident"][batch.unlabeled_ids].float()
        rewind = rng.make_rewinder(strong.device)
        logits = network(strong)
        each = F.cross_entropy(logits, labels, reduction="none")
        # Climb the fixed set's loss. Weights that stay at the client are no part of the model that the server averages.
        weights = {name: p for name, p in network.named_parameters() if self.is_shared(name)}
        push = perturbation(weights, _gradients((each * fixed).sum(), weights), self.rho)
        # The perturbed pass repeats the dropout mask, and writes to no statistics of normalizations.
        rewind()
        perturbed = call_with(
            network, {name: p + push[name] for name, p in weights.items()}, strong
        )
        probs = widen_half_precision(logits.detach()).softmax(1)
        total = each.mean() + (kl_divergence(probs, perturbed) * fixed).mean()
        shares = {name: state[LABELS][name].float().mean() for name in ("selected", "confident")}
        numbers = {"uncertainty": state[LABELS]["uncertainty"], **shares}
        return Loss(total, labels, torch.ones_like(fixed), numbers=numbers)


def mean_confidence(probs: Tensor) -> Tensor:
    """Return tau, the mean over images of the largest probability, a scalar in double precision.

    A sum in double precision and its quotient never round above the largest number. (A mean on a GPU may.)

    Args:
        probs: Class probabilities, shape (n, num_classes); n is at least 1.
    """
    return probs.double().amax(1).sum() / len(probs)


def class_thresholds(probs: Tensor) -> Tensor:
    """Return tau p(c) / max p, where p is the mean prediction: the threshold of each class, float64 (num_classes,).

    No threshold is above tau, so the image with the largest confidence always passes.

    Args:
        probs: Class probabilities, shape (n, num_classes); n is at least 1.
    """
    mean = probs.double().mean(0)
    return mean_confidence(probs) * (mean / mean.max())


@torch.no_grad()
def perturbation(weights: Mapping[str, Tensor], gradients: Tensors, rho: float) -> Tensors:
    """Return the step of length rho up a loss, measured relative to the size of the weights: rho t^2 g / |t g|.

    t is |w| + `ETA` for the weights of layers and normalizations, and 1 for biases. If all gradients are 0, so is the step.

    Args:
        weights: Parameters by name.
        gradients: Gradient of the loss for each parameter.
        rho: Length of the step t^-1 eps.

    Reference:
        Kwon, Kim, Park & Choi (ASAM), ICML 2021, arXiv:2102.11600.
    """
    sizes = {
        name: w.abs() + ETA if name.rpartition(".")[2] == "weight" else torch.ones_like(w)
        for name, w in weights.items()
    }
    scaled = {name: sizes[name] * gradient for name, gradient in gradients.items()}
    norm = torch.stack([torch.linalg.vector_norm(g) for g in scaled.values()]).norm()
    factor = rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)
    return {name: factor * sizes[name] * gradient for name, gradient in scaled.items()}


def _gradients(total: Tensor, weights: Mapping[str, Tensor]) -> Tensors:
    """Return the gradient of a scalar for each weight, by name; the graph stays for the step."""
    found = torch.autograd.grad(
        total,
        list(weights.values()),
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(weights, found, strict=True))
