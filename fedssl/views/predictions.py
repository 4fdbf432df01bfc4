"""What a run's model says of images, one line each, and how often it is right where that is known."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import torch
from torch import nn

from fedssl.core.text import as_cell
from fedssl.data.blocks import Block
from fedssl.data.shard import ImageSpec
from fedssl.metrics.predictions import predict_probs

COLUMNS = ("path", "class", "confidence", "label")


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Args:
        path: What the image is called.
        class_name: The most probable class.
        confidence: Its probability.
        label: The true class; empty where nobody knows it.
    """

    path: str
    class_name: str
    confidence: float
    label: str

    @property
    def is_right(self) -> bool:
        """Whether the label is known and met."""
        return self.class_name == self.label


def predictions_of(
    network: nn.Module, blocks: Iterable[Block], spec: ImageSpec, class_names: Sequence[str]
) -> Iterator[Prediction]:
    """Yield what a classifier says of every image, in order; a block is held in memory at a time.

    Args:
        network: In evaluation mode, from normalized images to logits.
        blocks: Named images of the shape of `spec`.
        spec: How to normalize.
        class_names: One name a class.
    """
    names = [*class_names, ""]  # the label -1 is the last
    for block in blocks:
        probs = predict_probs(network, torch.from_numpy(block.images), spec)
        confidences, classes = probs.max(1)
        assert block.names is not None
        yield from (
            Prediction(path, names[cls], confidence, names[label])
            for path, cls, confidence, label in zip(
                block.names, classes.tolist(), confidences.tolist(), block.labels.tolist(),
                strict=True,
            )
        )  # fmt: skip


class Predictions:
    """Passes predictions on to a CSV file, keeps the first ones, and counts.

    Args:
        most: How many to keep.
        file: Where a line each is written; None: nowhere.
    """

    def __init__(self, most: int, file: TextIO | None) -> None:
        self.first: list[Prediction] = []
        self.count = 0
        self.num_labeled = 0
        self.num_right = 0
        self._most = most
        self._writer = None if file is None else csv.writer(file)
        if self._writer is not None:
            self._writer.writerow(COLUMNS)

    def add(self, one: Prediction) -> None:
        """Take note of a prediction."""
        if len(self.first) < self._most:
            self.first.append(one)
        self.count += 1
        self.num_labeled += bool(one.label)
        self.num_right += one.is_right
        if self._writer is not None:
            path, name, label = map(as_cell, (one.path, one.class_name, one.label))
            self._writer.writerow((path, name, f"{one.confidence:.6f}", label))
