"""Pair noise: labels of a class are mistaken for one other class, as classes that look alike are.

Han et al., "Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels", NeurIPS 2018,
arXiv:1804.06872, section 4 ("pair flipping").
"""

import numpy as np

from fedssl.data.images import Rows
from fedssl.data.label_noise.base import LabelNoise


class Pair(LabelNoise):
    """Replace a label by the next class, and a label of the last class by the first class."""

    def other(self, labels: Rows, num_classes: int, generator: np.random.Generator) -> Rows:
        """Return the class after each label; see `LabelNoise.other`."""
        return (labels + 1) % num_classes
