"""The check whether clients of a recipe can be fused, by reading the recipe and by a trial.

No method is named here. A method can be fused if its step is a pure loss: it keeps the interface's own `step`, has no
other hook and no state, and draws no random numbers. The strategy must not correct the step either. A trial on a few
made-up images then shows whether the loss can be mapped over clients, and whether the network computes the same for
clients side by side.
"""

import copy
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.slots import Tensors
from fedssl.data.shard import ImageSpec
from fedssl.fusion.batches import GroupBatch
from fedssl.fusion.loss import group_loss
from fedssl.fusion.stacked import Mapped, Stacked, Wide
from fedssl.methods.base import Batch, Method, Progress
from fedssl.training.recipe import Recipe

OWN_HOOKS = (
    "step",
    "begin",
    "pools",
    "after_step",
    "end",
    "optimizers",
    "is_shared",
    "is_sent_back",
)
"""A method that overrides one of these hooks cannot be fused."""

DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)

TOLERANCE = 1e-3
"""The largest distance of a fused gradient from a client's own, as a share of its norm; rounding makes about 1e-6."""


def why_not_fusible(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> str | None:
    """Return None if clients that learn by a recipe can be fused, else one sentence that says why not.

    Args:
        recipe: The method, the optimization and the augmentations.
        network: The network that the clients train.
        spec: Shape, classes and normalization of the clients' images.
    """
    way = way_to_fuse(recipe, network, spec)
    return way if isinstance(way, str) else None


@functools.lru_cache(maxsize=8)
def way_to_fuse(recipe: Recipe, network: nn.Module, spec: ImageSpec) -> type[Stacked] | str:
    """Return the fastest way to run copies of the network at once, or a sentence that says why there is none."""
    reason = _forbidden(recipe, network)
    if reason is not None:
        return reason
    reasons = []
    for way in (Wide, Mapped):
        try:
            reason = _trial(way, recipe, network, spec)
        except Exception as error:  # any error of the trial is a reason not to fuse
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
    own = [hook for hook in OWN_HOOKS if getattr(type(method), hook) is not getattr(Method, hook)]
    if own:
        return f"the method {method.kind} has a hook of its own: {', '.join(own)}"
    if recipe.correction is not None:
        name = type(recipe.correction).__name__
        return f"the strategy changes the steps of its clients ({name}), and fused steps are plain"
    if recipe.slots():
        return f"clients keep state: {', '.join(slot.name for slot in recipe.slots())}"
    if train.precision != "fp32":
        return f"train.precision is {train.precision}, and only fp32 is fused"
    if not train.optimizer.is_elementwise:
        return f"the optimizer {train.optimizer.kind} looks at whole tensors, which are each client's own"
    if train.clip_norm is not None:
        return "train.clip_norm is set, and gradients are clipped client by client"
    if next(network.buffers(), None) is not None:
        return "the network has buffers, such as statistics of its batches"
    if any(isinstance(module, DROPOUT) and module.p > 0 for module in network.modules()):
        return "the network has dropout, whose draws are each client's own"
    return None


def _brief(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].split(". ")[0]


def _trial(way: type[Stacked], recipe: Recipe, network: nn.Module, spec: ImageSpec) -> str | None:
    """Compare losses and gradients of two made-up clients, fused and alone; return what differs, or None.

    The trial runs with labels, and again without labels if clients without labels can learn.
    """
    draws = rng.make_generator(0, "fusion/trial")
    alone = [_shaken(network, draws) for _ in range(2)]
    stacked = way(network, 2)
    stacked.start_from(alone)
    weight = next(network.parameters())
    for num_labeled in (2, 0) if recipe.method.can_learn(0) else (2,):
        batch = _made_up(recipe.method, spec, num_labeled, draws, weight)
        with rng.seeded_torch(0, weight.device):
            before = torch.get_rng_state()
            differs = _differs(stacked, alone, recipe.method, batch)
            drew = not torch.equal(before, torch.get_rng_state())
        if drew:
            return "the network draws random numbers, which are each client's own"
        if differs:
            return (
                f"{recipe.method.kind} with this network computes something else when it is fused"
            )
    return None


def _shaken(network: nn.Module, draws: torch.Generator) -> nn.Module:
    """Return a copy of a network with slightly different weights."""
    shaken = copy.deepcopy(network).train()
    with torch.no_grad():
        for parameter in shaken.parameters():
            noise = torch.randn(parameter.shape, generator=draws).to(parameter)
            parameter.add_(0.1 * noise * parameter.abs().mean())
    return shaken


def _made_up(
    method: Method, spec: ImageSpec, num_labeled: int, draws: torch.Generator, like: Tensor
) -> GroupBatch:
    """Return a batch of noise for two clients of two images each, with the type and device of `like`."""
    views = method.views()
    num_labeled = num_labeled if views.labeled else 0
    num_unlabeled = 2 * views.ratio if views.unlabeled else 0

    def images(count: int) -> Tensor:
        return torch.randn(2, count, *spec.shape, generator=draws).to(like)

    def numbers(count: int, below: int) -> Tensor:
        return torch.randint(below, (2, count), generator=draws).to(like.device)

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
    """Say whether fusion changes any client's loss, gradient or pseudo-labels."""
    progress = Progress(round=2, num_rounds=2, step=1, num_steps=2)
    fused = group_loss(method, stacked, batch, progress)
    gradients = stacked.split(_gradients(fused.total.sum(), stacked.parameters))
    for i, network in enumerate(alone):
        own = Batch(
            labeled=tuple(view[i] for view in batch.labeled),
            labels=batch.labels[i],
            labeled_ids=batch.labeled_ids[i],
            unlabeled=tuple(view[i] for view in batch.unlabeled),
            unlabeled_ids=batch.unlabeled_ids[i],
            generator=torch.Generator(),
        )
        loss = method.loss(network, own, {}, progress)
        wanted = _gradients(loss.total, dict(network.named_parameters()))
        if _apart(fused.total[i], loss.total) or _apart(_flat(gradients[i]), _flat(wanted)):
            return True
        both = fused.pseudo_labels, loss.pseudo_labels
        if both[0] is not None and both[1] is not None and not torch.equal(both[0][i], both[1]):
            return True
    return False


def _flat(gradients: Tensors) -> Tensor:
    """Return the whole gradient as one vector, because single parts of it may consist of rounding errors only."""
    return torch.cat([gradients[name].flatten() for name in sorted(gradients)])


def _apart(found: Tensor, expected: Tensor) -> bool:
    return not bool((found - expected).norm() <= TOLERANCE * expected.norm() + 1e-9)


def _gradients(total: Tensor, parameters: Mapping[str, nn.Parameter]) -> Tensors:
    """Return the gradient of each trainable weight; zeros if the total does not depend on the weight."""
    learned = {name: p for name, p in parameters.items() if p.requires_grad}
    if not total.requires_grad:
        return {name: torch.zeros_like(p) for name, p in learned.items()}
    found = torch.autograd.grad(
        total, list(learned.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(learned, found, strict=True))
