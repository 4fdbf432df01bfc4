"""The ``[train]`` section, and what it configures: optimizers, schedules, precision and descent steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn

from fedssl.core.errors import NothingLearned
from fedssl.core.registry import Plugin, Section, Unimported
from fedssl.core.slots import Slot
from fedssl.methods.base import Learner, Progress, Views
from fedssl.training.correction import Correction
from fedssl.training.optimizers.base import OPTIMIZERS, Optimizer, Parameters
from fedssl.training.optimizers.sgd import SGD
from fedssl.training.schedules.base import SCHEDULES, Schedule
from fedssl.training.schedules.constant import Constant
from fedssl.training.team import backward, gradients

Optimizers = Mapping[str, torch.optim.Optimizer]

FIRST_LOSS_SCALE = 2.0**10
"""The initial loss scale for fp16. torch's is 65,536, but a round has few steps, and each overflow loses one."""


OTHER_WEIGHTS = (
    "the loss depends on none of the weights that it is to train, so they do not learn: compute it from the network that the "
    "method is given"
)


class Rates(dict[str, float]):
    """Factors of the learning rate by patterns of parameters' names; they are not changed, so they have a hash.

    The first pattern that matches counts, so the order is a part of the value.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))


def _is_imported(plugin: Plugin) -> bool:
    """Return whether a section of a record has the code that checks it."""
    return not isinstance(plugin, Unimported)


class Train(Section):
    """The ``[train]`` section: a client's optimization, the same for every method."""

    local_steps: int | None = Field(
        None,
        ge=1,
        description="steps per client and round; unset: 10, or as many as local_epochs needs",
    )
    local_epochs: float | None = Field(
        None,
        gt=0,
        description="passes over the client's examples per round, instead of local_steps",
    )
    batch_size: int = Field(32, ge=1, description="B, labeled examples per step")
    optimizer: Annotated[Optimizer, OPTIMIZERS] = Field(
        SGD(), description="optimizer; adamw decays weights separately from the gradient"
    )
    lr: float = Field(0.05, gt=0, description="learning rate")
    rates: Annotated[
        dict[str, Annotated[float, Field(strict=True, ge=0)]], AfterValidator(Rates)
    ] = Field(
        default_factory=Rates,
        description="factors of lr for some of the network's parameters, by patterns of their names, such as "
        '{ "trunk.*" = 0.1 }; the first pattern that matches counts, and a parameter without one has lr',
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD and LARS; beta_1 of Adam")
    nesterov: bool = Field(True, description="Nesterov's form of SGD's momentum")
    keep_momentum: bool = Field(
        False, description="whether a client keeps its optimizer's state from round to round"
    )
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on every weight")
    decay_norms_and_biases: bool = Field(
        True,
        description="whether weight_decay is also on the parameters of one dimension, which are those of normalizations and "
        "biases; lars never decays them",
    )
    schedule: Annotated[Schedule, SCHEDULES] = Field(
        Constant(),
        description="learning rate over the steps; cosine: as in FixMatch, or to a final share; step: lr falls at milestones",
    )
    schedule_over: Literal["phase", "round"] = Field(
        "phase",
        description="whether the schedule spans the whole phase or starts anew in each round",
    )
    milestones: tuple[float, ...] = Field(
        (0.5, 0.75), description="for schedule = step: shares of the steps after which lr falls"
    )
    gamma: float = Field(
        0.1,
        gt=0,
        le=1,
        description="for schedule = step: factor of lr at each milestone",
    )
    clip_norm: float | None = Field(
        None, gt=0, description="largest gradient norm; unset: no limit"
    )
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of the moving average of a client's weights over its local steps, which the client sends "
        "instead of its last weights; unset: it sends its last weights",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="number format; bf16 and fp16 use autocast, fp16 also scales the loss"
    )
    max_state_age: int | None = Field(
        None,
        ge=1,
        description="rounds after which a client that was not sampled forgets what its method, augmentations and optimizer "
        "kept; unset: it never forgets",
    )
    threads: int = Field(
        1,
        ge=1,
        description="threads per client; part of the experiment, because it changes how sums are rounded",
    )

    @model_validator(mode="after")
    def _check(self) -> "Train":
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("local_steps and local_epochs exclude each other; set one")
        shares = list(self.milestones)
        if shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise ValueError(
                f"milestones = {shares}; give rising shares of the steps, each between 0 and 1"
            )
        if _is_imported(self.optimizer):
            self.optimizer.check(self)
        if _is_imported(self.schedule):
            self.schedule.check(self)
        return self

    def num_steps(self, num_labeled: int, num_examples: int, views: Views) -> int:
        """Return the steps per round of a client that holds `num_examples` examples, `num_labeled` of them labeled.

        An epoch is one pass over the labeled or over the unlabeled examples: the pass that takes more steps.
        """
        if self.local_epochs is None:
            return self.local_steps or 10
        passes = [num_labeled / self.batch_size if views.labeled else 0.0]
        if views.unlabeled:
            passes.append(num_examples / (self.batch_size * views.ratio))
        return max(1, math.ceil(self.local_epochs * max(passes)))

    def make_optimizer(self, parameters: Parameters) -> torch.optim.Optimizer:
        """Return a new optimizer over some parameters, or over groups of them, with the settings of this section."""
        return self.optimizer.build(parameters, self)

    def lr_factor(self, progress: Progress) -> float:
        """Return the factor of the learning rate at a step."""
        step, num_steps = progress.step, progress.num_steps
        if self.schedule_over == "phase":
            step, num_steps = progress.global_step, progress.num_rounds * progress.num_steps
        return self.schedule.lr_factor(step, num_steps, self)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which a round trains: autocast for bf16 and fp16, nothing for fp32."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        # No cache: autocast would use the first step's weights for the whole round.
        return torch.autocast(device.type, dtype, cache_enabled=False)

    def slots(self) -> tuple[Slot, ...]:
        """Return the client slot of the optimizer's state if momentum is kept, else nothing."""
        return (Slot(f"optimizer.{self.optimizer.kind}", "client"),) if self.keep_momentum else ()


class Descent:
    """Take descent steps, with the loss scaling and the clipping of the experiment.

    Args:
        optimizers: The method's optimizers, by name.
        train: Schedule, precision and clipping.
        device: Device of the network.
        clip: Function that scales gradients down to a norm; by default to a norm over all given parameters.
    """

    def __init__(
        self,
        optimizers: Optimizers,
        train: Train,
        device: torch.device,
        clip: Callable[[list[nn.Parameter], float], object] = nn.utils.clip_grad_norm_,
    ) -> None:
        self._optimizers = optimizers
        self._train = train
        self._clip = clip
        self._bound: BoundCorrection | None = None
        # One scaler per optimizer: a shared scaler would have to be told when both have stepped.
        self._scalers = {
            name: torch.amp.GradScaler(device.type, init_scale=FIRST_LOSS_SCALE)
            for name in (optimizers if train.precision == "fp16" else ())
        }

    def correct_with(self, bound: "BoundCorrection") -> None:
        """Apply a strategy's correction in every step from now on."""
        self._bound = bound

    def set_lr(self, progress: Progress) -> None:
        """Set every optimizer's learning rate to the schedule's value at a step."""
        factor = self._train.lr_factor(progress)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def __call__(self, total: Tensor, name: str) -> None:
        """Minimize a scalar by one step of the named optimizer; a scalar without a gradient changes nothing.

        Raises:
            NothingLearned: The scalar has a gradient, but for no parameter of the optimizer.
        """
        optimizer, scaler, own = self._optimizers[name], self._scalers.get(name), self._own(name)
        for parameter in own:
            parameter.grad = None  # zero_grad does the same, but also records it for the profiler
        if not total.requires_grad:
            return
        if self._bound is not None:
            total = self._bound.with_term(total, own)
        backward(total if scaler is None else scaler.scale(total))
        if all(parameter.grad is None for parameter in own):
            raise NothingLearned(OTHER_WEIGHTS)
        if scaler is not None and (self._bound is not None or self._train.clip_norm is not None):
            scaler.unscale_(optimizer)
        # The gradient is corrected first and clipped then, so that the limit holds for the step that is taken.
        if self._bound is not None:
            self._bound.correct(own, may_overflow=scaler is not None)
        if self._train.clip_norm is not None:
            self._clip(own, self._train.clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    def gradients(self, total: Tensor, name: str) -> list[tuple[nn.Parameter, Tensor]]:
        """Return each parameter of the named optimizer with its gradient of a scalar, unscaled; nothing moves."""
        own, scaler = self._own(name), self._scalers.get(name)
        if not total.requires_grad:
            return [(parameter, torch.zeros_like(parameter)) for parameter in own]
        scale = 1.0 if scaler is None else scaler.get_scale()
        found = gradients(total * scale, own)
        return [(parameter, g / scale) for parameter, g in zip(own, found, strict=True)]

    def _own(self, name: str) -> list[nn.Parameter]:
        return [p for group in self._optimizers[name].param_groups for p in group["params"]]


class BoundCorrection:
    """A strategy's correction, bound to one client's training in one round.

    Args:
        correction: The correction.
        learner: The client's training.
        shared: The parameters that travel to the server, by name.
    """

    def __init__(
        self, correction: Correction, learner: Learner, shared: Mapping[str, nn.Parameter]
    ) -> None:
        self._correction = correction
        self._learner = learner
        self._names = {id(parameter): name for name, parameter in shared.items()}

    def with_term(self, total: Tensor, own: Sequence[nn.Parameter]) -> Tensor:
        """Return a loss with the correction's term for the shared parameters that a step moves, if it moves any."""
        shared = self._shared_of(own)
        term = self._correction.term(self._learner, shared) if shared else None
        return total if term is None else total + term

    def correct(self, own: Sequence[nn.Parameter], *, may_overflow: bool) -> None:
        """Correct the gradients of the shared parameters that a step moves, if it moves any.

        Args:
            own: The parameters that a step moves.
            may_overflow: Whether the loss was scaled. Gradients that then overflowed stay as they are, because their step
                is not taken.
        """
        shared = self._shared_of(own)
        for parameter in shared.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not shared or (may_overflow and self._overflowed(shared)):
            return
        self._correction.correct(self._learner, shared)

    @staticmethod
    def _overflowed(shared: Mapping[str, nn.Parameter]) -> bool:
        norms = torch._foreach_norm([p.grad for p in shared.values() if p.grad is not None])
        return not all(math.isfinite(norm) for norm in norms)

    def _shared_of(self, own: Sequence[nn.Parameter]) -> dict[str, nn.Parameter]:
        return {self._names[id(p)]: p for p in own if id(p) in self._names}
