"""Every client labels a share of its own images.

Liu et al., "Mind the Gap: Confidence Discrepancy Can Guide Federated Semi-Supervised Learning Across Pseudo-Mismatch"
(SAGE), CVPR 2025, arXiv:2503.13227, has 10 % of labels at every client; Jeong et al., "Federated Semi-Supervised
Learning with Inter-Client Consistency & Disjoint Learning" (FedMatch), ICLR 2021, arXiv:2006.12097, has 5 labels of
each class at each client.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from fedssl.data.images import Mask, Rows
from fedssl.data.labels.base import LabelSplit, Pool, choose, rows_by_group
from fedssl.data.stratified import apportion


class EveryClient(LabelSplit):
    """Draw labels at each client by itself, so that each client has its share.

    With `fraction`, the number of a client's labels is that share of its images, rounded, and at least 1. The labels are
    divided over the client's classes in proportion to their images, by largest remainders; so a class with few images
    at a client may get no label there. With `per_class`, a client labels that many images of each class. A client that
    has fewer images of a class labels all of them, and a class that a client does not have gets no label there.
    """

    per_class: int | tuple[int, ...] | Literal["all"] | None = Field(
        None,
        description="number of labeled examples of each class at each client, as far as the client has them: one "
        "number for all classes, a list with a number for each class, or all; unset: 4",
    )
    fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of each client's images that is labeled, instead of per_class",
    )

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Return whether each example is labeled, (N,); see `LabelSplit.draw`.

        Raises:
            InputError: `per_class` lists numbers for more or fewer classes.
        """
        assert pool.owner is not None
        labeled = np.zeros(len(pool.labels), dtype=np.bool_)
        for rows in rows_by_group(pool.owner, pool.labelable):
            labels = pool.labels[rows]
            there = np.bincount(labels, minlength=pool.num_classes)
            amounts = self._amounts_of_client(there, generator)
            labeled[rows] = choose(labels, np.full(len(rows), True), amounts, generator)
        return labeled

    def _amounts_of_client(self, there: Rows, generator: np.random.Generator) -> list[int]:
        """Return how many examples of each class one client labels; `there` has at least one example."""
        if self.fraction is None:
            wanted = self.wanted_of_each_class(there)
            return [min(count, int(most)) for count, most in zip(wanted, there, strict=True)]
        count = max(1, round(self.fraction * int(there.sum())))
        return [int(share) for share in apportion(there, count, generator)]
