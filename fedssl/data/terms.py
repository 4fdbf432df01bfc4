"""The terms of a federation: what a client must know before it can read its own images for it."""

import json
from dataclasses import asdict, dataclass

from fedssl.data.images import Dataset
from fedssl.data.shard import ImageSpec


@dataclass(frozen=True)
class Terms:
    """The common properties of all images of a federation, and the names of its classes.

    Args:
        spec: Shape, number of classes and normalization of all images.
        class_names: Name of each class.
    """

    spec: ImageSpec
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset) -> "Terms":
        """Return the terms of a federation that trains on a data set."""
        return cls(data.spec, data.class_names)

    def to_json(self) -> str:
        """Return the terms as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Terms":
        """Read the terms that `to_json` wrote; all numbers come back exactly."""
        table = json.loads(text)
        spec = table["spec"]
        channels, height, width = spec["shape"]
        return cls(
            ImageSpec(
                shape=(channels, height, width),
                num_classes=spec["num_classes"],
                mean=tuple(spec["mean"]),
                std=tuple(spec["std"]),
                flips=spec["flips"],
            ),
            tuple(table["class_names"]),
        )
