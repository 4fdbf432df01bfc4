"""The base class of schedules; a schedule says which share of the learning rate a step has."""

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from fedssl.core.registry import Family, Plugin

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class Schedule(Plugin):
    """A rule for the learning rate over the steps of a phase, or of a round (``train.schedule_over``).

    Example:
        A new schedule defines `factor`. Every schedule may begin with a warm-up.

        >>> from fedssl.training.optimization import Train
        >>> class Linear(Schedule):
        ...     def factor(self, fraction, train):
        ...         return 1 - fraction
        >>> [Linear(warm_up=0.5).lr_factor(step, 8, Train()) for step in range(8)]
        [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    """

    is_abstract: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ()
    """Those of the settings `milestones` and `gamma` of ``[train]`` that the schedule uses; it refuses the others."""

    warm_up: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps in which lr rises linearly to its full value; the schedule spans the other steps",
    )

    def check(self, train: "Train") -> None:
        """Raise `ValueError` if ``[train]`` sets `milestones` or `gamma` and the schedule does not read it."""
        for name in ("milestones", "gamma"):
            is_set = getattr(train, name) != type(train).model_fields[name].default
            if is_set and name not in self.reads:
                raise ValueError(f"{name} is for schedule = 'step', not {self.kind!r}")

    @abstractmethod
    def factor(self, fraction: float, train: "Train") -> float:
        """Return the factor of the learning rate at a step after the warm-up.

        Args:
            fraction: Share of the steps after the warm-up that are over, in [0, 1].
            train: The ``[train]`` section.
        """

    def lr_factor(self, step: int, num_steps: int, train: "Train") -> float:
        """Return the factor of the learning rate at a step.

        The warm-up's first step has a factor above 0, and its last step the factor 1.

        Args:
            step: Steps that are over; at the end of a phase and beyond, the schedule stays at its end.
            num_steps: Steps that the schedule spans, warm-up included.
            train: The ``[train]`` section.

        Reference: Goyal et al., "Accurate, Large Minibatch SGD", 2017, arXiv:1706.02677, section 2.2, for the warm-up.
        """
        warm_steps = self.warm_up * num_steps
        if step < warm_steps:
            return min(1.0, (step + 1) / warm_steps)
        fraction = (step - warm_steps) / max(1, num_steps - warm_steps)
        return self.factor(min(1.0, fraction), train)


SCHEDULES = Family(
    "schedule", "fedssl.training.schedules", Schedule, "train.schedule", default="constant"
)
