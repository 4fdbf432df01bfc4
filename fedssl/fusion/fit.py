"""Train several small clients in one step, with each client's own batches and, but for rounding, its own updates."""

import functools
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fedssl.core import rng
from fedssl.core.slots import Tensors
from fedssl.data.shard import Shard
from fedssl.fusion.batches import GroupBatch, GroupLoader, Stream
from fedssl.fusion.fusible import way_to_fuse
from fedssl.fusion.groups import fusion_key
from fedssl.fusion.loss import GroupLoss, group_loss
from fedssl.fusion.stacked import Stacked
from fedssl.methods.base import Progress
from fedssl.methods.functional import warm_decay
from fedssl.metrics.means import StepMeans
from fedssl.metrics.pseudo_labels import ClassTally, count_pseudo_labels
from fedssl.training.loop import FitReport
from fedssl.training.optimization import Descent
from fedssl.training.parameter_groups import Groups
from fedssl.training.recipe import Recipe


@dataclass(frozen=True)
class GroupFit:
    """The result of training M clients together.

    Args:
        weights: The clients' trained weights by name, each (M, *shape).
        reports: Report of each client.
    """

    weights: Tensors
    reports: Sequence[FitReport]

    def finite(self) -> list[bool]:
        """Return for each client whether all its weights are finite."""
        flat = (tensor.flatten(1) for tensor in self.weights.values())
        found: list[bool] = torch.stack([f.isfinite().all(1) for f in flat]).all(0).tolist()
        return found


def fit_together(
    network: nn.Module,
    shards: Sequence[Shard],
    recipe: Recipe,
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
        seed, server_round: Name the clients' random streams of this round, together with each client's number.
        clients: Numbers of the clients.
        phase_round, phase_rounds: The round's number in its phase and the phase's length.

    Returns:
        Trained weights and reports. Each report's seconds are an equal share of the group's time.

    Raises:
        ValueError: The clients cannot be fused; the message says why.
    """
    # Refuse clients that cannot take their steps together, and choose how to run M copies of the network at once.
    began = time.perf_counter()
    keys = {fusion_key(recipe, len(shard.labeled), len(shard)) for shard in shards}
    if len(keys) != 1:
        raise ValueError(f"clients of different kinds cannot be fused: {sorted(map(str, keys))}")
    way = way_to_fuse(recipe, network, shards[0].spec)
    if isinstance(way, str):
        raise ValueError(way)
    train, device = recipe.train, shards[0].images.device
    num_steps = recipe.num_steps(len(shards[0].labeled), len(shards[0]))
    # Stack M copies of the network; every copy starts from the same weights.
    stacked = _stacked(way, network, len(shards))
    stacked.start_from([network])
    weights = list(stacked.parameters.values())
    # One optimizer steps all clients, because each weight's update depends on its own gradient only. `sent` holds what
    # clients send, in the layout of the stacked weights: the weights themselves, or their moving averages.
    groups = Groups(train, network, stacked.parameters)
    descent = Descent({"main": train.make_optimizer(groups.of(weights))}, train, device)
    sent = [weight.detach() for weight in weights]
    if train.ema_decay is not None:
        sent = [weight.clone() for weight in sent]
    # Take the steps: labeled views (M, B, C, H, W), unlabeled views (M, mu B, C, H, W), one loss per client, (M,).
    tally = _Tally(len(shards), shards[0].spec.num_classes, device)
    streams = _streams(seed, server_round, clients, device)
    for step, batch in enumerate(_loader(shards, recipe, num_steps, streams)):
        progress = Progress(phase_round, phase_rounds, step, num_steps)
        descent.set_lr(progress)
        loss = group_loss(recipe.method, stacked, batch, progress)
        if step == 0:
            loss.check(batch)
        # The gradient of the sum reaches each client's own weights only, so no loss mixes with another.
        descent(loss.total.sum(), "main")
        if train.ema_decay is not None:
            followed = [weight.detach() for weight in weights]
            torch._foreach_lerp_(sent, followed, 1 - warm_decay(train.ema_decay, step))
        tally.add(loss, batch)
    # Free the gradients, which the cached copies would hold until the next round, and cut the result by client.
    for weight in weights:
        weight.grad = None
    trained = stacked.by_client(dict(zip(stacked.parameters, sent, strict=True)))
    seconds = (time.perf_counter() - began) / len(shards)
    return GroupFit(trained, tally.reports(num_steps, seconds))


@functools.lru_cache(maxsize=4)  # the groups of a cohort have only a few sizes
def _stacked(way: type[Stacked], network: nn.Module, count: int) -> Stacked:
    """Return copies of a network, made once per group size; `Stacked.start_from` gives them new memory."""
    return way(network, count)


class _Tally:
    """Losses and pseudo-labels of every client over the steps of a round."""

    def __init__(self, num_clients: int, num_classes: int, device: torch.device) -> None:
        self._losses = torch.zeros(num_clients, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_clients, 4, dtype=torch.float64, device=device)
        self._by_class = ClassTally(num_clients, num_classes)
        self._numbers = StepMeans()

    def add(self, loss: GroupLoss, batch: GroupBatch) -> None:
        self._losses += loss.total.detach()
        self._numbers.add(loss.numbers)
        if loss.pseudo_labels is not None and loss.accepted is not None:
            step = loss.pseudo_labels, loss.accepted, batch.hidden, batch.truth
            self._counts += count_pseudo_labels(*step)
            self._by_class.add(*step)

    def reports(self, num_steps: int, seconds: float) -> list[FitReport]:
        losses, counts = (self._losses / num_steps).tolist(), self._counts.tolist()
        means = {name: mean.tolist() for name, mean in self._numbers.means().items()}
        numbers = [{n: each[client] for n, each in means.items()} for client in range(len(losses))]
        rows = zip(losses, counts, self._by_class.counts(), numbers, strict=True)
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
