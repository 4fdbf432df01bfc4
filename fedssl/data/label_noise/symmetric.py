"""Labels are mistaken for any other class alike.

Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
arXiv:1804.06872, section 4.
"""

import numpy as np

from fedssl.data.images import Rows
from fedssl.data.label_noise.base import LabelNoise


class Symmetric(LabelNoise):
    """Take a label for one of the other classes, each equally likely.

    The true class is none of them, so `rate` is the share of wrong labels. Some papers count it in (Li et al.,
    "DivideMix", ICLR 2020, arXiv:2002.07394): their rate r leaves a share of r (C-1)/C wrong among C classes.
    """

    def other(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return a uniformly drawn other class of each; see `LabelNoise.other`."""
        return (labels + generator.integers(1, num_classes, size=len(labels))) % num_classes
