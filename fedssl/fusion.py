"""Several small clients in one step: the same batches and the same updates as alone, but for rounding.

A method fuses if its step is a pure loss: it keeps the interface's own `step`, has no other hook and no state, and draws
nothing. Whether its loss can be mapped over clients is found by trying, once, on a few random images.
"""

import copy
import functools
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedssl import rng
from fedssl.data.shard import ImageSpec, Shard
from fedssl.group_batches import GroupBatch, GroupLoader
from fedssl.methods.base import Batch, Loss, Method, Progress, check_loss
from fedssl.methods.functional import warm_decay
from fedssl.metrics.pseudo_labels import count_pseudo_labels
from fedssl.optimization import Descent
from fedssl.slots import Tensors
from fedssl.stacked import Mapped, Stacked, Wide
from fedssl.training import FitReport, Recipe, fit

OWN_HOOKS = ("step", "begin", "after_step", "end", "optimizers", "is_shared")
"""Hooks that a method which fuses leaves as they are."""

SIZES = (4, 8, 12, 16, 24, 32, 48, 64)
"""Group sizes that `worth_fusing` tries."""

WORTH = 1.15
"""Least gain for which the measured choice fuses: below it, noise decides."""

TOLERANCE = 1e-3
"""How far the trial's fused gradient may be from that of clients alone, as a share of its norm; rounding gives 1e-6."""


def why_not(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> str | None:
    """Return None if clients that learn by a recipe can be fused, else one sentence that says why not.

    Args:
        recipe: How they learn.
        network: What they train.
        spec: What their images have in common.
    """
    way = _way(recipe, network, spec)
    return way if isinstance(way, str) else None


def fusion_key(recipe: Recipe, num_labeled: int, num_examples: int) -> Hashable:
    """Return what clients must have in common to be fused: their steps, and whether they have labels."""
    labeled = num_labeled > 0 and bool(recipe.method.views().labeled)
    return recipe.num_steps(num_labeled, num_examples), labeled


def groups(keys: Sequence[Hashable], size: int) -> list[list[int]]:
    """Cut the places 0, 1, ... of a cohort into runs of equal keys, each of at most `size`, in order.

    Args:
        keys: The key of each place.
        size: At least 1.
    """
    cut: list[list[int]] = []
    for place, key in enumerate(keys):
        if cut and len(cut[-1]) < size and keys[cut[-1][-1]] == key:
            cut[-1].append(place)
        else:
            cut.append([place])
    return cut


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
) -> list[tuple[Tensors, FitReport]]:
    """Train several clients from the same weights, each as `fit` would.

    Args:
        network: Holds the weights all were sent; it is left as it is.
        shards: The clients' examples, on the network's device; of one `fusion_key`.
        recipe: How to learn.
        seed, server_round: Name the clients' random streams of this round, together with
        clients: their numbers.
        phase_round, phase_rounds: Where the round stands in its phase.

    Returns:
        Each client's trained weights and report; the seconds are an equal share.

    Raises:
        ValueError: They cannot be fused; says why.
    """
    began = time.perf_counter()
    keys = {fusion_key(recipe, len(shard.labeled), len(shard)) for shard in shards}
    if len(keys) != 1:
        raise ValueError(f"clients of different kinds cannot be fused: {sorted(map(str, keys))}")
    way = _way(recipe, network, shards[0].spec)
    if isinstance(way, str):
        raise ValueError(way)
    train, device = recipe.train, shards[0].images.device
    num_steps = recipe.num_steps(len(shards[0].labeled), len(shards[0]))
    stacked = _stacked(way, network, len(shards))
    stacked.start_from([network])
    weights = dict(stacked.parameters)
    descent = Descent({"main": train.make_optimizer(iter(weights.values()))}, train, device)
    average = None if train.ema_decay is None else _copied(weights)
    tally = _Tally(len(shards), device)
    for step, batch in enumerate(_batches(shards, recipe, num_steps, seed, server_round, clients)):
        progress = Progress(phase_round, phase_rounds, step, num_steps)
        descent.set_lr(progress)
        loss = _loss(recipe.method, stacked, batch, progress)
        if step == 0:
            loss.check(batch)
        descent(loss.total.sum(), "main")
        if average is not None and train.ema_decay is not None:
            followed = [weight.detach() for weight in weights.values()]
            kept = warm_decay(train.ema_decay, step)
            torch._foreach_lerp_(list(average.values()), followed, 1 - kept)
        tally.add(loss, batch)
    trained = stacked.split(weights if average is None else average)
    seconds = (time.perf_counter() - began) / len(shards)
    return list(zip(trained, tally.reports(num_steps, seconds), strict=True))


def worth_fusing(
    network: nn.Module, shards: Sequence[Shard], recipe: Recipe, *, repeats: int = 3
) -> int:
    """Measure, and return the group size at which a client takes the least time; 0 if that is alone.

    It depends on the machine and on the moment: whoever asks must keep the answer for all of a run.

    Args:
        network: As for `fit_together`.
        shards: Clients of one `fusion_key`; no group larger than these is tried.
        recipe: How they learn.
        repeats: Medians are over so many turns.
    """
    if why_not(recipe, network, shards[0].spec) is not None or len(shards) < SIZES[0]:
        return 0
    alone = copy.deepcopy(network)
    places = {"server_round": 0, "phase_round": 1, "phase_rounds": 1, "seed": 0}

    def by_itself() -> None:
        for client, shard in enumerate(shards[: SIZES[0]]):
            fit(alone, shard, recipe, {}, client=client, **places)

    def together(size: int) -> None:
        fit_together(network, shards[:size], recipe, clients=range(size), **places)

    sizes = [size for size in SIZES if size <= len(shards)]
    trials = [by_itself, *(functools.partial(together, size) for size in sizes)]
    seconds = _medians(trials, [SIZES[0], *sizes], repeats)
    best = min(range(len(sizes)), key=lambda i: seconds[1 + i])
    return sizes[best] if seconds[0] > WORTH * seconds[1 + best] else 0


def _medians(
    trials: Sequence[Callable[[], None]], shares: Sequence[int], repeats: int
) -> list[float]:
    """Return each trial's median seconds a share, over trials taking turns; the first turn warms up."""
    seconds: list[list[float]] = [[] for _ in trials]
    for turn in range(repeats + 1):
        for trial, share, taken in zip(trials, shares, seconds, strict=True):
            began = time.perf_counter()
            trial()
            if turn:
                taken.append((time.perf_counter() - began) / share)
    return [statistics.median(taken) for taken in seconds]


# ---- one step ----


@dataclass(frozen=True)
class _GroupLoss:
    """What a loss says of every client: `Loss` with a dimension more."""

    total: Tensor
    pseudo_labels: Tensor | None
    accepted: Tensor | None

    def check(self, batch: GroupBatch) -> None:
        """Refuse what a method's loss must not say of any client."""
        flat = Batch(
            *(batch.labeled, batch.labels.flatten(), batch.labeled_ids.flatten()),
            *(batch.unlabeled, batch.unlabeled_ids.flatten(), torch.Generator()),
        )
        pseudo = None if self.pseudo_labels is None else self.pseudo_labels.flatten()
        accepted = None if self.accepted is None else self.accepted.flatten()
        check_loss(Loss(self.total.sum(), pseudo, accepted), flat, {})


def _loss(method: Method, stacked: Stacked, batch: GroupBatch, progress: Progress) -> _GroupLoss:
    """Return the loss of one step at every client."""
    undrawn = torch.Generator()  # vmap refuses whoever draws

    def of_one(network: nn.Module, *own: Any) -> tuple[Tensor, ...]:
        loss = method.loss(network, Batch(*own, undrawn), {}, progress)
        if loss.pseudo_labels is None or loss.accepted is None:
            return (loss.total,)
        return loss.total, loss.pseudo_labels, loss.accepted

    outputs = stacked.map(
        of_one,
        *(batch.labeled, batch.labels, batch.labeled_ids, batch.unlabeled, batch.unlabeled_ids),
    )
    return _GroupLoss(*outputs) if len(outputs) == 3 else _GroupLoss(outputs[0], None, None)


class _Tally:
    """Losses and pseudo-labels of every client over the steps of a round."""

    def __init__(self, num_clients: int, device: torch.device) -> None:
        self._losses = torch.zeros(num_clients, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_clients, 4, dtype=torch.float64, device=device)

    def add(self, loss: _GroupLoss, batch: GroupBatch) -> None:
        self._losses += loss.total.detach()
        if loss.pseudo_labels is not None and loss.accepted is not None:
            self._counts += count_pseudo_labels(
                loss.pseudo_labels, loss.accepted, batch.hidden, batch.truth
            )

    def reports(self, num_steps: int, seconds: float) -> list[FitReport]:
        losses, counts = (self._losses / num_steps).tolist(), self._counts.tolist()
        return [
            FitReport(num_steps, loss, *own, seconds)
            for loss, own in zip(losses, counts, strict=True)
        ]


def _batches(
    shards: Sequence[Shard],
    recipe: Recipe,
    num_steps: int,
    seed: int,
    server_round: int,
    clients: Sequence[int],
) -> Iterator[GroupBatch]:
    if num_steps == 0:
        return iter(())
    device = shards[0].images.device

    def stream(client: int, purpose: str) -> torch.Generator:
        return rng.generator(seed, purpose, round=server_round, client=client, device=device)

    streams = [functools.partial(stream, client) for client in clients]
    views, batch_size = recipe.method.views(), recipe.train.batch_size
    return iter(GroupLoader(shards, views, recipe.augment, batch_size, num_steps, streams))


def _copied(tensors: dict[str, Any]) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


# ---- whether, and how ----


@functools.lru_cache(maxsize=4)
def _stacked(way: type[Stacked], network: nn.Module, count: int) -> Stacked:
    """Return M copies of a network, kept for the next group of as many; `Stacked.start_from` gives them new memory."""
    return way(network, count)


@functools.lru_cache(maxsize=8)
def _way(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> type[Stacked] | str:
    """Return how to fuse, the faster way first, or why not."""
    reason = _forbidden(recipe, network)
    if reason is not None:
        return reason
    for way in (Wide, Mapped):
        try:
            reason = _trial(way, recipe, network, spec)
        except Exception as error:  # whatever tracing runs into is the reason
            reason = f"the loss of {recipe.method.kind} cannot be mapped over clients: {_brief(error)}"
        if reason is None:
            return way
    assert reason is not None
    return reason


def _brief(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0]


def _forbidden(recipe: Recipe, network: nn.Module) -> str | None:
    """Return why a recipe cannot be fused whatever its loss does, if so."""
    method, train = recipe.method, recipe.train
    own = [hook for hook in OWN_HOOKS if getattr(type(method), hook) is not getattr(Method, hook)]
    if own:
        return f"{method.kind} has a {own[0]} of its own"
    if recipe.slots():
        return f"clients keep state: {', '.join(slot.name for slot in recipe.slots())}"
    if train.precision != "fp32":
        return f"train.precision is {train.precision}"
    if train.clip_norm is not None:
        return "train.clip_norm is set, and gradients are clipped client by client"
    if next(network.buffers(), None) is not None:
        return "the network keeps statistics of its batches"
    if any(isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0 for m in network.modules()):
        return "the network has dropout, whose draws would be others"
    return None


def _trial(
    way: type[Stacked], recipe: Recipe, network: nn.Module, spec: ImageSpec
) -> str | None:
    """Take the loss and its gradient of two made-up clients, fused and alone; return what differs, if anything.

    Once with labels, and once without where such clients learn.
    """
    draws = rng.generator(0, "fusion/trial")
    alone = [_shaken(network, draws) for _ in range(2)]
    stacked = way(network, 2)
    stacked.start_from(alone)
    for num_labeled in (2, 0) if recipe.method.can_learn(0) else (2,):
        if _differs(stacked, alone, recipe.method, _made_up(recipe, spec, num_labeled, draws)):
            return f"{recipe.method.kind} with this network computes something else when it is fused"
    return None


def _shaken(network: nn.Module, draws: torch.Generator) -> nn.Module:
    """Return a copy with weights a little different."""
    shaken = copy.deepcopy(network).train()
    with torch.no_grad():
        for parameter in shaken.parameters():
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            parameter += 0.1 * noise * parameter.abs().mean()
    return shaken


def _made_up(
    recipe: Recipe, spec: ImageSpec, num_labeled: int, draws: torch.Generator
) -> GroupBatch:
    views = recipe.method.views()
    num_labeled = num_labeled if views.labeled else 0
    num_unlabeled = 2 * views.ratio if views.unlabeled else 0

    def images(count: int) -> Tensor:
        return torch.randn(2, count, *spec.shape, generator=draws)

    def numbers(count: int, below: int) -> Tensor:
        return torch.randint(below, (2, count), generator=draws)

    unlabeled_ids = numbers(num_unlabeled, 2)
    return GroupBatch(
        labeled=tuple(images(num_labeled) for _ in views.labeled),
        labels=numbers(num_labeled, spec.num_classes),
        labeled_ids=numbers(num_labeled, 2),
        unlabeled=tuple(images(num_unlabeled) for _ in views.unlabeled),
        unlabeled_ids=unlabeled_ids,
        hidden=unlabeled_ids >= 0,
        truth=unlabeled_ids,
    )


def _differs(
    stacked: Stacked, alone: Sequence[nn.Module], method: Method, batch: GroupBatch
) -> bool:
    progress = Progress(round=2, num_rounds=2, step=1, num_steps=2)
    loss = _loss(method, stacked, batch, progress)
    fused = _gradients(loss.total.sum(), stacked.parameters)
    for i, (network, found) in enumerate(zip(alone, stacked.split(fused), strict=True)):
        own = Batch(
            *(tuple(view[i] for view in batch.labeled), batch.labels[i], batch.labeled_ids[i]),
            *(tuple(view[i] for view in batch.unlabeled), batch.unlabeled_ids[i]),
            torch.Generator().manual_seed(0),
        )
        expected = method.loss(network, own, {}, progress)
        wanted = _gradients(expected.total, dict(network.named_parameters()))
        totals = loss.total[i : i + 1], expected.total.reshape(1)
        pairs = [totals, *((found[name], wanted[name]) for name in wanted)]
        if any(_apart(here, there) for here, there in pairs):
            return True
        if loss.pseudo_labels is not None and expected.pseudo_labels is not None:
            if not torch.equal(loss.pseudo_labels[i], expected.pseudo_labels):
                return True
    return False


def _apart(first: Tensor, second: Tensor) -> bool:
    return bool((first - second).norm() > TOLERANCE * (second.norm() + 1e-6))


def _gradients(total: Tensor, parameters: Any) -> Tensors:
    """Return the gradient of each parameter, zeros where there is none."""
    learned = {name: p for name, p in parameters.items() if p.requires_grad}
    if not total.requires_grad:
        return {name: torch.zeros_like(p) for name, p in learned.items()}
    found = torch.autograd.grad(total, list(learned.values()), allow_unused=True)
    return {
        name: torch.zeros_like(p) if gradient is None else gradient
        for (name, p), gradient in zip(learned.items(), found, strict=True)
    }
