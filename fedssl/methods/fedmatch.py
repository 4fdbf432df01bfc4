"""FedMatch: labels move one half of the weights, unlabeled images move the other half, and other clients help to label.

Jeong et al., "Federated Semi-Supervised Learning with Inter-Client Consistency & Disjoint Learning", ICLR 2021,
arXiv:2006.12097.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.slots import Slot, State, Tensors
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import (
    FORWARD,
    Batch,
    Fresh,
    Learner,
    Loss,
    Method,
    Progress,
    View,
    Views,
    Weight,
)
from fedssl.methods.functional import call_with, kl_divergence, mean_where, widen_half_precision
from fedssl.methods.sigma_psi import PSI, SigmaAlone, SigmaPsi, key_of_psi, sums_of_halves
from fedssl.models.base import Classifier
from fedssl.models.modes import evaluation_mode

HELPERS = "helpers"
"""Record in which a strategy sends the psi of a client's helpers, and slot of the helpers' weights for the round."""

OUTPUTS = "outputs"
"""Slot of a client's answer to the noise image, by which a strategy finds the clients that are alike."""

NOISE = (125 / 255, 125 / 255)
"""Mean and standard deviation of the noise image's pixels before they are cut to [0, 1], as in the official code."""


class FedMatch(Method):
    """Learn two halves of the weights: sigma from labels, psi from unlabeled images, which helpers of the client label too.

    The classifier has the weights sigma + psi. A step has two parts. The labeled loss moves sigma and takes psi as a
    constant. Then the unlabeled loss moves psi and takes sigma as a constant. Helpers are the clients whose models are
    nearest. The server sends their psi with the strategy ``fedmatch``, and a helper is the received sigma plus its psi. It
    stays the same for the round. Without helpers, which is the case in the first round and under any other strategy, their
    term is 0 and the client votes alone.

    sigma and psi travel in both directions, so requests and replies are twice as large as those of FedAvg. With labels at
    the server (``labels = "server"``), the server's own training moves sigma, clients move psi only, and sigma does not
    come back. Each reply also carries the client's class probabilities of one fixed noise image. Nothing stays at the
    client.

    Where paper and code differ, or the paper says nothing:

    - ``threshold`` is 0.85 in the paper and 0.75 in the official code.
    - The paper has one weight for the consistency with helpers and for the pseudo-labels, and so has this method. The code
      has two weights of the same value.
    - The unlabeled losses are means over the confident images of a batch, as in the code.
    - A tie of votes goes to the lowest class number in the code, which favors the first classes. ``ties = "confidence"``
      gives it to the class with the highest mean probability.
    - The paper's unlabeled image is shown as it is; ``view`` may be ``"weak"``.
    - The code makes psi 0.2 times sigma, element by element, before the first round. So training begins at 1.2 sigma.
    - The code shows strong views and asks helpers for confident images only. Here all images of the batch are shown, and
      the others do not count. So a normalization by batch statistics sees whole batches.
    - A client answers the noise image in evaluation mode, where small entries of psi count as 0; the official server takes
      all of psi.
    - Helpers predict in evaluation mode, with the client's running statistics. The paper's network has none.
    - The code's learning rate falls when a client's loss on shared validation images no longer falls. Here it is the
      schedule of ``[train]``. The code never adds the weight decay that it declares: set ``train.weight_decay = 0``.
    """

    group: ClassVar[str] = "pseudo-labels"
    partner: ClassVar[str] = "fedmatch"

    threshold: float = Field(
        0.85,
        ge=0,
        le=1,
        description="tau, least confidence of an image that counts; 0.75 in the code",
    )
    labels: Literal["clients", "server"] = Field(
        "clients",
        description="where the labels are. clients: they train sigma and psi, and send both; server: it trains sigma, and "
        "clients train and send psi only, also if they hold labels",
    )
    labeled_weight: float = Field(10.0, ge=0, description="lambda_s, weight of the labeled loss")
    consistency_weight: float = Field(
        1e-2, ge=0, description="lambda_ICCS, weight of the loss on confident unlabeled images"
    )
    l1_weight: float = Field(
        1e-4,
        ge=0,
        description="lambda_L1, weight of the sum of |psi|; 1e-5 with labels at the server",
    )
    l2_weight: float = Field(10.0, ge=0, description="lambda_L2, weight of ||sigma - psi||^2")
    psi_share: float = Field(
        0.2, ge=0, description="psi begins as this share of sigma, element by element"
    )
    psi_cutoff: float = Field(
        5e-6,
        ge=0,
        description="in evaluation mode, entries of psi up to this absolute value count as 0; 1e-5 with labels at the "
        "server; 0: all entries count",
    )
    ties: Literal["lowest", "confidence"] = Field(
        "lowest",
        description="which class wins a tie of votes: the lowest number (as in the code), or the highest mean probability",
    )
    num_helpers: int = Field(
        2, ge=0, description="H, most helpers that a client listens to; a strategy may send fewer"
    )
    view: View = Field(
        "plain", description="view of labeled images, and of the unlabeled images that are voted on"
    )
    unlabeled_ratio: int = Field(10, ge=1, description="mu, unlabeled images for each labeled one")

    def views(self) -> Views:
        """Ask for a view of both batches and a strong view of the unlabeled batch; for no labels if the server has them."""
        labeled = (self.view,) if self.labels == "clients" else ()
        return Views(labeled, (self.view, "strong"), self.unlabeled_ratio)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step with helpers: both unlabeled views are trained on, and each helper predicts one of them.

        In a round without helpers, such as the first, the view that is voted on needs no gradients.
        """
        labeled = num_labeled if self.labels == "clients" else 0
        seen = 1 + FORWARD * self.num_helpers if self.num_helpers else FORWARD
        return labeled + num_unlabeled * (1 + seen)

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of the answer to the noise image, which is made after the steps."""
        return FORWARD

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Give every weight of the classifier two halves."""
        return SigmaPsi(build(), self.psi_share, self.psi_cutoff)

    def labeled_part(self, network: nn.Module) -> nn.Module:
        """Return the classifier of which only sigma is trained."""
        return SigmaAlone(_halves(network))

    def is_sent_back(self, name: str) -> bool:
        """Keep sigma at the server if the server trains it."""
        return self.labels == "clients" or name.startswith(PSI)

    def handed_on(self, weights: Mapping[str, Weight]) -> Mapping[str, Weight]:
        """Add sigma + psi, as it counts in evaluation mode, so that a phase with another method goes on from it."""
        return {**weights, **sums_of_halves(weights, self.psi_cutoff)}

    def check_carried(self, carried: Collection[str], begun: Collection[str]) -> None:
        """Refuse to follow a phase with another method: psi would begin as a share of weights that are not sigma.

        Raises:
            InputError: The last phase has no sigma and psi of this model.
        """
        if begun:
            raise InputError(
                "method.kind",
                f"is {self.kind!r}, whose weights are two halves, and the last phase gives no such halves of this model",
                "let the run begin with this method",
            )

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        """Give each half an optimizer of its own, so that no momentum or decay of weights moves the other half."""
        halves = _halves(network)
        return {"sigma": make(halves.sigma.parameters()), "psi": make(halves.psi.parameters())}

    def slots(self) -> tuple[Slot, ...]:
        """Hold the helpers' weights for the round; send the client's answer to the noise image."""
        return (Slot(HELPERS, "reset"), Slot(OUTPUTS, "server"))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start without a helper, and with an answer that says nothing."""
        if name == HELPERS:
            return {}
        return {"probs": torch.zeros(fresh.spec.num_classes, device=fresh.device)}

    def begin(self, learner: Learner) -> None:
        """Make the helpers' weights, received sigma + psi of the helper: (H, *shape) for each parameter.

        Raises:
            InputError: The strategy sends more helpers than the method listens to.
        """
        sent = learner.extra.get(HELPERS, {})
        with torch.no_grad():
            for name, sigma in _halves(learner.network).sigma.named_parameters():
                if (psi := sent.get(key_of_psi(name))) is None:
                    continue
                if len(psi) > self.num_helpers:
                    raise InputError(
                        "method.num_helpers",
                        f"is {self.num_helpers}, but the strategy sends {len(psi)} helpers",
                        "set method.num_helpers and strategy.num_helpers to one number",
                    )
                learner.state[HELPERS][name] = sigma + psi

    def step(self, learner: Learner, batch: Batch) -> Loss:
        """Take a step of sigma on the labeled batch, and then a step of psi on the unlabeled batch.

        Reference: Algorithm 1 of the paper's appendix; `train_one_round` of the official code has the same order.
        """
        network = _halves(learner.network)
        labeled = self.labeled_loss(network, batch)
        learner.descend(labeled, "sigma")
        unlabeled = self.unlabeled_loss(network, batch, learner.state[HELPERS])
        learner.descend(unlabeled.total, "psi")
        return unlabeled._replace(total=unlabeled.total + labeled.detach()).as_loss()

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return the sum of both losses at the same weights; a step takes them one after the other."""
        unlabeled = self.unlabeled_loss(_halves(network), batch, state[HELPERS])
        total = self.labeled_loss(_halves(network), batch) + unlabeled.total
        return unlabeled._replace(total=total).as_loss()

    def end(self, learner: Learner) -> None:
        """Answer the noise image with the trained weights."""
        with torch.no_grad(), evaluation_mode(learner.network):
            image = noise_image(learner.shard.spec, learner.shard.images.device)
            probs = widen_half_precision(learner.network(image)).softmax(1)
        learner.state[OUTPUTS]["probs"] = probs.squeeze(0)

    def labeled_loss(self, network: SigmaPsi, batch: Batch) -> Tensor:
        """Return lambda_s CE(y, p), whose gradient is in sigma only; 0 without labels.

        Reference: equation 4.
        """
        if self.labels == "server" or len(batch.labels) == 0:
            return batch.unlabeled[0].new_zeros(())
        logits = network.logits(batch.labeled[0], "sigma")
        return self.labeled_weight * F.cross_entropy(logits, batch.labels)

    def unlabeled_loss(self, network: SigmaPsi, batch: Batch, helpers: Tensors) -> "_Unlabeled":
        """Return the loss on the unlabeled batch, whose gradient is in psi only.

        It is lambda_ICCS mean(CE(vote, p(strong)) + mean_j KL(p_j || p)) + lambda_L1 |psi|_1 + lambda_L2 ||sigma - psi||^2,
        with the first mean over the confident images; it is 0 if there are none.

        Args:
            network: The classifier.
            batch: A view, which the client and its helpers predict, and a strong view.
            helpers: Weights of the helpers, each (H, *shape), by name; empty without a helper.

        Reference: equations 1, 2 and 5.
        """
        seen, strong = batch.unlabeled
        with torch.set_grad_enabled(torch.is_grad_enabled() and bool(helpers)):
            logits = network.logits(seen, "psi")
        probs = widen_half_precision(logits.detach()).softmax(1)
        confident = (probs.amax(1) >= self.threshold).to(probs.dtype)
        others = self._predictions_of(helpers, network, seen)
        votes = vote([probs, *others], self.ties)
        each = F.cross_entropy(network.logits(strong, "psi"), votes, reduction="none")
        for other in others:
            each = each + kl_divergence(other, logits) / len(others)
        consistency = mean_where(each, confident)
        total = self.consistency_weight * consistency + self._penalty(network)
        return _Unlabeled(total, votes, confident)

    @torch.no_grad()
    def _predictions_of(self, helpers: Tensors, network: SigmaPsi, images: Tensor) -> list[Tensor]:
        """Return each helper's class probabilities of images, (B, num_classes), in evaluation mode."""
        count = len(next(iter(helpers.values()))) if helpers else 0
        found = []
        with evaluation_mode(network.sigma):
            for place in range(count):
                weights = {name: stack[place] for name, stack in helpers.items()}
                logits = call_with(network.sigma, weights, images)
                found.append(widen_half_precision(logits).softmax(1))
        return found

    def _penalty(self, network: SigmaPsi) -> Tensor:
        """Return lambda_L1 |psi|_1 + lambda_L2 ||sigma - psi||^2, summed over all weights; sigma is a constant."""
        pairs = network.pairs().values()
        length = torch.stack([psi.abs().sum() for _, psi in pairs]).sum()
        distance = torch.stack([(sigma.detach() - psi).square().sum() for sigma, psi in pairs])
        return self.l1_weight * length + self.l2_weight * distance.sum()


class _Unlabeled(NamedTuple):
    """The loss of an unlabeled batch, the classes that were voted for, and whether each image counts (0 or 1)."""

    total: Tensor
    votes: Tensor
    confident: Tensor

    def as_loss(self) -> Loss:
        return Loss(self.total, self.votes, self.confident)


def vote(probs: Sequence[Tensor], ties: Literal["lowest", "confidence"] = "lowest") -> Tensor:
    """Return the class for which most models vote, int64 (B,); a model votes for its most probable class.

    Args:
        probs: Class probabilities of each model, each (B, num_classes).
        ties: Which class wins a tie: the lowest number, or the highest mean probability.

    Reference: equation 2.
    """
    each = torch.stack(list(probs))  # (M, B, C)
    votes = F.one_hot(each.argmax(2), each.shape[2]).sum(0).to(each.dtype)
    if ties == "confidence":
        # A mean probability is at most 1, so half of it never outweighs a vote.
        votes = votes + each.mean(0) / 2
    return votes.argmax(1)


def noise_image(spec: ImageSpec, device: torch.device) -> Tensor:
    """Return one normalized image of noise, (1, C, H, W): the same image at every client, in every round and every run.

    Its pixels are normal numbers that are cut to [0, 1] without heaps at the ends (a truncated normal distribution).
    """
    mean, deviation = NOISE
    low, high = (0.5 * (1 + math.erf((end - mean) / deviation / math.sqrt(2))) for end in (0, 1))
    uniform = torch.rand(1, *spec.shape, generator=torch.Generator().manual_seed(0))
    quantiles = torch.erfinv(2 * (low + (high - low) * uniform) - 1) * math.sqrt(2)
    return spec.normalize((mean + deviation * quantiles).clamp(0, 1)).to(device)


def _halves(network: nn.Module) -> SigmaPsi:
    assert isinstance(network, SigmaPsi)
    return network
