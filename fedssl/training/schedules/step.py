"""A learning rate that falls at milestones."""

from typing import TYPE_CHECKING, ClassVar

from fedssl.training.schedules.base import Schedule

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class Step(Schedule):
    """Multiply the learning rate by ``train.gamma`` at each of ``train.milestones``."""

    reads: ClassVar[tuple[str, ...]] = ("milestones", "gamma")

    def factor(self, fraction: float, train: "Train") -> float:
        """Return gamma^n after n milestones."""
        return train.gamma ** sum(fraction >= share for share in train.milestones)
