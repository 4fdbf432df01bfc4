"""What a client must know of a federation's images before it can read images of its own."""

import json
from dataclasses import asdict, dataclass

from fedssl.data.images import Dataset
from fedssl.data.shard import ImageSpec


@dataclass(frozen=True)
class Terms:
    """What all images of a federation have in common, and what its classes are called.

    Args:
        spec: Shape, number of classes, normalization.
        class_names: One name a class.
    """

    spec: ImageSpec
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, data: Dataset) -> "Terms":
        """Return the terms that a data set sets."""
        return cls(data.spec, data.class_names)

    def to_json(self) -> str:
        """Return the terms as one line of text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Terms":
        """Read what `to_json` wrote; numbers come back as they were."""
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
