"""Confusion matrix of a classifier, and how far its confidence can be trusted.

Reference: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, arXiv:1706.04599.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

BINS = 10
"""Number of bins into which [0, 1] is divided by confidence."""


def confusion_matrix(labels: Counts, predicted: Counts, num_classes: int) -> Counts:
    """Count images by true class (rows) and predicted class (columns), shape (C, C).

    Args:
        labels: True class of each image, (n,); images of unknown class (-1) are not counted.
        predicted: Most probable class of each image, (n,).
        num_classes: C, the number of classes.
    """
    known = labels >= 0
    cells = labels[known] * num_classes + predicted[known]
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Reliability:
    """How often a classifier is right at each level of confidence, in bins of equal width over [0, 1].

    Args:
        count: Number of images in each bin, (BINS,).
        confidence: Mean probability of the predicted class in each bin, (BINS,); NaN for an empty bin.
        accuracy: Share of images that are classified correctly in each bin, (BINS,); NaN for an empty bin.
    """

    count: Counts
    confidence: Floats
    accuracy: Floats

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: mean gap between confidence and accuracy (Guo et al., equation 5)."""
        if not self.count.sum():
            return float("nan")
        gaps = np.abs(self.confidence - self.accuracy)
        return float(np.nansum(gaps * self.count) / self.count.sum())


def measure_reliability(probs: Floats, labels: Counts) -> Reliability:
    """Return how often the classifier is right at each level of confidence.

    Args:
        probs: Predicted probabilities, (n, C).
        labels: True classes, (n,); images of unknown class (-1) are not counted.
    """
    known = labels >= 0
    confidence, right = probs[known].max(1), probs[known].argmax(1) == labels[known]
    # An edge belongs to the bin below it, as in the paper; the highest probability is never 0.
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    count = np.bincount(place, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(place, confidence, minlength=BINS) / count
        accuracy = np.bincount(place, right, minlength=BINS) / count
    return Reliability(count, mean_confidence, accuracy)


def mean_accuracy_of_worst_tenth(accuracies: Floats) -> float:
    """Return the mean accuracy of the worst tenth of the clients, at least one; NaN if none has an accuracy."""
    known = np.sort(accuracies[~np.isnan(accuracies)])
    return float(known[: max(1, len(known) // 10)].mean()) if len(known) else float("nan")
