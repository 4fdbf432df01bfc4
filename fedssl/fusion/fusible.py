"""The check whether clients of a recipe can be fused, by reading the recipe and by a trial.

No method is named here. A method can be fused if it keeps the interface's own `step`, draws no random numbers, keeps no state
by example, and has no other hook than an elementwise `after_step`. A strategy's correction must be elementwise, too. A trial
on a few made-up images then shows whether fused clients learn what each of them learns alone.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedssl.augment.policy import Augment
from fedssl.core import rng
from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import State, Tensors
from fedssl.data.shard import ImageSpec, Shard
from fedssl.fusion.fit import fit_together
from fedssl.fusion.stacked import Mapped, Stacked, Wide
from fedssl.methods.base import Method
from fedssl.methods.functional import snapshot
from fedssl.training.learn import fill_slots, learn
from fedssl.training.loop import FitReport
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

Kept = Mapping[str, NamedArrays]
"""The contents of slots that a client begins a round with, by slot."""

OWN_HOOKS = (
    "step",
    "begin",
    "pools",
    "end",
    "optimizers",
    "is_shared",
    "is_sent_back",
)
"""A method that overrides one of these hooks cannot be fused, nor one that has an `after_step` which is not elementwise."""

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

TOLERANCE = 1e-6
"""The largest distance of what fused clients learn from what each learns alone, as a share of the way, in double precision."""

TINY = 1e-12
"""This distance is rounding, even if nothing moved."""

TRIAL = Train(local_steps=2, batch_size=1, lr=0.05)
"""The steps of a trial's rounds. Their optimizer is plain, because every optimizer that fuses is elementwise."""

ROUNDS = 2
"""The rounds of a trial: the second one begins with what clients keep."""


def way_to_fuse(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> type[Stacked] | str:
    """Return the fastest way to run copies of the network at once, or a sentence that says why there is none."""
    try:
        return _way(recipe, network, spec)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return f"the strategy's client half has no hash, as a frozen dataclass would have: {error}"


@functools.lru_cache(maxsize=8)
def _way(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> type[Stacked] | str:
    reason = _forbidden(recipe, network)
    if reason is not None:
        return reason
    reasons = []
    for way in (Wide, Mapped):
        try:
            with _double_precision():
                reason = _trial(way, recipe, network, spec)
        except TimeoutError:
            raise  # the answer is not known, and must not be kept
        except Exception as error:  # any other error of the trial is a reason not to fuse
            reason = (
                f"the loss of {recipe.method.kind} cannot be mapped over clients: {_brief(error)}"
            )
        if reason is None:
            return way
        reasons.append(reason)
    return reasons[-1]


def _forbidden(recipe: Recipe, network: nn.Module) -> str | None:
    """Return a reason against fusion that holds for every loss, or None."""
    method, train = recipe.method, recipe.train
    hooks = OWN_HOOKS if method.is_elementwise else (*OWN_HOOKS, "after_step")
    own = [hook for hook in hooks if getattr(type(method), hook) is not getattr(Method, hook)]
    if own:
        return f"the method {method.kind} has a hook of its own: {', '.join(own)}"
    if recipe.correction is not None and not recipe.correction.is_elementwise:
        name = type(recipe.correction).__name__
        return f"the strategy's client half ({name}) does not say that it is elementwise"
    kept = [*recipe.slots_by_section["augment"], *recipe.slots_by_section["train"]]
    kept += [slot for slot in recipe.slots() if slot.scope == "phase"]
    if kept:
        return f"clients keep state that is not fused: {', '.join(slot.name for slot in kept)}"
    if train.precision != "fp32":
        return f"train.precision is {train.precision}, and only fp32 is fused"
    if not train.optimizer.is_elementwise:
        return f"the optimizer {train.optimizer.kind} looks at whole tensors, which are each client's own"
    tracking = [m for m in network.modules() if m._buffers and type(m) is not nn.BatchNorm2d]
    if tracking:
        return f"the network has buffers of its own, in a {type(tracking[0]).__name__}"
    if any(isinstance(module, DROPOUT) and module.p > 0 for module in network.modules()):
        return "the network has dropout, whose draws are each client's own"
    return None


def _brief(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0]


def _trial(way: type[Stacked], recipe: Recipe, network: nn.Module, spec: ImageSpec) -> str | None:
    """Train two made-up clients for two rounds, fused and alone; return what differs, or None.

    The trial is in double precision, because some methods magnify rounding. It has one more round without labels if clients
    without labels can learn.
    """
    asked = {"ema_decay": recipe.train.ema_decay, "clip_norm": recipe.train.clip_norm}
    views = {name: {"kind": "noise"} for name in recipe.method.views().names}
    plan = dataclasses.replace(
        recipe, train=TRIAL.model_copy(update=asked), augment=Augment.model_validate(views)
    )
    network = copy.deepcopy(network).double()
    device = next(network.parameters()).device
    draws = rng.make_generator(0, "fusion/trial")
    for is_labeled in (True, False) if recipe.method.can_learn(0) else (True,):
        # The clients have unlike numbers of images and of labels, so that state by example shows itself.
        sizes = ((3, 2), (5, 1)) if is_labeled else ((3, 0), (5, 0))
        shards = [_made_up(spec, *size, draws).to(device) for size in sizes]
        kept: list[Kept] = [{}, {}]
        for phase_round in range(1, ROUNDS + 1 if is_labeled else 2):
            when = _Round(plan, network, shards, kept, phase_round)
            with rng.seeded_torch(0, device):
                before = torch.get_rng_state()
                fused = when.together(way)
                drew = not torch.equal(before, torch.get_rng_state())
            if drew:
                return "the network draws random numbers, which are each client's own"
            alone = when.one_by_one()
            if any(_differs(network, *pair) for pair in zip(fused, alone, strict=True)):
                return (
                    f"{recipe.method.kind} with this network learns something else when it is fused"
                )
            kept = [_kept(plan, trained.state) for trained in alone]
    return None


@contextmanager
def _double_precision() -> Iterator[None]:
    """Make new tensors of floats in double precision inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _made_up(spec: ImageSpec, size: int, num_labeled: int, draws: torch.Generator) -> Shard:
    """Return a client with images of noise, some of them labeled."""
    images = torch.rand(size, *spec.shape, generator=draws, dtype=torch.float64)
    classes = torch.randint(spec.num_classes, (size,), generator=draws)
    given = torch.where(torch.arange(size) < num_labeled, classes, -1)
    return Shard(images, given, classes, spec)


@dataclass(frozen=True)
class _Trained:
    """What a client of the trial has learned in a round."""

    weights: Tensors
    state: State
    report: FitReport


@dataclass(frozen=True)
class _Round:
    """A round of a trial.

    Args:
        recipe: How the clients learn.
        network: Holds the weights with which the round begins; it is not changed.
        shards: The clients' images.
        kept: What each client has kept from the round before.
        number: The round, from 1.
    """

    recipe: Recipe
    network: nn.Module
    shards: Sequence[Shard]
    kept: Sequence[Kept]
    number: int

    def together(self, way: type[Stacked]) -> list[_Trained]:
        """Train the clients in one step."""
        pairs = zip(self.shards, self.kept, strict=True)
        states = [fill_slots(self.recipe, self.network, shard, own) for shard, own in pairs]
        found = fit_together(
            *(self.network, self.shards, self.recipe, states, way), clients=(0, 1), **self._when
        )
        return [
            _Trained({n: w[i] for n, w in found.weights.items()}, found.state_of(i), report)
            for i, report in enumerate(found.reports)
        ]

    def one_by_one(self) -> list[_Trained]:
        """Train the clients alone."""
        trained = []
        for client, (shard, own) in enumerate(zip(self.shards, self.kept, strict=True)):
            copied = copy.deepcopy(self.network).train()
            report, state = learn(copied, shard, self.recipe, own, client=client, **self._when)
            trained.append(_Trained(snapshot(copied), state, report))
        return trained

    @property
    def _when(self) -> dict[str, Any]:
        number = self.number
        return {"seed": 0, "server_round": number, "phase_round": number, "phase_rounds": ROUNDS}


def _kept(recipe: Recipe, state: State) -> Kept:
    """Return what a client begins its next round with, as numpy arrays by slot and name."""
    slots = [slot.name for slot in recipe.slots() if slot.scope != "reset"]
    return {slot: {n: t.numpy(force=True) for n, t in state[slot].items()} for slot in slots}


def _differs(network: nn.Module, fused: _Trained, alone: _Trained) -> bool:
    """Say whether fusion changes a client's weights, state or report by more than rounding."""
    start = network.state_dict()
    came = _length({name: tensor - start[name] for name, tensor in alone.weights.items()})
    missed = _length({name: tensor - fused.weights[name] for name, tensor in alone.weights.items()})
    if not missed <= TOLERANCE * came + TINY:
        return True
    for slot, tensors in alone.state.items():
        others = fused.state[slot]
        pairs = {name: (tensor.double(), others[name].double()) for name, tensor in tensors.items()}
        missed = _length({name: first - second for name, (first, second) in pairs.items()})
        if not missed <= TOLERANCE * _length(tensors) + TINY:
            return True
    pair = _numbers(fused.report), _numbers(alone.report)
    return not torch.allclose(*pair, rtol=TOLERANCE, atol=TINY, equal_nan=True)


def _length(tensors: Tensors) -> float:
    """Return the L2 norm of all tensors together, because single ones may consist of rounding errors only."""
    return math.sqrt(math.fsum(float(t.double().square().sum()) for t in tensors.values()))


def _numbers(report: FitReport) -> Tensor:
    counts = (report.considered, report.accepted, report.judged, report.right)
    numbers = [report.numbers[name] for name in sorted(report.numbers)]
    return torch.tensor([report.num_steps, report.loss, *counts, *report.by_class, *numbers])
