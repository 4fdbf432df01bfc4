"""What FedEMA and FedU share: a client that keeps weights of its own, and how far they are from the global model.

Zhuang, Wen & Zhang, "Divergence-aware Federated Self-Supervised Learning" (FedEMA), ICLR 2022, arXiv:2204.04385.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import ChangingScope, Slot, State, Tensors
from fedssl.methods.base import Batch, Fresh, Learner, Loss, Progress
from fedssl.methods.byol import BYOL
from fedssl.methods.projection import Encoder
from fedssl.methods.self_supervised import projected

Divergence = Literal["received", "training"]
"""How far a client is from the global model: the distance of its last encoder to the received one, or the change of the
encoder by the client's last training."""


class DivergenceAware(BYOL):
    """BYOL whose clients begin a round from weights of their own as well as from the received model.

    The divergence d decides what a client takes from each. In a client's first round, its own weights are the received
    weights and d is 0. Running statistics and counts always come from the received model, and so does the classes' head.
    A client's own weights are those of its last step, also if it sends a moving average (``train.ema_decay``).
    """

    is_abstract: ClassVar[bool] = True

    target_scope: ChangingScope = Field(
        "client",
        description="where the target lives: it stays with its client, starts each round from the global model (reset), "
        "or is averaged by the server",
    )
    decay_rises: bool = Field(
        False,
        description="whether the target's decay rises to 1 over the phase, as in BYOL; false: it stays, as in the official "
        "code of both systems",
    )
    divergence: Divergence = Field(
        "received",
        description="d; received: Euclidean distance between the received encoder and the client's last one; training: change "
        "of the encoder by the client's last training, as in the official code",
    )

    @abstractmethod
    def begin_from(self, learner: Learner, divergence: float) -> float:
        """Put a client's own weights into the network that holds the received ones; return the share of its own weights.

        Args:
            learner: Holds the network, and the client's own weights in the slot ``own``.
            divergence: d, at least 0; it is 0 in the client's first round of a phase.
        """

    def own_parameters(self, network: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters that a client keeps between its rounds, by name: those of encoder and predictor."""
        return encoder_parameters(network) | predictor_parameters(network)

    def slots(self) -> tuple[Slot, ...]:
        """Keep the client's own weights, and numbers about its last round, beside BYOL's target."""
        return (*super().slots(), Slot("own", "client"), Slot("last", "client"))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Start a client's own weights at the received ones, with a divergence of 0."""
        if name == "own":
            own = self.own_parameters(fresh.network)
            return {key: parameter.detach().clone() for key, parameter in own.items()}
        if name == "last":
            names = ("round", "change", "divergence", "own_share")
            return {key: number(0.0, fresh.device) for key in names}
        return super().init_slot(name, fresh)

    @torch.no_grad()
    def begin(self, learner: Learner) -> None:
        """Measure d, and make the network of the round from the received weights and the client's own."""
        last, encoder = learner.state["last"], encoder_parameters(learner.network)
        is_change = self.divergence == "training"
        divergence = last["change"] if is_change else distance(encoder, learner.state["own"])
        last["divergence"].copy_(divergence)
        last["own_share"].fill_(self.begin_from(learner, float(divergence)))
        if is_change:
            learner.scratch["encoder"] = {key: p.clone() for key, p in encoder.items()}

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return BYOL's loss; d and the share of the client's own weights are recorded beside it."""
        loss = super().loss(network, batch, state, progress)
        measured = {name: state["last"][name] for name in ("divergence", "own_share")}
        return replace(loss, numbers={**loss.numbers, **measured})

    @torch.no_grad()
    def end(self, learner: Learner) -> None:
        """Keep the trained weights for the client's next round."""
        for key, parameter in self.own_parameters(learner.network).items():
            learner.state["own"][key].copy_(parameter)
        last = learner.state["last"]
        last["round"].fill_(learner.progress.round)
        if self.divergence == "training":
            encoder = encoder_parameters(learner.network)
            last["change"].copy_(change(learner.scratch["encoder"], encoder))


def encoder_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of trunk and projection head, by their names in the network."""
    return dict(Encoder(projected(network)).named_parameters())


def predictor_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of BYOL's predictor, by their names in the network."""
    return {key: p for key, p in network.named_parameters() if key.startswith("predictor.")}


def distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensor:
    """Return the Euclidean distance of weights, in double precision; names that only `second` has do not count."""
    squares = [(tensor - second[key]).double().square().sum() for key, tensor in first.items()]
    return torch.stack(squares).sum().sqrt()


def change(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
    """Return the mean, over the convolutions' kernels, of the distance that each has moved, in double precision.

    In an encoder without convolutions, the mean is over all tensors. Deviation: the official code leaves out the 1x1
    convolutions of ResNet's shortcuts, because it finds kernels by their names.

    Args:
        before, after: Weights of an encoder by name, of the same names.

    Reference: official code (EasyFL, ``_calculate_divergence``).
    """
    kernels = [key for key, tensor in before.items() if tensor.dim() == 4] or list(before)
    moved = [distance({key: before[key]}, {key: after[key]}) for key in kernels]
    return torch.stack(moved).mean()


def number(value: float, device: torch.device) -> Tensor:
    """Return a number as a slot holds it: a scalar in double precision."""
    return torch.tensor(value, dtype=torch.float64, device=device)
