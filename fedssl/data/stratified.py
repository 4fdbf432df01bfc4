"""A stratified split with the same rows as scikit-learn's `train_test_split`.

Importing scikit-learn takes a second, and every process of a run that draws a split would need it for this alone. The
draws come from numpy's legacy streams, which never change, so the split of a seed never changes either.
"""

import math

import numpy as np
import numpy.typing as npt

from fedssl.data.images import Rows


def draw_test_rows(labels: Rows, share: float, seed: int) -> Rows:
    """Return the rows to hold out for test, the same share of every class.

    Args:
        labels: Class of each row, (N,).
        share: Share of the rows to hold out, in (0, 1); the number of rows is rounded up.
        seed: Seed of the draw, below 2^32.

    Raises:
        ValueError: A class would have no rows for training or none for test.
    """
    sizes, rows_of = _by_class(labels)
    num_test = math.ceil(share * len(labels))
    num_train = len(labels) - num_test
    if len(sizes) == 0 or sizes.min() < 2 or min(num_train, num_test) < len(sizes):
        raise ValueError(f"{num_test} of {len(labels)} rows cannot be held out of every class")
    stream = np.random.RandomState(seed)
    train = apportion(sizes, num_train, stream)
    # The test side could simply get the remaining rows, but scikit-learn apportions them again, which may draw numbers.
    test = apportion(sizes - train, num_test, stream)
    dealt = [rows[stream.permutation(len(rows))] for rows in rows_of]
    parts = zip(dealt, train, test, strict=True)
    return np.concatenate([rows[start : start + count] for rows, start, count in parts])


def _by_class(labels: Rows) -> tuple[Rows, list[Rows]]:
    """Return the number of rows of every class that occurs, and the rows of each class, ascending."""
    _, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    return sizes, np.split(np.argsort(codes, kind="stable"), np.cumsum(sizes)[:-1])


def apportion(sizes: Rows, count: int, stream: np.random.RandomState | np.random.Generator) -> Rows:
    """Divide a count in proportion to sizes, by largest remainders.

    Each part first gets its exact share, rounded down. The parts with the largest remainders get one more; a draw
    decides between equal remainders.

    Args:
        sizes: Size of each part, (P,); their sum is positive.
        count: The number to divide.
        stream: Stream of the draws between equal remainders.

    Returns:
        The share of each part, int64 (P,); the shares add up to the count.
    """
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
