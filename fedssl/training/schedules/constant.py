"""A learning rate that stays as it is."""

from typing import TYPE_CHECKING

from fedssl.training.schedules.base import Schedule

if TYPE_CHECKING:
    from fedssl.training.optimization import Train


class Constant(Schedule):
    """Keep the learning rate as it is."""

    def factor(self, fraction: float, train: "Train") -> float:
        """Return 1."""
        return 1.0
