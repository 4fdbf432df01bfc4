"""Train several small clients in one step, with each client's own batches and, but for rounding, its own updates."""

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import torch
from torch import nn

from fedssl.core import rng
from fedssl.core.slots import State, Tensors
from fedssl.data.shard import Shard
from fedssl.fusion.batches import GroupBatch, GroupLoader, Stream
from fedssl.fusion.groups import fusion_key
from fedssl.fusion.loss import GroupLoss, group_loss
from fedssl.fusion.stacked import Stacked
from fedssl.fusion.state import GroupState
from fedssl.methods.base import Learner, Progress
from fedssl.methods.functional import ema_update, snapshot, warm_decay
from fedssl.metrics.means import StepMeans
from fedssl.metrics.pseudo_labels import PseudoLabelTally
from fedssl.training.loop import FitReport
from fedssl.training.optimization import BoundCorrection, Descent, Train
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.parameter_groups import Groups
from fedssl.training.recipe import Recipe


@dataclass(frozen=True)
class GroupFit:
    """The result of training M clients together.

    Args:
        weights: The clients' trained weights and buffers by name, each (M, *shape).
        state: The contents of every slot after the last step, each tensor (M, *shape).
        reports: Report of each client.
    """

    weights: Tensors
    state: State
    reports: Sequence[FitReport]

    def state_of(self, place: int) -> State:
        """Return the state of one client; its tensors share memory with `state`."""
        return {
            slot: {name: tensor[place] for name, tensor in tensors.items()}
            for slot, tensors in self.state.items()
        }

    def finite(self) -> list[bool]:
        """Return for each client whether all its weights and its whole state are finite."""
        tensors = (
            tensor for one in (self.weights, *self.state.values()) for tensor in one.values()
        )
        flat = (tensor.reshape(len(tensor), -1) for tensor in tensors)
        found: list[bool] = torch.stack([f.isfinite().all(1) for f in flat]).all(0).tolist()
        return found


def fit_together(
    network: nn.Module,
    shards: Sequence[Shard],
    recipe: Recipe,
    states: Sequence[State],
    way: type[Stacked],
    *,
    seed: int,
    server_round: int,
    clients: Sequence[int],
    phase_round: int,
    phase_rounds: int,
) -> GroupFit:
    """Train several clients from the same weights, each as `fit` would.

    Args:
        network: Holds the weights that the server sent to all clients; it is not changed.
        shards: The clients' examples, on the network's device; all have the same `fusion_key`.
        recipe: The method, the optimization and the augmentations.
        states: Contents of every slot of the recipe, for each client; they are not changed.
        way: How copies of the network run at once, as `fedssl.fusion.fusible.way_to_fuse` says.
        seed, server_round: Name the clients' random streams of this round, together with each client's number.
        clients: Numbers of the clients.
        phase_round, phase_rounds: The round's number in its phase and the phase's length.

    Returns:
        Trained weights, states and reports. Each report's seconds are an equal share of the group's time.

    Raises:
        ValueError: The clients cannot be fused; the message says why.
    """
    # Refuse clients that cannot take their steps together.
    began = time.perf_counter()
    keys = {fusion_key(recipe, len(shard.labeled), len(shard)) for shard in shards}
    if len(keys) != 1:
        raise ValueError(f"clients of different kinds cannot be fused: {sorted(map(str, keys))}")
    method, train, correction = recipe.method, recipe.train, recipe.correction
    device = shards[0].images.device
    num_steps = recipe.num_steps(len(shards[0].labeled), len(shards[0]))
    # Stack M copies of the network; every copy starts from the same weights. One optimizer steps all clients, because each
    # weight's update depends on its own gradient only.
    stacked, optimizers = _stacked(way, network, len(shards), train)
    stacked.start_from([network])
    optimizers.forget()
    parameters = stacked.parameters
    weights = list(parameters.values())
    descent = Descent(optimizers, train, device, functools.partial(_clip_each, stacked))
    # Hooks see all clients as one: stacked weights, and state in the same layout.
    state = GroupState(states, stacked)
    learner = _learner(
        stacked, state, dict(optimizers), Progress(phase_round, phase_rounds, 0, num_steps)
    )
    if correction is not None:
        descent.correct_with(BoundCorrection(correction, learner, parameters))
        if num_steps:
            correction.begin(learner)
    average = None if train.ema_decay is None else snapshot(stacked.network)
    # Take the steps: labeled views (M, B, C, H, W), unlabeled views (M, mu B, C, H, W), one loss per client, (M,).
    tally = _Tally(len(shards), shards[0].spec.num_classes, device)
    streams = _streams(seed, server_round, clients, device)
    for step, batch in enumerate(_loader(shards, recipe, num_steps, streams)):
        learner.progress = Progress(phase_round, phase_rounds, step, num_steps)
        descent.set_lr(learner.progress)
        seen = state.for_losses()
        loss = group_loss(method, stacked, batch, seen, learner.progress)
        if step == 0:
            loss.check(batch, seen)
        # The gradient of the sum reaches each client's own weights only, so no loss mixes with another.
        descent(loss.total.sum(), "main")
        state.update(loss.updates)
        if method.is_elementwise:
            method.after_step(learner, NOTHING, NOTHING)
        if average is not None and train.ema_decay is not None:
            ema_update(average, stacked.network, warm_decay(train.ema_decay, step))
        tally.add(loss, batch)
    # Free the gradients, which the cached copies would hold until the next round. Clients send their averages if they
    # have them, and a correction looks at what they send.
    for weight in weights:
        weight.grad = None
    if average is not None:
        for name, tensor in stacked.tensors.items():
            tensor.copy_(average[name])
    if num_steps and correction is not None:
        correction.end(learner)
    # Cut the result by client. The weights are the group's own memory; the next group starts in other memory, but for
    # buffers.
    buffers = {name: tensor.clone() for name, tensor in stacked.buffers.items()}
    trained = stacked.by_client({**stacked.tensors, **buffers})
    seconds = (time.perf_counter() - began) / len(shards)
    return GroupFit(trained, state.for_losses(), tally.reports(num_steps, seconds))


@functools.lru_cache(maxsize=4)  # the groups of a cohort have only a few sizes
def _stacked(
    way: type[Stacked], network: nn.Module, count: int, train: Train
) -> tuple[Stacked, OptimizerSet]:
    """Return copies of a network and their optimizer, made once per group size.

    `Stacked.start_from` gives the copies new memory, and `OptimizerSet.forget` puts the optimizer back.
    """
    stacked = way(network, count)
    groups = Groups(train, network, stacked.parameters)
    made = train.make_optimizer(groups.of(list(stacked.parameters.values())))
    return stacked, OptimizerSet({"main": made})


def _clip_each(stacked: Stacked, parameters: Sequence[nn.Parameter], limit: float) -> None:
    """Scale each client's gradient down to a norm, as `torch.nn.utils.clip_grad_norm_` does it for one client."""
    given = {n: p.grad for n, p in stacked.parameters.items() if p.grad is not None}
    each = stacked.by_client(given)
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in each.values()]).norm(dim=0)
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)
    for gradient in each.values():
        gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))


class _Nothing:
    """Stands for what hooks of a group must not use."""

    def __getattr__(self, name: str) -> NoReturn:
        self()

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise ValueError("a hook that says it is elementwise uses more than weights and state")


NOTHING = cast("Any", _Nothing())


def _learner(
    stacked: Stacked,
    state: GroupState,
    optimizers: dict[str, torch.optim.Optimizer],
    progress: Progress,
) -> Learner:
    """Return what hooks see: the weights and the state of all clients as if they were one client's."""
    return Learner(
        network=stacked.network,
        optimizers=optimizers,
        state=state.for_hooks,
        shard=NOTHING,
        progress=progress,
        stream=NOTHING,
        descend=NOTHING,
        gradients=NOTHING,
        show=NOTHING,
        batches=NOTHING,
    )


class _Tally:
    """Losses and pseudo-labels of every client over the steps of a round."""

    def __init__(self, num_clients: int, num_classes: int, device: torch.device) -> None:
        self._losses = torch.zeros(num_clients, dtype=torch.float64, device=device)
        self._pseudo_labels = PseudoLabelTally(num_clients, num_classes)
        self._numbers = StepMeans()

    def add(self, loss: GroupLoss, batch: GroupBatch) -> None:
        self._losses += loss.total.detach()
        self._numbers.add(loss.numbers)
        if loss.pseudo_labels is not None and loss.accepted is not None:
            self._pseudo_labels.add(loss.pseudo_labels, loss.accepted, batch.hidden, batch.truth)

    def reports(self, num_steps: int, seconds: float) -> list[FitReport]:
        losses, counts = (self._losses / num_steps).tolist(), self._pseudo_labels.counts()
        means = {name: mean.tolist() for name, mean in self._numbers.means().items()}
        numbers = [{n: each[client] for n, each in means.items()} for client in range(len(losses))]
        rows = zip(losses, counts, self._pseudo_labels.by_class(), numbers, strict=True)
        return [
            FitReport(num_steps, loss, shown, used, judged, right, seconds, by_class, recorded)
            for loss, (shown, used, judged, right), by_class, recorded in rows
        ]


def _loader(
    shards: Sequence[Shard],
    recipe: Recipe,
    num_steps: int,
    streams: Sequence[Stream],
) -> Iterable[GroupBatch]:
    if num_steps == 0:
        return ()
    views, batch_size = recipe.method.views(), recipe.train.batch_size
    return GroupLoader(shards, views, recipe.augment, batch_size, num_steps, streams)


def _streams(
    seed: int, server_round: int, clients: Sequence[int], device: torch.device
) -> list[Stream]:
    def stream(client: int, purpose: str) -> torch.Generator:
        return rng.make_generator(seed, purpose, round=server_round, client=client, device=device)

    return [functools.partial(stream, client) for client in clients]
