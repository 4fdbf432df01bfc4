"""A few labels of every class, wherever the partition put the images."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.data.labels.base import LabelSplit
from fedssl.errors import InputError


class AtClients(LabelSplit):
    """Draw the labeled examples once over the whole federation; the partition spreads them."""

    per_class: int | Literal["all"] = Field(
        4, description="labeled examples of each class in the whole federation, or all"
    )

    def draw(
        self,
        labels: npt.NDArray[np.int64],
        owner: npt.NDArray[np.int64],
        num_classes: int,
        generator: np.random.Generator,
    ) -> npt.NDArray[np.bool_]:
        """Return exactly `per_class` labeled examples of every class; see `LabelSplit.draw`."""
        if self.per_class == "all":
            return np.ones(len(labels), dtype=np.bool_)
        if self.per_class < 1:
            raise InputError("federation.labels.per_class", f"is {self.per_class}", "at least 1")
        labeled = np.zeros(len(labels), dtype=np.bool_)
        for cls in range(num_classes):
            members = np.flatnonzero(labels == cls)
            if self.per_class > len(members):
                raise InputError(
                    "federation.labels.per_class",
                    f"is {self.per_class}, but class {cls} has {len(members)} training images",
                    f"at most {np.bincount(labels, minlength=num_classes).min()}",
                )
            labeled[generator.choice(members, size=self.per_class, replace=False)] = True
        return labeled
