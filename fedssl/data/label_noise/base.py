"""What every label noise is: a law by which some of the given labels are wrong."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedssl.core.registry import Family, Plugin
from fedssl.data.images import Rows


class LabelNoise(Plugin):
    """A law by which a share of the given labels, wherever they are, are of another class.

    True classes, which measure pseudo-labels, and the labels of test images stay right.
    """

    is_abstract: ClassVar[bool] = True

    rate: float = Field(0.2, ge=0, le=1, description="share of the given labels that are wrong")

    def corrupt(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return the labels with exactly ``round(rate * n)`` of them, uniformly drawn, of another class.

        Papers let every label be wrong with probability `rate`; an exact count takes that luck out of few labels.

        Args:
            labels: Given labels of the labeled examples, in 0..num_classes-1, int64 (n,); not written to.
            num_classes: Number of classes, at least 2.
            generator: Draws which labels are wrong, and what they are.

        Returns:
            int64 (n,).
        """
        wrong = generator.choice(len(labels), size=round(self.rate * len(labels)), replace=False)
        noisy = labels.copy()
        noisy[wrong] = self.other(labels[wrong], num_classes, generator)
        return noisy

    @abstractmethod
    def other(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return what to take each of these labels for, int64 (n,): never itself.

        Args:
            labels: True ones, in 0..num_classes-1, int64 (n,).
            num_classes: Number of classes, at least 2.
            generator: Source of the draw.
        """


LABEL_NOISES = Family(
    "label noise", "fedssl.data.label_noise", LabelNoise, "federation.label_noise", default=None
)
