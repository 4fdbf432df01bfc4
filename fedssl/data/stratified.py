"""A stratified draw: scikit-learn's `train_test_split`, row for row, without the second that importing it takes.

Every process of a run draws the split of a data set that has no test images of its own, and needs nothing else of
scikit-learn. The draws come from numpy's legacy streams, which are frozen: so is the split of a seed.
"""

import math

import numpy as np
import numpy.typing as npt

from fedssl.data.images import Rows


def draw_test_rows(labels: Rows, share: float, seed: int) -> Rows:
    """Return the rows to hold out for test, as many of each class as its share of all.

    Args:
        labels: Class of each row, (N,).
        share: Of the rows, in (0, 1); rounded up to whole rows.
        seed: Below 2^32.

    Raises:
        ValueError: Some class would be without rows on one of the sides.
    """
    sizes, rows_of = _by_class(labels)
    num_test = math.ceil(share * len(labels))
    num_train = len(labels) - num_test
    if len(sizes) == 0 or sizes.min() < 2 or min(num_train, num_test) < len(sizes):
        raise ValueError(f"{num_test} of {len(labels)} rows cannot be held out of every class")
    stream = np.random.RandomState(seed)
    train = _apportion(sizes, num_train, stream)
    # What is left is what the test side gets, but scikit-learn apportions it too, and that may draw.
    test = _apportion(sizes - train, num_test, stream)
    dealt = [rows[stream.permutation(len(rows))] for rows in rows_of]
    parts = zip(dealt, train, test, strict=True)
    return np.concatenate([rows[first : first + count] for rows, first, count in parts])


def _by_class(labels: Rows) -> tuple[Rows, list[Rows]]:
    """Return the number of rows of every class there is, and the rows themselves in their order."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return sizes, np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])


def _apportion(sizes: Rows, count: int, stream: np.random.RandomState) -> Rows:
    """Share a count out in proportion to sizes: whole parts first, then one more by largest remainder; ties are drawn."""
    exact: npt.NDArray[np.float64] = sizes / sizes.sum() * count
    parts = np.floor(exact)
    remainders = exact - parts
    left = int(count - parts.sum())
    for remainder in np.unique(remainders)[::-1]:
        if left == 0:
            break
        (tied,) = np.nonzero(remainders == remainder)
        lucky = stream.choice(tied, size=min(len(tied), left), replace=False)
        parts[lucky] += 1
        left -= len(lucky)
    return parts.astype(np.int64)
