"""Classical classifiers on the labels of a federation, all images in one place: what a federation's accuracy is held against.

Each classifier sees raw pixels in [0, 1] and has scikit-learn's default settings, because nothing but held-out images could choose
better ones. Logistic regression and the nearest neighbor learn from the labeled images alone. Label spreading over the graph of
nearest neighbors learns from the unlabeled images too.
"""

import hashlib
import math
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fedssl.core.errors import InputError
from fedssl.data.federation import NOBODY, Federation

MOST_SPREAD = 100_000
"""With more training images than this, the accuracy of label spreading is NaN: its graph would take hours."""

Pixels = npt.NDArray[np.float32]


class Yardstick(NamedTuple):
    """A classifier, and its accuracy on the held-out images, in [0, 1]."""

    name: str
    accuracy: float


def yardsticks(federation: Federation) -> Iterator[Yardstick]:
    """Yield each classifier once it has learned and was judged.

    Raises:
        InputError: There are no labels of two classes, or no held-out images.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.semi_supervised import LabelSpreading

    labeled, given = federation.labeled, federation.given
    if len(np.unique(given[labeled])) < 2:
        raise InputError("baseline", "needs labeled images of two classes at least")
    if not len(federation.held_out):
        raise InputError("baseline", "needs held-out images, and there are none")
    images, truth = federation.data.train, federation.held_out.labels
    rows = np.flatnonzero(labeled)
    known, test = _pixels(images.read(rows)), _pixels(federation.held_out.images)
    # More steps than the default: it ends once the weights no longer change.
    linear = LogisticRegression(max_iter=1000).fit(known, given[rows])
    yield Yardstick("logistic regression", float(linear.score(test, truth)))
    nearest = KNeighborsClassifier(1).fit(known, given[rows])
    yield Yardstick("nearest neighbor", float(nearest.score(test, truth)))
    used = np.flatnonzero(federation.owner != NOBODY)
    if len(used) > MOST_SPREAD:
        yield Yardstick("label spreading (too many images)", math.nan)
        return
    train = _pixels(images.read(used))
    with warnings.catch_warnings():
        # Some images of a small graph are out of reach of every label. They get no class, and scikit-learn warns.
        warnings.filterwarnings("ignore", "invalid value encountered", RuntimeWarning)
        # scikit-learn marks an image without a label by -1, as a federation does.
        graph = LabelSpreading(kernel="knn").fit(train, given[used])
        accuracy = float(graph.score(test, truth))
    yield Yardstick("label spreading", accuracy)


def learned_from(federation: Federation) -> str:
    """Return a checksum that is equal for two federations of one data set and seed if the classifiers learn and are judged alike.

    They know nothing of the clients that hold the images.
    """
    digest = hashlib.sha256()
    used, held_out = federation.owner != NOBODY, federation.held_out.labels
    for array in (federation.given, used, federation.held_back_rows, held_out):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _pixels(images: npt.NDArray[np.uint8]) -> Pixels:
    """Return images (N, C, H, W) as rows of pixels in [0, 1], shape (N, C H W)."""
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
