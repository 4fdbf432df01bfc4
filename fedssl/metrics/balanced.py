"""Measures that give every class the same weight, however many images it has: macro F1, balanced accuracy and AUROC.

Where classes are uneven, accuracy hides the rare ones: who always names a class of 95 % of the images is right for 95 % of them.

Reference: AUROC by ranks is the statistic of Mann & Whitney, On a Test of Whether one of Two Random Variables is
Stochastically Larger than the Other, 1947. All measures are those of scikit-learn, which deployed clients do not have.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedssl.metrics.calibration import confusion_matrix

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Balanced:
    """Recall, precision, F1 and AUROC of each class, shape (C,), in [0, 1]; NaN where a measure is not defined.

    Args:
        images: Number of images of each class.
        recall: Share of the images of a class that are named correctly; NaN for a class without images.
        precision: Share of the images taken for a class that are of that class; NaN if no image was taken for it.
        f1: Harmonic mean of recall and precision. It is 0 if images were taken for a class without images, or if no image was
            taken for a class with images; NaN for a class with neither.
        auroc: How often an image of the class has a higher probability of the class than an image of another class; a tie
            counts as half. NaN for a class without images, for a class that all images have, and if a probability is NaN.
    """

    images: Counts
    recall: Floats
    precision: Floats
    f1: Floats
    auroc: Floats

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that have images or were named for one; NaN without images."""
        return _mean(self.f1)

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images; NaN without images."""
        return _mean(self.recall)

    @property
    def macro_auroc(self) -> float:
        """Mean AUROC, one class against the rest, of the classes for which it is defined; NaN if there is no such class.

        With two classes, it is the AUROC of either class: both are the same.
        """
        return _mean(self.auroc)

    @property
    def by_name(self) -> dict[str, float]:
        """The three measures of all classes together, by the names in `MEASURES`."""
        values = (self.macro_f1, self.balanced_accuracy, self.macro_auroc)
        return dict(zip(MEASURES, values, strict=True))


MEASURES = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "auroc": "AUROC"}
"""What a measure of all classes is called in records, and what people read."""


def measure_balanced(probs: npt.NDArray[np.floating], labels: Counts) -> Balanced:
    """Return the measures of every class.

    Args:
        probs: Predicted probabilities, (n, C).
        labels: True classes, (n,); images of unknown class (-1) are not counted.
    """
    known = labels >= 0
    probs, labels = probs[known], labels[known]
    num_classes = probs.shape[1]
    counts = confusion_matrix(labels, probs.argmax(1), num_classes)
    right, images, named = counts.diagonal(), counts.sum(1), counts.sum(0)
    with np.errstate(invalid="ignore"):
        recall, precision, f1 = right / images, right / named, 2 * right / (images + named)
    auroc = [_auroc(probs[:, cls], labels == cls) for cls in range(num_classes)]
    return Balanced(images, recall, precision, f1, np.array(auroc))


def _auroc(scores: npt.NDArray[np.floating], is_positive: npt.NDArray[np.bool_]) -> float:
    """Return how often a positive image has a higher score than a negative one; a tie counts as half."""
    positive = int(is_positive.sum())
    negative = len(is_positive) - positive
    if not positive or not negative or np.isnan(scores).any():
        return float("nan")
    # Tied scores share their mean rank, so that each tied pair counts as half. (scipy.stats, which has this, takes long to import.)
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[is_positive].sum() - positive * (positive + 1) / 2) / (positive * negative))


def _mean(values: Floats) -> float:
    """Return the mean of the values that are not NaN; NaN if there are no such values."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
