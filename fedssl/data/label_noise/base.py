"""The base class of label noises: a label noise is a law by which some of the given labels are wrong."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedssl.core.registry import Family, Plugin
from fedssl.data.images import Rows


class LabelNoise(Plugin):
    """A law by which a share of the given labels, at clients and server, name a wrong class.

    The true classes that pseudo-labels are measured by stay right, and so do the labels of test images.

    Example:
        A member defines `other`, which returns wrong classes for some labels. `corrupt` draws the labels that get them.

        >>> class Previous(LabelNoise):
        ...     def other(self, labels, num_classes, generator):
        ...         return (labels - 1) % num_classes
        >>> labels = np.array([2, 2, 2, 2])
        >>> sorted(Previous(rate=0.5).corrupt(labels, 3, np.random.default_rng(0)).tolist())
        [1, 1, 2, 2]
    """

    is_abstract: ClassVar[bool] = True

    rate: float = Field(0.2, ge=0, le=1, description="share of the given labels that are wrong")

    def corrupt(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return a copy of the labels in which exactly ``round(rate * n)``, uniformly drawn, are wrong.

        In papers, every label is wrong with probability `rate`. An exact count removes this randomness, which is large
        when labels are few.

        Args:
            labels: Given labels of the n labeled examples, in 0..num_classes-1, int64 (n,); they are not written to.
            num_classes: Number of classes, at least 2.
            generator: Stream that draws which labels are wrong, and their wrong classes.

        Returns:
            The labels with noise, int64 (n,).
        """
        wrong = generator.choice(len(labels), size=round(self.rate * len(labels)), replace=False)
        noisy = labels.copy()
        noisy[wrong] = self.other(labels[wrong], num_classes, generator)
        return noisy

    @abstractmethod
    def other(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return a wrong class for each of these labels, int64 (n,).

        Args:
            labels: Right labels, in 0..num_classes-1, int64 (n,).
            num_classes: Number of classes, at least 2.
            generator: Stream to draw from.
        """


LABEL_NOISES = Family(
    "label noise", "fedssl.data.label_noise", LabelNoise, "federation.label_noise", default=None
)
