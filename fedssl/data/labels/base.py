"""What every label split is: a law that says which examples keep their label."""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedssl.registry import Family, Plugin


class LabelSplit(Plugin):
    """A law that leaves some of a federation's examples labeled."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def draw(
        self,
        labels: npt.NDArray[np.int64],
        owner: npt.NDArray[np.int64],
        num_classes: int,
        generator: np.random.Generator,
    ) -> npt.NDArray[np.bool_]:
        """Say which examples are labeled.

        Args:
            labels: True class of each example, int64 (N,).
            owner: Client of each example, int64 (N,).
            num_classes: Number of classes.
            generator: Source of the draw.

        Returns:
            Shape (N,), true where the label is kept.

        Raises:
            InputError: More labels are asked for than there are examples.
        """


LABEL_SPLITS = Family(
    "label split", "fedssl.data.labels", LabelSplit, "federation.labels", default="at_clients"
)
