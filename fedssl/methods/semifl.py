"""SemiFL: a client labels all its images once a round, with the model as it was received.

Diao, Ding & Tarokh, "SemiFL: Semi-Supervised Federated Learning for Unlabeled Clients with Alternate Training", NeurIPS
2022, arXiv:2106.01432.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import FORWARD, Batch, Fresh, Learner, Loss, Method, Pools, Progress, Views
from fedssl.methods.functional import draw_mixing_shares, predict
from fedssl.models.modes import evaluation_mode

LABELS = "labels"
"""Slot of the round's labels: the class of every example of the shard, and the confidence in it."""


class SemiFL(Method):
    """Label all images once a round with the received model, train on the confident ones, and mix them with any others.

    The confident images are the fix set. Each batch of the fix set is mixed with as many images of the mix set, which are
    drawn with replacement from all images of the client. All labels are hard, and stay the same for the whole round. A
    client without a confident image sits the round out. An epoch is one pass over the fix set, so a client with more
    confident images takes more steps.

    SemiFL is this method at the clients together with settings: labels at the server, which trains on them by epochs of
    its own; a uniform mean; server momentum; momentum that clients keep; clipping; static batch normalization.
    `experiments/labels_at_server/semifl.toml` has them all.

    Deviations:

    - The official code ends each epoch with a smaller batch. Here all batches are full, so E epochs over F images in
      batches of B are ceil(E F / B) steps.
    - A label that a client was given counts as confident. SemiFL's clients have none.
    - Before each round, SemiFL measures the statistics of static batch normalization over the images of the server and of
      all clients, also of those that do not take part. This is a pass over the whole federation in every round, and no
      client could be absent. `server.statistics` offers the images of the round's clients, or those of the server.
    """

    group: ClassVar[str] = "pseudo-labels"

    threshold: float = Field(
        0.95, ge=0, le=1, description="least confidence of the label of an image in the fix set"
    )
    mix_weight: float = Field(1.0, ge=0, description="weight of the loss on mixed images")
    alpha: float = Field(
        0.75,
        ge=0,
        description="parameter of MixUp's Beta(alpha, alpha), one draw a batch; 0 mixes nothing",
    )

    def views(self) -> Views:
        """Ask for a weak view of the mix set, as labeled images, and a weak and a strong view of the fix set."""
        return Views(("weak",), ("weak", "strong"), ratio=1)

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: it trains on the strong views and on the mixed images, of any client."""
        return 2 * num_unlabeled

    def images_before_steps(self, num_labeled: int, num_examples: int) -> float:
        """Return the work of labeling all images."""
        return FORWARD * num_examples

    def slots(self) -> tuple[Slot, ...]:
        """Hold the labels of all examples for the round."""
        return (Slot(LABELS, "reset"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start without confidence in any label: classes and confidence, each of shape (n,)."""
        assert fresh.shard is not None, "the labels of a round live at the client"
        classes = torch.zeros_like(fresh.shard.labels)
        return {"classes": classes, "confidence": torch.zeros_like(classes, dtype=torch.float32)}

    def begin(self, learner: Learner) -> None:
        """Label a weak view of every example in evaluation mode; a label that the client was given stays."""
        labels, given = learner.state[LABELS], learner.shard.labels >= 0
        with evaluation_mode(learner.network):
            for ids, weak in learner.show("weak", name=LABELS):
                confidence, classes = predict(learner.network, weak).max(1)
                labels["confidence"][ids], labels["classes"][ids] = confidence.float(), classes
        labels["classes"][given] = learner.shard.labels[given]
        labels["confidence"][given] = 1

    def pools(self, learner: Learner) -> Pools:
        """Return all images with their labels, as the mix set, and the fix set; both are empty if no label is confident."""
        classes, confidence = learner.state[LABELS]["classes"], learner.state[LABELS]["confidence"]
        fixed = (confidence >= self.threshold).nonzero().squeeze(1)
        mixed = learner.shard.unlabeled if len(fixed) else fixed
        return Pools(mixed, fixed, targets=classes[mixed], replacement="labeled")

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return CE(y, p(strong)) + w (l CE(y, p(mixed)) + (1 - l) CE(y', p(mixed))), mixed = l weak + (1 - l) weak'.

        The weak and the strong view are of the fix set, with labels y; weak' and y' are of the mix set. One l is drawn
        from Beta(alpha, alpha) for the batch. It may be below 1/2, unlike MixMatch's. The two batches run through the
        network one after the other, so a batch normalization normalizes each by itself.
        """
        weak, strong = batch.unlabeled
        labels = state[LABELS]["classes"][batch.unlabeled_ids]
        fixed = F.cross_entropy(network(strong), labels)
        share = draw_mixing_shares(1, self.alpha, batch.generator).squeeze(0)
        logits = network(torch.lerp(batch.labeled[0], weak, share))
        own, other = F.cross_entropy(logits, labels), F.cross_entropy(logits, batch.labels)
        total = fixed + self.mix_weight * (share * own + (1 - share) * other)
        confident = (state[LABELS]["confidence"] >= self.threshold).float().mean()
        accepted = torch.ones_like(labels, dtype=torch.float32)
        return Loss(total, labels, accepted, numbers={"confident": confident})
