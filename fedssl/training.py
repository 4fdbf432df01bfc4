"""The local loop: what one client does with the weights it was sent."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedssl import rng
from fedssl.augment.policy import Augment
from fedssl.batches import BatchLoader
from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, Learner, Loss, Method, Progress, State, Views
from fedssl.metrics.pseudo_labels import PseudoLabelTally
from fedssl.registry import Section


class Train(Section):
    """The ``[train]`` section: optimization at a client, the same for every method."""

    local_steps: int | None = Field(
        None, ge=1, description="steps of a client in a round; 10 unless local_epochs is set"
    )
    local_epochs: float | None = Field(
        None,
        gt=0,
        description="passes over the client's examples in a round, instead of local_steps",
    )
    batch_size: int = Field(32, ge=1, description="B, labeled examples a step")
    lr: float = Field(0.05, gt=0, description="learning rate of SGD")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum, reset every round")
    nesterov: bool = Field(True, description="Nesterov's form of momentum")
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on every weight")
    schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine: lr cos(7 pi k / 16 K) over a phase, as in FixMatch"
    )
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; unset: any")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16: autocast")
    threads: int = Field(
        1, ge=1, description="threads of a client; part of the experiment, for sums round by it"
    )

    @model_validator(mode="after")
    def _check(self) -> "Train":
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("local_steps and local_epochs exclude each other; set one")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum above 0")
        return self

    def num_steps(self, shard: Shard, views: Views) -> int:
        """Return the steps of one round at a client.

        An epoch passes once over the labeled or the unlabeled examples, whichever takes more steps.
        """
        if self.local_epochs is None:
            return self.local_steps or 10
        passes = [len(shard.labeled) / self.batch_size if views.labeled else 0.0]
        if views.unlabeled:
            passes.append(len(shard.unlabeled) / (self.batch_size * views.ratio))
        return max(1, math.ceil(self.local_epochs * max(passes)))

    def lr_factor(self, fraction: float) -> float:
        """Return what multiplies a learning rate when a share of training is over.

        Reference: Sohn et al. (FixMatch), NeurIPS 2020, section 2.4.
        """
        if self.schedule == "cosine":
            return math.cos(7 * math.pi / 16 * fraction)
        return 1.0


@dataclass(frozen=True)
class FitReport:
    """What a client did in a round.

    Args:
        num_steps: Steps taken.
        loss: Mean of the total loss over the steps; NaN without steps.
        considered: Hidden-label examples that were shown, over all steps.
        accepted: Weight of the pseudo-labels accepted among them.
        right: Weight of the accepted ones that match the hidden truth.
        seconds: Time it took.
    """

    num_steps: int
    loss: float
    considered: float
    accepted: float
    right: float
    seconds: float


def fit(
    network: nn.Module,
    shard: Shard,
    method: Method,
    train: Train,
    augment: Augment,
    state: State,
    *,
    seed: int,
    server_round: int,
    client: int,
    phase_round: int,
    phase_rounds: int,
) -> FitReport:
    """Train a network on one client's shard, in place.

    Args:
        network: Holds the weights the client was sent; holds the trained ones afterwards.
        shard: The client's examples, on the network's device.
        method: What to minimize.
        train: How.
        augment: What weak and strong views are.
        state: The method's state, every slot filled; written in place.
        seed, server_round, client: Name the client's random streams of this round.
        phase_round, phase_rounds: Where the round stands in its phase, for schedules and ramps.
    """
    began = time.perf_counter()
    device = shard.images.device
    views = method.views()
    num_steps = train.num_steps(shard, views) if method.can_learn(shard) else 0

    def stream(purpose: str) -> torch.Generator:
        return rng.generator(seed, purpose, round=server_round, client=client, device=device)

    def make(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            parameters,
            lr=train.lr,
            momentum=train.momentum,
            nesterov=train.nesterov,
            weight_decay=train.weight_decay,
            foreach=True,
        )

    optimizers = method.optimizers(network, make)
    learner = Learner(
        network=network,
        optimizers=optimizers,
        state=state,
        shard=shard,
        progress=Progress(phase_round, phase_rounds, 0, num_steps),
        stream=stream,
        descend=_descender(optimizers, train),
    )
    tally = PseudoLabelTally(device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    noise = rng.derive_seed(seed, "dropout", round=server_round, client=client)
    network.train()
    with rng.seeded_torch(noise, device), _precision(train, device):
        if num_steps:
            method.begin(learner)
        loader = BatchLoader(shard, views, augment, train.batch_size, num_steps, stream)
        for step, batch in enumerate(loader):
            # One dropout stream a step, the labeled pass first: unlabeled passes cannot shift the next step's.
            rng.reseed(noise + step, device)
            learner.progress = Progress(phase_round, phase_rounds, step, num_steps)
            loss = _step(method, learner, batch, train)
            total += loss.total.detach()
            if loss.pseudo_labels is not None and loss.accepted is not None:
                truth = shard.hidden_labels[batch.unlabeled_ids]
                tally.add(loss.pseudo_labels, loss.accepted, truth)
        if num_steps:
            method.end(learner)
    considered, accepted, right = tally.counts()
    mean_loss = float(total) / num_steps if num_steps else float("nan")
    seconds = time.perf_counter() - began
    return FitReport(num_steps, mean_loss, considered, accepted, right, seconds)


def _step(method: Method, learner: Learner, batch: Batch, train: Train) -> Loss:
    factor = train.lr_factor(learner.progress.fraction)
    for optimizer in learner.optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])
    loss = method.step(learner, batch)
    method.after_step(learner)
    return loss


def _descender(
    optimizers: dict[str, torch.optim.Optimizer], train: Train
) -> Callable[[Tensor, str], None]:
    def descend(total: Tensor, name: str) -> None:
        optimizer = optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        if not total.requires_grad:
            return
        total.backward()  # type: ignore[no-untyped-call]
        if train.clip_norm is not None:
            own = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(own, train.clip_norm)
        optimizer.step()

    return descend


def _precision(train: Train, device: torch.device) -> "torch.autocast | nullcontext[None]":
    if train.precision == "bf16":
        # No cache: it would keep the first step's weights for the whole round.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)
    return nullcontext()
