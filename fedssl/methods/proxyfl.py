"""ProxyFL at the clients: unconfident images learn from several classes at once, whose classifier rows are proxies.

Chen & Wang, "ProxyFL: A Proxy-Guided Framework for Federated Semi-Supervised Learning", CVPR 2026, arXiv:2602.21078.
"""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.slots import Merge, Slot, State, Tensors
from fedssl.methods.base import FORWARD, Batch, Fresh, Learner, Loss, Progress
from fedssl.methods.functional import mean_where, widen_half_precision
from fedssl.methods.labeling import Labeler, PseudoLabeling
from fedssl.methods.projection import Projected
from fedssl.methods.proxies import (
    LEAST_SIMILARITY,
    Rows,
    WithProxyHeads,
    candidate_weights,
    class_sets,
    contrast_loss,
    proxies_of,
    with_proxy_heads,
)
from fedssl.models.base import Classifier

PRIOR = "prior"
"""Slot of the prior: the share of each class in what the cohort's clients learned from."""

COUNTS = "counts"
"""Note of the classes that a client learned from in this round, for its share in the next prior."""


class ProxyFL(PseudoLabeling):
    """FixMatch by the received model, in which images without a confident label learn from a set of candidate classes.

    The rows of the classifier's last layer are *proxies* of the classes. The class set of a labeled image holds its label.
    That of a confident image holds its pseudo-label. That of any other image holds every class that the received model
    finds more probable than the *prior* says. The contrastive loss pulls the features of each unlabeled image to its
    positive proxy, which is the proxy of its label, or the sum of its candidates' proxies by their probabilities. It pushes
    them away from images of the batch whose class sets have nothing in common with its own.

    The prior is the share of each class in the labels and accepted pseudo-labels that the clients learned from. Each client
    sends its own shares, and the server sends back their plain mean, moved towards them by ``1 - prior_decay``. So C numbers
    travel beside the weights, and they tell the server how a client's classes are distributed. Before the first round,
    the prior is even. A client that learned from no class in a round sends the prior back as it came.

    ProxyFL also tunes the proxies at the server: `strategy.kind = "proxyfl"` does. The server needs nothing from this
    method for it, and this method also works under any other strategy.

    The official code differs from the equations of the paper, and `variant` says which is followed. The default is the code,
    because the published figures are the code's: the paper's table of traffic counts the two linear layers, which no equation
    has. With the equations as they are printed, digits are not learned at all: the products of features are not bounded, and
    after four rounds all features are 0.

    - ``"code"``: two linear layers map features and proxies, and the results have length 1. These layers travel too. Weak
      and strong views learn. The candidates are weighted by the received model's probabilities. Only pairs of positive
      similarity push each other. Both losses are means over all unlabeled images. An image is also confident if the
      client's own model is, and its pseudo-label is the received model's all the same.
    - ``"paper"``: the loss compares the features of weak views as they are with proxies as they are (equation 8). The
      candidates of an image are weighted by the client's own probabilities (equation 6). The contrastive loss is the mean
      over confident images plus the mean over the others. The loss on strong views is a mean over confident images
      (equation 9).

    ``prior_decay`` is .99 in the official code and 0 in the paper (equation 5).

    Deviations:

    - A set is empty only if the prediction is exactly the prior. Such an image neither pulls nor pushes.
    - A small client shows an image several times in a batch. Copies of an image never push each other away.
    - The client's shares are those of all steps of a round. The official code counts its last epoch, and adds up the
      counts of the cohort, so a client with more accepted pseudo-labels counts more. The paper has the plain mean.
    - The official code gives a labeled image the set that the received model predicts, although its label is known. Here,
      as in the paper, the set holds the label.
    - No gradient flows through the weights of candidates. The paper does not say so, and in the official code they are
      constant. A confidence equal to the threshold is enough; the paper wants more.
    - Labeled, weak and strong views run through the network one after the other, not concatenated, so that two weights of
      0 are supervised training bit for bit (with normalizations that keep no batch statistics).
    """

    partner: ClassVar[str] = "proxyfl"

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, least confidence of a pseudo-label"
    )
    contrast_weight: float = Field(1.0, ge=0, description="beta, weight of the contrastive loss")
    prior_decay: float = Field(
        0.99,
        ge=0,
        lt=1,
        description="share of the old prior that stays in each round; 0.99 in the official code, 0 in the paper",
    )
    variant: Literal["code", "paper"] = Field(
        "code", description="whether the losses are the official code's or the paper's equations"
    )
    labeler: Labeler = Field(
        "received",
        description="which model gives pseudo-labels and candidates: the client's own, as it trains (local), the model "
        "that it received in this round, which stays as it is (received, as in the paper), or the client's own if it "
        "holds a label and the received one if not (local_if_labeled)",
    )

    def can_learn(self, num_labeled: int) -> bool:
        """Say yes to a client without labels too, unless neither unlabeled loss has a weight."""
        return super().can_learn(num_labeled) or self.contrast_weight > 0

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: both views are trained on, and the labeler looks at the weak view beside that."""
        return num_labeled + num_unlabeled * (2 + FORWARD)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Return the classifier, with two linear layers beside it unless the variant is the paper's.

        Raises:
            InputError: The model has no proxies, because it does not end in a linear layer.
        """
        classifier = build()
        if not isinstance(classifier.head, nn.Linear):
            raise InputError(
                "model.kind",
                "does not end in a linear layer, whose rows are the proxies of method 'proxyfl'",
                "take another model",
            )
        return classifier if self.variant == "paper" else WithProxyHeads(classifier)

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the classifier without the two linear layers."""
        return _classifier_in(network)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the prior at the server, where every client counts alike."""
        return (*super().slots(), Slot(PRIOR, "server", Merge(weight="uniform")))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start with a prior of 1/C for every class."""
        if name != PRIOR:
            return super().init_slot(name, fresh)
        num_classes = fresh.spec.num_classes
        return {"probs": torch.full((num_classes,), 1 / num_classes, device=fresh.device)}

    def begin(self, learner: Learner) -> None:
        """Start to count the classes that the client learns from."""
        learner.scratch[COUNTS] = torch.zeros_like(learner.state[PRIOR]["probs"])

    def after_step(self, learner: Learner, batch: Batch, loss: Loss) -> None:
        """Count the labels and the accepted pseudo-labels of the step."""
        counts = learner.scratch[COUNTS]
        assert loss.pseudo_labels is not None
        assert loss.accepted is not None
        counts.index_add_(0, batch.labels, torch.ones_like(batch.labels, dtype=counts.dtype))
        counts.index_add_(0, loss.pseudo_labels, loss.accepted.to(counts.dtype))

    def end(self, learner: Learner) -> None:
        """Move the prior that goes back to the server towards the client's shares."""
        prior = learner.state[PRIOR]
        prior["probs"] = next_prior(prior["probs"], learner.scratch[COUNTS], self.prior_decay)

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(CE(c, p(strong))) + beta L_ICPL, c = argmax q, q of the received model.

        The first mean is over confident images in the paper, and over all images with 0 for the others in the code.

        Reference: equations 3 to 10.
        """
        classifier = _classifier_in(network)
        weak, strong = batch.unlabeled
        # The labeled batch comes first and alone.
        supervised, of_labeled = _learn_labels(classifier, batch)
        # Both models look at the weak views: q and p, (B, C).
        received = self.guess(network, weak, state)
        weak_logits, of_weak = classifier.logits_and_features(weak)
        own = widen_half_precision(weak_logits).detach().softmax(1)
        strong_logits, of_strong = classifier.logits_and_features(strong)
        # The received model's label counts if the received model is confident; in the code, if either model is.
        confidence, pseudo_labels = received.max(1)
        is_confident = confidence >= self.threshold
        if self.variant == "code":
            is_confident |= own.max(1).values >= self.threshold
        each = F.cross_entropy(strong_logits, pseudo_labels, reduction="none")
        # The class sets (B, C), and the contrastive loss of each unlabeled view.
        sets = class_sets(received, state[PRIOR]["probs"], is_confident)
        labeled = Rows(of_labeled, F.one_hot(batch.labels, sets.shape[1]).bool(), batch.labeled_ids)
        seen = Rows(of_weak, sets, batch.unlabeled_ids)
        if self.variant == "paper":
            unlabeled = mean_where(each, is_confident)
            proxies, weights = proxies_of(classifier), candidate_weights(own, sets, is_confident)
            contrast = contrast_loss(seen, weights @ proxies, labeled)
            contrast_mean = mean_where(contrast, is_confident) + mean_where(contrast, ~is_confident)
        else:
            unlabeled = mean_where(each, is_confident, of_all=True)
            heads = with_proxy_heads(network)
            proxies, weights = heads.proxies(), candidate_weights(received, sets, is_confident)
            both = seen.and_also(Rows(of_strong, sets, batch.unlabeled_ids))
            contrast = contrast_loss(
                both.mapped(heads.embed_features),
                (weights @ proxies).repeat(2, 1),
                labeled.mapped(heads.embed_features),
                least_similarity=LEAST_SIMILARITY,
            )
            contrast_mean = mean_where(contrast, torch.ones_like(contrast, dtype=torch.bool))
        total = supervised + self.unlabeled_weight * unlabeled
        total = total + self.contrast_weight * contrast_mean
        candidates = sets[~is_confident].sum(1, dtype=received.dtype)
        numbers = {"contrast": contrast_mean.detach(), "candidates": candidates.mean()}
        return Loss(total, pseudo_labels, is_confident.to(received.dtype), numbers=numbers)


def next_prior(prior: Tensor, counts: Tensor, decay: float) -> Tensor:
    """Return decay prior + (1 - decay) counts / sum(counts), (C,); the prior if nothing was counted.

    Args:
        prior: The prior that a client received, (C,).
        counts: Labels and accepted pseudo-labels of each class at the client, (C,).
        decay: Share of the old prior that stays.

    Reference: equation 5; the decay is the official code's.
    """
    total = counts.sum()
    return torch.where(total > 0, torch.lerp(counts / total.clamp(min=1e-12), prior, decay), prior)


def _learn_labels(classifier: Classifier, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the labeled batch's cross-entropy, 0 if it is empty, and its features (B, width)."""
    (images,) = batch.labeled
    if len(images) == 0:
        return images.new_zeros(()), images.new_zeros(0, classifier.width)
    logits, features = classifier.logits_and_features(images)
    return F.cross_entropy(logits, batch.labels), features


def _classifier_in(network: nn.Module) -> Classifier:
    inner = network.classifier if isinstance(network, Projected) else network
    assert isinstance(inner, Classifier)
    return inner
