"""MoCo v2.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020, arXiv:1911.05722.
Its second version: Chen et al., "Improved Baselines with Momentum Contrastive Learning", arXiv:2003.04297.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.bank import counting_entries, empty_bank, write
from fedssl.methods.base import FORWARD, Batch, Fresh, Loss, Progress
from fedssl.methods.functional import call_with, ema_update, snapshot
from fedssl.methods.projection import Encoder, spread
from fedssl.methods.self_supervised import SelfSupervised, projected


class MoCo(SelfSupervised):
    """Recognize an image's key among the keys of a queue; a slowly moving encoder makes the keys.

    A step, in this order: the network makes queries of the first views. The key encoder moves towards the network, and
    makes keys of the second views, outside the graph. Each query is compared with its own key and with the negatives.
    The keys join the queue, where they replace the oldest. Then the optimizer moves the network.

    In a federation, the trunk and both heads travel: one model's traffic, plus the projection head. The queue is the
    client's own and never travels, because keys tell about images. The key encoder starts each round from the received
    weights, stays with the client, or is averaged by the server, which adds the traffic of the encoder. A step costs one
    pass with gradients and one without for each image.

    By default, queue and key encoder start anew in each round. A client may keep its queue, and then drops keys that are
    too many rounds old (`max_key_age`), because another encoder made them. Let such a client keep its key encoder too.
    With a kept queue and a new key encoder, the embeddings of digits collapsed within three rounds (the number
    ``spread`` fell from 0.33 to 0.01): the network learns to tell this round's keys from older keys, and nothing else.

    Negatives are the queue's keys of other images. The paper fills the queue with random vectors at first; here a place
    is empty until a key is in it. While the queue has empty places, the batch's keys of other images are negatives too,
    so that the first step learns something. A client with one image has no negatives; its loss is 0. Deviation: a key of
    the query's own image, from an earlier step, is no negative. The paper's queue is shorter than a pass over its images
    and holds none; a client's queue is longer.

    Batch normalization tells a batch's keys and queries apart by the batch's statistics, so the paper shuffles the keys
    over its devices. On one device a shuffle alone changes nothing. Use a model with group normalization, the default,
    or cut the keys into `key_parts`, each with statistics of its own.

    The paper's widths are 2048 and 128, its queue holds 65,536 keys, and its momentum is 0.999.
    """

    temperature: float = Field(0.2, gt=0, description="tau, by which similarities are divided")
    momentum: float = Field(
        0.99, ge=0, le=1, description="m, decay of the key encoder, per local step"
    )
    queue_size: int = Field(512, ge=1, description="K, number of keys in the queue")
    queue_scope: Literal["reset", "client"] = Field(
        "reset",
        description="whether the queue starts each round empty (reset) or stays with the client",
    )
    key_encoder_scope: ChangingScope = Field(
        "reset",
        description="where the key encoder lives: it starts each round from the global model (reset), stays with its "
        "client, or is averaged by the server",
    )
    max_key_age: int = Field(
        5,
        ge=0,
        description="rounds after which a kept key is no negative any more; 0: only keys of the same round are negatives",
    )
    key_parts: int = Field(
        1,
        ge=1,
        description="parts into which each batch of keys is cut in random order, for models with batch normalization",
    )

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: a pass with gradients for queries, and a pass without for keys."""
        return num_unlabeled * (1 + FORWARD)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the queue and the key encoder in the scopes that the experiment says."""
        return (Slot("queue", self.queue_scope), Slot("key_encoder", self.key_encoder_scope))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start the key encoder at the network's weights, and the queue empty.

        The queue is a bank (`fedssl.methods.bank`) of ``keys`` (K, dim), unit vectors or zeros.
        """
        if name == "key_encoder":
            return snapshot(Encoder(projected(fresh.network)))
        dim = self.projection[-1]
        return empty_bank({"keys": torch.zeros(self.queue_size, dim, device=fresh.device)})

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return -mean log(exp(q k / tau) / (exp(q k / tau) + sum_negatives exp(q n / tau))).

        Reference: the first paper, equation 1 and Algorithm 1.
        """
        first, second = batch.unlabeled
        ids, queue = batch.unlabeled_ids, state["queue"]
        encoder = Encoder(projected(network))
        queries = encoder(first)
        key_encoder = {name: tensor.clone() for name, tensor in state["key_encoder"].items()}
        ema_update(key_encoder, encoder, self.momentum)
        keys = self.make_keys(encoder, key_encoder, second, batch.generator)
        # Which keys are negatives of which query, (B, B + K): those of other images that are not too old.
        is_valid = counting_entries(queue, progress.round, self.max_key_age)
        from_batch = (~is_valid.all()).expand(len(ids))
        is_negative = torch.cat([from_batch, is_valid]) & (
            ids.unsqueeze(1) != torch.cat([ids, queue["images"]])
        )
        candidates = torch.cat([keys, queue["keys"]])
        total = info_nce(queries, keys, candidates, is_negative, self.temperature)
        numbers = {
            "similarity": (queries.detach() * keys).sum(1).mean(),
            "spread": spread(keys),
            "negatives": is_negative.sum(1).to(keys.dtype).mean(),
        }
        updates = {
            "queue": write(queue, {"keys": keys}, ids, progress.round),
            "key_encoder": key_encoder,
        }
        return Loss(total, updates=updates, numbers=numbers)

    @torch.no_grad()
    def make_keys(
        self, encoder: Encoder, weights: Tensors, images: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the keys of images, shape (B, dim), outside the graph and in the order of the images.

        Args:
            encoder: Its code makes the keys.
            weights: The key encoder's weights.
            images: Normalized views, shape (B, C, H, W).
            generator: Source of the order in which images are cut into parts.
        """
        if self.key_parts == 1:
            return call_with(encoder, weights, images)
        order = torch.randperm(len(images), generator=generator, device=images.device)
        parts = images[order].tensor_split(min(self.key_parts, len(images)))
        shuffled = torch.cat([call_with(encoder, weights, part) for part in parts])
        return torch.empty_like(shuffled).index_copy_(0, order, shuffled)


def info_nce(
    queries: Tensor, keys: Tensor, candidates: Tensor, is_negative: Tensor, temperature: float
) -> Tensor:
    """Return the cross-entropy of picking each query's own key among the negatives, mean over the queries.

    A query without negatives has a loss of 0.

    Args:
        queries, keys: Unit vectors, shape (B, dim); row i of `keys` is the positive of row i of `queries`.
        candidates: Unit vectors, shape (M, dim); no gradient flows into them.
        is_negative: Whether a candidate is a negative of a query, bool (B, M).
        temperature: tau.

    Reference: He et al. (MoCo), equation 1; van den Oord et al., arXiv:1807.03748, equation 4.
    """
    with torch.autocast(queries.device.type, enabled=False):
        positive = (queries * keys).sum(1, keepdim=True)
        others = queries @ candidates.detach().T
    others = others.masked_fill(~is_negative, -torch.inf)
    logits = torch.cat([positive, others], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros_like(logits[:, 0], dtype=torch.int64))
