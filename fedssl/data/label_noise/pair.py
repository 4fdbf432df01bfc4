"""Labels are mistaken for one class in particular, as look-alikes are.

Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
arXiv:1804.06872, section 4 ("pair flipping").
"""

import numpy as np

from fedssl.data.images import Rows
from fedssl.data.label_noise.base import LabelNoise


class Pair(LabelNoise):
    """Take a label for the next class; the last one for the first."""

    def other(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return the class after each; see `LabelNoise.other`."""
        return (labels + 1) % num_classes
