"""Symmetric noise: labels are mistaken for every other class equally often.

Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
arXiv:1804.06872, section 4.
"""

import numpy as np

from fedssl.data.images import Rows
from fedssl.data.label_noise.base import LabelNoise


class Symmetric(LabelNoise):
    """Replace a label by one of the other classes, each equally likely.

    The true class is not drawn, so `rate` is the share of wrong labels. Some papers draw the true class too (Li et al.,
    "DivideMix", ICLR 2020, arXiv:2002.07394): with C classes, their rate r makes a share r (C-1)/C of the labels wrong.
    """

    def other(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return a uniformly drawn other class for each label; see `LabelNoise.other`."""
        return (labels + generator.integers(1, num_classes, size=len(labels))) % num_classes
