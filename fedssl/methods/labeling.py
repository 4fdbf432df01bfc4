"""The model that gives pseudo-labels: the client's own, or the model that the client received.

A client's own model drifts towards the client's classes within a round, and its pseudo-labels drift with it. The model
that the client received is the cohort's, and its pseudo-labels stay the same for the whole round. A client with labels corrects its
own model in every step; a client without labels has nothing else to learn from than what its model says.

Reference: ProxyFL (CVPR 2026, arXiv:2602.21078) compares FixMatch under both labelers; SAGE (CVPR 2025,
arXiv:2503.13227) combines both; SemiFL (NeurIPS 2022, arXiv:2106.01432) labels by the received model, once a round.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import Slot, State, Tensors
from fedssl.data.shard import Shard
from fedssl.methods.base import FORWARD, Fresh, SemiSupervised
from fedssl.methods.functional import call_with, predict, snapshot, widen_half_precision
from fedssl.models.modes import evaluation_mode

RECEIVED = "received"
"""The name of the slot that holds the received weights."""

Labeler = Literal["local", "received", "local_if_labeled"]
"""The model that gives a client its pseudo-labels: its own, the received one, or its own if it holds a label."""


class PseudoLabeling(SemiSupervised):
    """A method that learns from the labels that a model guesses for unlabeled images.

    A method with state of its own adds its slots to the slots of this class, and leaves the other slots to it.
    """

    is_abstract: ClassVar[bool] = True
    group: ClassVar[str] = "pseudo-labels"

    labeler: Labeler = Field(
        "local",
        description="which model gives pseudo-labels: the client's own, as it trains (local), the model that it "
        "received in this round, which stays as it is (received), or the client's own if it holds a label and the "
        "received one if not (local_if_labeled)",
    )

    def images_per_step(self, num_labeled: int, num_unlabeled: int) -> float:
        """Return the work of a step: the weak view is labeled without a gradient, the strong view is trained on."""
        return num_labeled + num_unlabeled * (1 + FORWARD)

    def slots(self) -> tuple[Slot, ...]:
        """Hold the received weights for the round if they may give pseudo-labels."""
        return () if self.labeler == "local" else (Slot(RECEIVED, "reset"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return a copy of the weights with which the round begins, or nothing if the client labels by its own model."""
        if name != RECEIVED:
            return super().init_slot(name, fresh)
        return {} if self.is_local_with(len(_held(fresh).labeled)) else snapshot(fresh.network)

    def is_local_with(self, num_labeled: int) -> bool:
        """Say whether a client with so many labels takes the pseudo-labels of its own model, and not those of the received one."""
        return self.labeler == "local" or (self.labeler == "local_if_labeled" and num_labeled > 0)

    def labels_itself(self, state: State) -> bool:
        """Say whether the client with this state takes the pseudo-labels of its own model; it holds received weights only if not."""
        return self.labeler == "local" or not state[RECEIVED]

    def guess(self, network: nn.Module, images: Tensor, state: State) -> Tensor:
        """Return the labeler's class probabilities of images, shape (B, num_classes), outside the graph.

        The client's own model predicts in its current mode. The received model predicts as `predict_received` says.

        Args:
            network: The module being trained; its code runs with the labeler's weights.
            images: Normalized views, shape (B, C, H, W).
            state: The method's state, which holds the received weights.
        """
        if self.labels_itself(state):
            return predict(network, images)
        return predict_received(network, images, state)


def _held(fresh: Fresh) -> Shard:
    assert fresh.shard is not None, "the state of a round is made at the client"
    return fresh.shard


class BothLabelers(SemiSupervised):
    """A method that looks at what both models, the client's own and the received one, predict for an unlabeled image.

    The received weights are held for the round; `predict_received` predicts with them.
    """

    is_abstract: ClassVar[bool] = True
    group: ClassVar[str] = "pseudo-labels"

    def slots(self) -> tuple[Slot, ...]:
        """Hold the received weights for the round."""
        return (Slot(RECEIVED, "reset"),)

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return a copy of the weights with which the round begins."""
        return snapshot(fresh.network)


@torch.no_grad()
def predict_received(network: nn.Module, images: Tensor, state: State) -> Tensor:
    """Return the received model's class probabilities of images, shape (B, num_classes), outside the graph.

    The received model predicts in evaluation mode, with its own running statistics and without dropout, and nothing
    writes to it.

    Args:
        network: The module being trained; its code runs with the received weights.
        images: Normalized views, shape (B, C, H, W).
        state: The method's state, whose slot `RECEIVED` holds the received weights.
    """
    with evaluation_mode(network):
        logits = call_with(network, state[RECEIVED], images)
    return widen_half_precision(logits).softmax(1)
