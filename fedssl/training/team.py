"""A team: the processes that train one client together, each on a device of its own.

Each process runs the whole of the client's training, with the same examples, draws and views, so all of them hold the same
weights and the same state. What takes long is divided: a batch's pass through the trunk of a classifier. Each process
passes its own rows, and gets the features of the others. So a loss sees the whole batch on every process, whatever it
compares, counts or gathers, and no method knows of teams.

Two rules make the gradients right. A tensor outside a trunk has the same gradient on every process: that of the whole
batch. Inside a trunk, a process has the gradient of its own rows, times the number of processes; the mean over the
processes, which every parameter's gradient becomes, is the gradient of the whole batch.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from fedssl.models.base import Classifier
from fedssl.models.static_norm import StaticBatchNorm

Reduce = Callable[[Tensor], None]
"""A function that puts the sum over all processes in place of a tensor's values, with the same bits on each process."""

HALVES = (torch.bfloat16, torch.float16)
"""The types of half precision."""

UNFIT = (nn.modules.batchnorm._BatchNorm, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.RReLU)
"""Layers that look at, or draw for, a whole batch in a way that a team does not know; some that it knows are among them."""


class SumLost(RuntimeError):
    """A sum over the processes failed, because another process ended, failed or hangs."""


class Team:
    """One process of a team.

    Args:
        rank: Number of the process, from 0; process 0 answers for the client.
        size: Number of processes.
        reduce: Sums a tensor up over the processes; a team of one needs none.
    """

    def __init__(self, rank: int = 0, size: int = 1, reduce: Reduce | None = None) -> None:
        self.rank = rank
        self.size = size
        self._reduce = reduce
        # Weights whose gradients will be averaged together; None: each gradient is averaged at once.
        self._waiting: list[Tensor] | None = None

    def __deepcopy__(self, memo: Any) -> "Team":
        return self  # a copied network stays with the team

    def rows(self, count: int) -> slice:
        """Return the rows of a batch that this process has; the shares differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over the processes; half precision is added in single precision."""
        total = tensor.float() if tensor.dtype in HALVES else tensor.clone()
        if self._reduce is not None:
            self._reduce(total)
        return total.to(tensor.dtype)

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over the processes."""
        return self.sum(tensor) / self.size

    def means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return each tensor's mean over the processes; tensors of the same type share one sum, which is much quicker."""
        means = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = self.mean(torch.cat([tensors[i].flatten() for i in alike]))
            parts = torch.split(flat, [tensors[i].numel() for i in alike])
            for i, part in zip(alike, parts, strict=True):
                means[i] = part.view_as(tensors[i])
        return means

    @contextmanager
    def averaging_later(self) -> Iterator[list[Tensor]]:
        """Leave the gradients of weights as each process has them, for the time of the block; `means` must follow.

        The block's list names the weights.
        """
        self._waiting = []
        try:
            yield self._waiting
        finally:
            self._waiting = None

    def average(self, weight: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a hook for a weight: it makes a gradient the mean over the processes, except in `averaging_later`."""
        weak = weakref.ref(weight)  # the weight holds its hook

        def hook(gradient: Tensor) -> Tensor:
            _refuse_second_derivatives()
            reached = weak()
            if self._waiting is None or reached is None or not reached.is_leaf:
                return self.mean(gradient)
            self._waiting.append(reached)
            return gradient

        return hook

    def refuse_difference(self, tensors: Iterable[Tensor]) -> None:
        """Compare what the processes hold, by sums of the tensors' bits.

        Raises:
            RuntimeError: Some process holds other values than this one.
        """
        sums = [_sum_of_bits(tensor) for tensor in tensors if tensor.numel()]
        own = torch.stack([each.to(sums[0].device) for each in sums])
        if not torch.equal(self.sum(own), own * self.size):
            raise RuntimeError(
                "the processes of a team do not hold the same weights and the same state"
            )


SOLO = Team()

_CURRENT: ContextVar[Team] = ContextVar("team", default=SOLO)


def current_team() -> Team:
    """Return the team that the running client trains in; a team of one, unless `in_team` says otherwise."""
    return _CURRENT.get()


@contextmanager
def in_team(team: Team) -> Iterator[None]:
    """Train the clients of the block in a team."""
    token = _CURRENT.set(team)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def backward(total: Tensor) -> None:
    """Add the gradients of a scalar to those of all weights, as `torch.Tensor.backward`, for the whole batch of the current team."""
    team = current_team()
    if team.size == 1:
        total.backward()  # type: ignore[no-untyped-call]
        return
    with team.averaging_later() as waiting:
        total.backward()  # type: ignore[no-untyped-call]
    reached = {id(weight): weight for weight in waiting if weight.grad is not None}
    # What a gradient was before is the same on every process, so the mean leaves it as it is.
    means = team.means([weight.grad for weight in reached.values() if weight.grad is not None])
    for weight, mean in zip(reached.values(), means, strict=True):
        weight.grad = mean


def gradients(total: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a scalar for each weight, for the whole batch of the current team.

    Args:
        total: The scalar; its graph stays.
        weights: Weights of a network; those that the scalar does not depend on have the gradient 0.
    """
    team = current_team()
    with nullcontext() if team.size == 1 else team.averaging_later():
        found = torch.autograd.grad(
            total, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
    return team.means(found) if team.size > 1 else list(found)


@contextmanager
def sharing_rows(team: Team, networks: Iterable[nn.Module]) -> Iterator[None]:
    """Divide the rows that pass through the networks' trunks among a team, for the time of the block.

    A batch of fewer rows than processes is not divided. Batch normalization takes its statistics from the rows of all
    processes. Dropout layers draw for all rows, and each process drops in its own.

    Args:
        team: The team; nothing changes for a team of one.
        networks: Modules with classifiers in them. Copies of them are divided, too, and networks that are called with other
            weights than their own.

    Raises:
        RuntimeError: A trunk has a layer that cannot be divided, or a second derivative is asked for.
    """
    if team.size == 1:
        yield
        return
    undo: list[Callable[[], None]] = []
    try:
        modules = [m for network in networks for m in network.modules()]
        trunks = {id(m.trunk): m.trunk for m in modules if isinstance(m, Classifier)}.values()
        for trunk in trunks:
            undo += _divide(trunk, team)
        yield
    finally:
        for step in reversed(undo):
            step()


def _divide(trunk: nn.Module, team: Team) -> list[Callable[[], None]]:
    """Divide what passes through a trunk; return what undoes it."""
    calls: list[int] = []  # rows of the batches that pass at the moment; 0: not divided
    # The hooks of the trunk's weights, of those of its copies, and of those that are put in their place.
    hooks: MutableMapping[Tensor, RemovableHandle] = WeakIdKeyDictionary()

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        for weight in module.parameters():
            if weight.requires_grad and weight not in hooks:
                hooks[weight] = weight.register_hook(team.average(weight))  # type: ignore[no-untyped-call]
        images, *rest = inputs
        calls.append(len(images) if len(images) >= team.size else 0)
        return (_OwnRows.apply(images, team), *rest) if calls[-1] else None

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        count = calls.pop()
        return _AllRows.apply(output, team, count) if count else None

    def remove_hooks() -> None:
        for hook in hooks.values():
            hook.remove()

    undo = [
        trunk.register_forward_pre_hook(before).remove,
        trunk.register_forward_hook(after).remove,
        remove_hooks,
    ]
    for name, module in trunk.named_modules():
        shared = _shared_form(module)
        if shared is not None:
            undo.append(_replace_forward(module, shared, team, calls))
        elif isinstance(module, UNFIT):
            raise RuntimeError(
                f"a team cannot divide what passes through the layer {name} ({type(module).__name__}); train with one device"
            )
    return undo


def _replace_forward(
    module: nn.Module, shared: "_Shared", team: Team, calls: list[int]
) -> Callable[[], None]:
    """Let a module in training mode work on divided rows as on whole batches; return what undoes it."""

    def forward(own: nn.Module, rows: Tensor) -> Tensor:
        uses_batch = own.training or (isinstance(own, nn.BatchNorm2d) and own.running_mean is None)
        if not uses_batch or not calls or not calls[-1]:
            return type(own).forward(own, rows)  # type: ignore[no-any-return]
        return shared(own, rows, team, calls[-1])

    module.forward = MethodType(forward, module)
    return lambda: module.__delattr__("forward")


_Shared = Callable[[Any, Tensor, Team, int], Tensor]


def _drop(module: nn.Module, rows: Tensor, team: Team, count: int) -> Tensor:
    """Drop by a mask that is drawn for the whole batch, so the draws are those of a single process."""
    share = team.rows(count)
    if len(rows) != share.stop - share.start:
        raise RuntimeError(
            f"a team cannot divide what passes through {module}: its first dimension is {len(rows)} and not the "
            f"{share.stop - share.start} images of this process; train with one device"
        )
    ones = _empty(rows, count).fill_(1)
    mask: Tensor = type(module).forward(module, ones)
    return rows * mask[share]


def _normalize(
    module: nn.BatchNorm2d | StaticBatchNorm, rows: Tensor, team: Team, count: int
) -> Tensor:
    """Normalize rows (b, C, H, W) by the mean and the variance of the whole batch; update what the module tracks.

    Half precision is summed in single precision, as torch's own layer does: squares overflow it.
    """
    given, rows = rows.dtype, rows.float() if rows.dtype in HALVES else rows
    values = count * rows.shape[2] * rows.shape[3]
    mean = _Sum.apply(rows.sum((0, 2, 3)), team) / values
    centered = rows - mean[None, :, None, None]
    variance = _Sum.apply(centered.square().sum((0, 2, 3)), team) / values
    if isinstance(module, nn.BatchNorm2d) and module.training:
        _track(module, mean, variance * (values / max(1, values - 1)))
    scale = torch.rsqrt(variance + module.eps)
    if module.weight is not None:
        scale = scale * module.weight
    normalized: Tensor = centered * scale[None, :, None, None]
    if module.bias is not None:
        normalized = normalized + module.bias[None, :, None, None]
    return normalized.to(given)


@torch.no_grad()
def _track(module: nn.BatchNorm2d, mean: Tensor, variance: Tensor) -> None:
    """Move running statistics towards a batch's, as torch's own layer does."""
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    share = module.momentum
    if share is None:
        share = 1.0 / float(module.num_batches_tracked)
    for running, now in ((module.running_mean, mean), (module.running_var, variance)):
        running.lerp_(now.to(running.dtype), share)


def _shared_form(module: nn.Module) -> _Shared | None:
    """Return how a layer that looks at, or draws for, a whole batch works on divided rows; None for any other layer."""
    # torchvision's stochastic depth is known by its name, because importing torchvision takes long.
    if isinstance(module, nn.AlphaDropout | nn.FeatureAlphaDropout):
        return None
    if isinstance(module, _DropoutNd) or type(module).__name__ == "StochasticDepth":
        return _drop
    if isinstance(module, nn.BatchNorm2d | StaticBatchNorm):
        return _normalize
    return None


class _OwnRows(torch.autograd.Function):
    """The process's own rows of a batch that all processes hold; the batch's gradient is whole on every process."""

    @staticmethod
    def forward(ctx: Any, batch: Tensor, team: Team) -> Tensor:
        ctx.team, ctx.count = team, len(batch)
        return batch[team.rows(len(batch))]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivatives()
        return _whole(gradients[0], ctx.team, ctx.count) / ctx.team.size, None


class _AllRows(torch.autograd.Function):
    """A batch of which each process holds its own rows, whole on every process."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, team: Team, count: int) -> Tensor:
        ctx.team, ctx.count = team, count
        return _whole(rows, team, count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        _refuse_second_derivatives()
        return gradients[0][ctx.team.rows(ctx.count)] * ctx.team.size, None, None


class _Sum(torch.autograd.Function):
    """The sum over the processes; each process's part gets the sum of the gradients."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, team: Team) -> Tensor:
        ctx.team = team
        return team.sum(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        _refuse_second_derivatives()
        return ctx.team.sum(gradients[0]), None


def _refuse_second_derivatives() -> None:
    """Raise `RuntimeError` on the way back if the gradient itself will be differentiated: sums are not known to autograd."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "a team has no gradients of gradients (create_graph); train with one device"
        )


def _whole(rows: Tensor, team: Team, count: int) -> Tensor:
    """Return a batch of `count` rows from the rows of each process."""
    whole = _empty(rows, count).zero_()
    whole[team.rows(count)] = rows
    return team.sum(whole)


def _empty(rows: Tensor, count: int) -> Tensor:
    """Return a new batch of `count` rows in the layout of these rows, in which random numbers are drawn."""
    is_last = rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    shape = (count, *rows.shape[1:])
    return torch.empty(shape, dtype=rows.dtype, device=rows.device, memory_format=layout)


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor's numbers, read as integers, modulo 2^64."""
    plain = tensor.detach().contiguous().flatten()
    if plain.is_floating_point():
        plain = plain.view(torch.int16 if plain.element_size() == 2 else torch.int32)
    return plain.sum(dtype=torch.int64)
