"""The ``[train]`` section, and what it makes: optimizers, schedules, precision, a step down a loss."""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedssl.core.registry import Section
from fedssl.core.slots import Slot
from fedssl.methods.base import Progress, Views
from fedssl.training.eager_optimizers import SGD, Adam, AdamW

Optimizers = Mapping[str, torch.optim.Optimizer]

FIRST_LOSS_SCALE = 2.0**10
"""Of fp16. A round is too short to find its way down from torch's 65,536: every step that overflows is lost."""


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
    optimizer: Literal["sgd", "adam", "adamw"] = Field(
        "sgd", description="adamw decays weights apart from the gradient"
    )
    lr: float = Field(0.05, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD; beta_1 of Adam")
    nesterov: bool = Field(True, description="Nesterov's form of SGD's momentum")
    keep_momentum: bool = Field(
        False, description="a client takes up its optimizer's state where its last round left it"
    )
    weight_decay: float = Field(5e-4, ge=0, description="L2 penalty on every weight")
    schedule: Literal["constant", "cosine", "step"] = Field(
        "constant",
        description="cosine: lr cos(7 pi k / 16 K), as in FixMatch; step: falls at milestones",
    )
    schedule_over: Literal["phase", "round"] = Field(
        "phase", description="the schedule counts the steps of the whole phase, or of each round"
    )
    milestones: tuple[float, ...] = Field(
        (0.5, 0.75), description="shares of the steps after which lr falls; of schedule = step"
    )
    gamma: float = Field(
        0.1,
        gt=0,
        le=1,
        description="what lr is multiplied by at each milestone; of schedule = step",
    )
    clip_norm: float | None = Field(None, gt=0, description="largest gradient norm; unset: any")
    ema_decay: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="decay of a client's moving average over its local steps, which it sends in "
        "place of its last weights; unset: the last weights",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="bf16, fp16: autocast; fp16 with a scaled loss"
    )
    threads: int = Field(
        1, ge=1, description="threads of a client; part of the experiment, for sums round by it"
    )

    @model_validator(mode="after")
    def _check(self) -> "Train":
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("local_steps and local_epochs exclude each other; set one")
        if self.nesterov and self.momentum == 0 and self.optimizer == "sgd":
            raise ValueError("nesterov needs momentum above 0")
        shares = list(self.milestones)
        if shares != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
            raise ValueError(
                f"milestones = {shares}; they are shares of the steps, rising, each between 0 and 1"
            )
        unused = [name for name in ("milestones", "gamma") if self._is_set(name)]
        if unused and self.schedule != "step":
            raise ValueError(f"{unused[0]} is for schedule = 'step', not {self.schedule!r}")
        return self

    def _is_set(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def num_steps(self, num_labeled: int, num_examples: int, views: Views) -> int:
        """Return the steps of one round at a client that holds so many examples, labeled ones among them.

        An epoch passes once over the labeled or the unlabeled examples, whichever takes more steps.
        """
        if self.local_epochs is None:
            return self.local_steps or 10
        passes = [num_labeled / self.batch_size if views.labeled else 0.0]
        if views.unlabeled:
            passes.append(num_examples / (self.batch_size * views.ratio))
        return max(1, math.ceil(self.local_epochs * max(passes)))

    def make_optimizer(self, parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the optimizer over some parameters."""
        if self.optimizer == "sgd":
            return SGD(
                parameters,
                lr=self.lr,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                foreach=True,
            )
        kind = Adam if self.optimizer == "adam" else AdamW
        return kind(
            parameters,
            lr=self.lr,
            betas=(self.momentum, 0.999),
            weight_decay=self.weight_decay,
            foreach=True,
        )

    def lr_factor(self, progress: Progress) -> float:
        """Return what multiplies a learning rate at a step.

        Reference: Sohn et al. (FixMatch), NeurIPS 2020, section 2.4, for the cosine.
        """
        fraction = progress.fraction
        if self.schedule_over == "round":
            fraction = progress.step / max(1, progress.num_steps)
        if self.schedule == "cosine":
            return math.cos(7 * math.pi / 16 * fraction)
        if self.schedule == "step":
            return self.gamma ** sum(fraction >= share for share in self.milestones)
        return 1.0

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which passes run."""
        if self.precision == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float16
        # No cache: it would keep the first step's weights for the whole round.
        return torch.autocast(device.type, dtype, cache_enabled=False)

    def slots(self) -> tuple[Slot, ...]:
        """Return where momentum lives, if it is kept."""
        return (Slot(f"optimizer.{self.optimizer}", "client"),) if self.keep_momentum else ()


class Descent:
    """Take steps down scalars, scaled and clipped as the experiment says.

    Args:
        optimizers: By name.
        train: How.
        device: Where the network lives.
    """

    def __init__(self, optimizers: Optimizers, train: Train, device: torch.device) -> None:
        self._optimizers = optimizers
        self._train = train
        # One each: a scaler that serves two optimizers must be told when both have stepped.
        self._scalers = {
            name: torch.amp.GradScaler(device.type, init_scale=FIRST_LOSS_SCALE)
            for name in (optimizers if train.precision == "fp16" else ())
        }

    def set_lr(self, progress: Progress) -> None:
        """Set every learning rate to what the schedule says of a step."""
        factor = self._train.lr_factor(progress)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = factor * group.setdefault("initial_lr", group["lr"])

    def __call__(self, total: Tensor, name: str) -> None:
        """Minimize a scalar by one step of the named optimizer; one without a gradient leaves all as it is."""
        optimizer, scaler = self._optimizers[name], self._scalers.get(name)
        own = [p for group in optimizer.param_groups for p in group["params"]]
        for parameter in own:
            parameter.grad = None  # zero_grad does this too, inside a record for the profiler
        if not total.requires_grad:
            return
        (total if scaler is None else scaler.scale(total)).backward()  # type: ignore[no-untyped-call]
        if self._train.clip_norm is not None:
            if scaler is not None:
                scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(own, self._train.clip_norm)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
