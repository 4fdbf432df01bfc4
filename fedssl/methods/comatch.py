"""CoMatch.

Li, Xiong & Hoi, "CoMatch: Semi-supervised Learning with Contrastive Graph Regularization", ICCV 2021,
arXiv:2011.11183.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.bank import counting_entries, empty_bank, write
from fedssl.methods.base import FORWARD, Batch, Fresh, Loss, Progress, SemiSupervised, View, Views
from fedssl.methods.functional import (
    align_distribution,
    masked_cross_entropy,
    widen_half_precision,
)
from fedssl.methods.projection import Projected, projection_head, unit_vectors
from fedssl.methods.self_supervised import check_widths, projected
from fedssl.models.base import Classifier


class CoMatch(SemiSupervised):
    """Smooth pseudo-labels by the labels of similar images, and let images of similar pseudo-labels attract each other.

    A step predicts the classes of the weak views, and aligns the predictions to even classes by the mean of the last
    batches. A memory bank holds embeddings and predictions of the last batches. The aligned predictions move a little
    towards the predictions of similar images in the bank. The results are the pseudo-labels of the first strong view,
    if they are confident, as in FixMatch. They also say which images of the batch belong together (the pseudo-label
    graph). The similarities of the two strong views' embeddings learn this graph.

    In a federation, the network and its projection head travel. The bank never leaves the client. A client either
    empties it each round (reset) or keeps it and leaves out entries that are too many rounds old (`max_entry_age`),
    because another encoder made them. The mean prediction is the cohort's by default, because a skewed client's own
    predictions would be wrong if they were aligned to even classes. In the first steps, the bank holds too few entries
    and nothing is smoothed: by default two steps of 32 labeled images, or five steps of 8. A client whose bank is emptied,
    forgotten or too old begins so each time, and a round too short to fill the share `bank_fill` is never smoothed.
    Clients without labels have a bank of predictions only.

    The bank holds predictions before they are smoothed, because smoothed predictions would feed themselves. The bank's
    labeled rows are one-hot.

    A small client shows an image several times in a batch, and finds it again in the bank. Deviation: copies of an image
    belong together in the graph, whatever their pseudo-labels are, so they never push each other apart. An image's own
    entries, its label among them, are not its neighbors in the bank: it would learn from its own last guesses. The
    paper's bank holds 2,560 of 50,000 images, so an image rarely meets itself there, and neither the paper nor the
    official code says what happens then. Without such copies, the result is the paper's.

    Further deviations: the four views run through the network one after the other, not concatenated, so that two weights of 0
    are supervised training bit for bit (with normalizations that keep no batch statistics). The official bank starts
    with zeros, which count as entries of no class; ours counts only what was written. So the official code must wait for
    a full bank, and smooths from the seventh step of hundreds of thousands on. Ours can smooth from a share of a full bank
    on (`bank_fill`), because a round has few steps. The official
    code's second strong view is color jitter instead of RandAugment; `second_view` names ours. The projection head has
    a ReLU instead of a LeakyReLU. The paper's average of the weights for evaluation is the experiment's.
    """

    group: ClassVar[str] = "pseudo-labels"

    threshold: float = Field(
        0.95, ge=0, le=1, description="tau, least confidence of a pseudo-label"
    )
    contrast_weight: float = Field(
        1.0,
        ge=0,
        description="lambda_ctr, weight of the contrastive loss on the pseudo-label graph",
    )
    graph_threshold: float = Field(
        0.8, ge=0, le=1, description="T, least similarity of two pseudo-labels that makes an edge"
    )
    temperature: float = Field(
        0.2, gt=0, description="t, by which similarities of embeddings are divided"
    )
    smoothing: float = Field(
        0.1, ge=0, le=1, description="1 - alpha, share of the bank's predictions in pseudo-labels"
    )
    second_view: View = Field(
        "strong", description="the second strong view of unlabeled images, which only embeds"
    )
    projection: tuple[int, ...] = Field(
        (128, 64),
        min_length=1,
        description="width of each layer of the projection head; the last is the dimension of the embeddings",
    )
    bank_size: int = Field(
        1280,
        ge=1,
        description="K, number of entries in the memory bank; by default 5 batches of 32 labeled and 7 times as many "
        "unlabeled images, as in the paper, whose batches are twice as large",
    )
    bank_fill: float = Field(
        0.25,
        ge=0,
        le=1,
        description="share of the bank that must be filled before it smooths predictions",
    )
    bank_scope: Literal["reset", "client"] = Field(
        "client",
        description="whether the bank starts each round empty (reset) or stays with the client",
    )
    max_entry_age: int = Field(
        5,
        ge=0,
        description="rounds after which a kept entry does not count any more; 0: only entries of the same round count",
    )
    alignment_window: int = Field(
        32,
        ge=1,
        description="number of last batches whose mean prediction is aligned to even classes",
    )
    alignment_scope: ChangingScope = Field(
        "server",
        description="where the mean predictions of the last batches live: they start anew each round (reset), stay "
        "with the client, or are averaged by the server",
    )

    @field_validator("projection")
    @classmethod
    def _widths_are_positive(cls, widths: tuple[int, ...]) -> tuple[int, ...]:
        return check_widths(widths)

    def views(self) -> Views:
        """Ask for a weak view of the labeled batch, one weak and two strong views of the unlabeled batch."""
        return Views(("weak",), ("weak", "strong", self.second_view), self.unlabeled_ratio)

    def can_learn(self, num_labeled: int) -> bool:
        """Say yes to a client without labels too, unless neither unlabeled loss has a weight."""
        return super().can_learn(num_labeled) or self.contrast_weight > 0

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: the weak view needs no gradient, the two strong views need gradients."""
        return num_labeled + num_unlabeled * (2 + FORWARD)

    def network(self, build: Callable[[], Classifier]) -> nn.Module:
        """Put the projection head beside the classifier's own head."""
        classifier = build()
        return Projected(classifier, projection_head(classifier.width, self.projection))

    def classifier(self, network: nn.Module) -> nn.Module:
        """Return the classifier without the projection head."""
        return projected(network).classifier

    def representations(self, network: nn.Module) -> Mapping[str, Callable[[Tensor], Tensor]]:
        """Return the classifier's features, ``"backbone"``, and the projection head's first layer, ``"projection"``."""
        return projected(network).representations()

    def slots(self) -> tuple[Slot, ...]:
        """Keep the bank and the mean predictions in the scopes that the experiment says."""
        return (Slot("bank", self.bank_scope), Slot("alignment", self.alignment_scope))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start with an empty bank and with no mean predictions.

        The memory bank is a bank (`fedssl.methods.bank`) of ``embeddings`` (K, dim) and ``probs`` (K, C). The alignment's
        tensors: ``recent`` (window, C), the last batches' mean predictions, the latest last, and ``is_filled`` (window,),
        1 for a row that holds one. Both are zeros at first, so that the ratio of their sums is the mean, also after the
        server averaged them.
        """
        num_classes, device = fresh.spec.num_classes, fresh.device
        if name == "alignment":
            recent = torch.zeros(self.alignment_window, num_classes, device=device)
            return {"recent": recent, "is_filled": torch.zeros_like(recent[:, 0])}
        embeddings = torch.zeros(self.bank_size, self.projection[-1], device=device)
        probs = torch.zeros(self.bank_size, num_classes, device=device)
        return empty_bank({"embeddings": embeddings, "probs": probs})

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(weak)) + lambda_u mean(1[max q >= tau] H(q, p(strong))) + lambda_ctr L_ctr.

        q is the smoothed prediction on the weak view. Gradients flow through the labeled view's logits, the first strong
        view's logits, and both strong views' embeddings.

        Reference: equations 1 to 3 and 7 to 11, Algorithm 1.
        """
        network = projected(network)
        weak, first, second = batch.unlabeled
        bank = state["bank"]
        supervised, labeled_embeddings = self._learn_labels(network, batch)
        with torch.no_grad():
            logits, embeddings = classify_and_embed(network, weak)
            guesses = widen_half_precision(logits).softmax(1)
            alignment = append(state["alignment"], guesses.mean(0))
            aligned = align_to_even(guesses, alignment)
            is_valid = counting_entries(bank, progress.round, self.max_entry_age)
            # Which entries are neighbors of which image, (mu B, K): those of other images.
            is_neighbor = is_valid & (batch.unlabeled_ids.unsqueeze(1) != bank["images"])
            neighbors = predict_by_bank(embeddings, bank, is_neighbor, self.temperature)
            is_ready = is_valid.sum() >= self.bank_fill * self.bank_size
            smooths = (is_ready & is_neighbor.any(1)).unsqueeze(1)
            probs = torch.where(smooths, torch.lerp(aligned, neighbors, self.smoothing), aligned)
            confidence, pseudo_labels = probs.max(1)
            mask = (confidence >= self.threshold).to(confidence.dtype)
            graph = pseudo_label_graph(probs, batch.unlabeled_ids, self.graph_threshold)
            labels = F.one_hot(batch.labels, probs.shape[1]).to(probs.dtype)
        logits, anchors = classify_and_embed(network, first)
        unlabeled = masked_cross_entropy(logits, probs, mask)
        contrast = graph_loss(graph, anchors, network.embed(second), self.temperature)
        total = supervised + self.unlabeled_weight * unlabeled + self.contrast_weight * contrast
        new = {
            "embeddings": torch.cat([embeddings, labeled_embeddings]),
            "probs": torch.cat([aligned, labels]),
        }
        ids = torch.cat([batch.unlabeled_ids, batch.labeled_ids])
        updates = {"bank": write(bank, new, ids, progress.round), "alignment": alignment}
        numbers = {
            "contrast": contrast.detach(),
            "edges": (graph > 0).sum(1).to(probs.dtype).mean(),
            "bank_fill": is_valid.to(probs.dtype).mean(),
        }
        return Loss(total, pseudo_labels, mask, updates, numbers)

    def _learn_labels(self, network: Projected, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the labeled batch's cross-entropy, 0 if it is empty, and its embeddings (B, dim) outside the graph."""
        (images,) = batch.labeled
        if len(images) == 0:
            return images.new_zeros(()), images.new_zeros(0, self.projection[-1])
        logits, features = network.classifier.logits_and_features(images)
        with torch.no_grad():
            embeddings = unit_vectors(network.projection(features))
        return F.cross_entropy(logits, batch.labels), embeddings


def classify_and_embed(network: Projected, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits (B, C) and the embeddings (B, dim) of normalized images, from one pass through the trunk."""
    logits, features = network.classifier.logits_and_features(images)
    return logits, unit_vectors(network.projection(features))


def append(alignment: Tensors, mean: Tensor) -> Tensors:
    """Return the mean predictions of the last batches with a new one, shape (C,), in the place of the oldest.

    All values of honest clients lie in [0, 1]. Values beyond are cut off, because a client that lies can send any number
    to the server: a sum of `is_filled` below 0 would switch off every client's alignment, and infinite means would make
    NaN of every client's predictions.
    """
    recent, is_filled = (alignment[name].clamp(0, 1) for name in ("recent", "is_filled"))
    return {
        "recent": torch.cat([recent[1:], mean.unsqueeze(0)]),
        "is_filled": torch.cat([is_filled[1:], torch.ones_like(is_filled[:1])]),
    }


def align_to_even(probs: Tensor, alignment: Tensors) -> Tensor:
    """Return predictions (B, C), divided by the mean prediction of the last batches and normalized.

    Reference: Li et al. (CoMatch), section 3.2 and official code, where this batch's mean is one of the means.
    """
    marginal = alignment["recent"].sum(0) / alignment["is_filled"].sum()
    even = torch.full_like(marginal, 1 / len(marginal))
    return align_distribution(probs, even, marginal)


def predict_by_bank(
    embeddings: Tensor, bank: Tensors, is_neighbor: Tensor, temperature: float
) -> Tensor:
    """Return the bank's mean prediction, weighed by exp(z k / t), for each image, shape (B, C).

    Only an image's neighbors count. The row of an image without neighbors means nothing.

    Args:
        embeddings: Unit vectors, shape (B, dim).
        bank: The bank, as `CoMatch.init_slot` makes it.
        is_neighbor: Which entries of the bank count for which image, bool (B, K).
        temperature: t.

    Reference: Li et al. (CoMatch), equations 6 and 7.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        logits = embeddings @ bank["embeddings"].T / temperature
        lowest = torch.finfo(logits.dtype).min
        return logits.masked_fill(~is_neighbor, lowest).softmax(1) @ bank["probs"]


def pseudo_label_graph(probs: Tensor, ids: Tensor, threshold: float) -> Tensor:
    """Return the similarities q_i q_j of pseudo-labels as a graph with edges from `threshold` on, shape (B, B).

    An image has the similarity 1 with itself, and so have copies of one image. Rows sum to 1.

    Args:
        probs: Pseudo-labels, shape (B, C).
        ids: Image of each row, int64 (B,).
        threshold: Similarity, in [0, 1], below which there is no edge.

    Reference: Li et al. (CoMatch), equation 8.
    """
    with torch.autocast(probs.device.type, enabled=False):
        similarities = probs @ probs.T
    itself = ids.unsqueeze(0) == ids.unsqueeze(1)
    similarities = similarities.masked_fill(itself, 1)
    edges = similarities.masked_fill(similarities < threshold, 0)
    return edges / edges.sum(1, keepdim=True)


def graph_loss(graph: Tensor, first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Return -mean_i sum_j Q_ij ln(S_ij + 1e-7), the cross-entropy of the embedding graph S to the graph Q.

    S_ij is exp(z_i z'_j / t), normalized over j. No gradient flows into Q.

    Args:
        graph: Q, as `pseudo_label_graph` makes it, shape (B, B).
        first, second: Unit vectors z and z' of the two strong views, shape (B, dim).
        temperature: t.

    Reference: Li et al. (CoMatch), equations 9 to 11; the 1e-7 is from the official code.
    """
    with torch.autocast(first.device.type, enabled=False):
        similarities = (first @ second.T / temperature).softmax(1)
    return -(graph.detach() * (similarities + 1e-7).log()).sum(1).mean()
