"""Predictions of a run's model for images, and how often they are right if labels are known."""

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
"""Header of the CSV file of predictions."""


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one image.

    Args:
        path: Name of the image.
        class_name: Name of the most probable class.
        confidence: Probability of that class, in [0, 1].
        label: Name of the true class; empty if it is not known.
    """

    path: str
    class_name: str
    confidence: float
    label: str

    @property
    def is_right(self) -> bool:
        """Whether the label is known and equals the predicted class."""
        return self.class_name == self.label


def predictions_of(
    network: nn.Module, blocks: Iterable[Block], spec: ImageSpec, class_names: Sequence[str]
) -> Iterator[Prediction]:
    """Yield a classifier's prediction for every image, in order; only one block is in memory at a time.

    Args:
        network: Classifier in evaluation mode, from normalized images to logits.
        blocks: Blocks of named images of the shape of `spec`.
        spec: Shape of the images and how to normalize them.
        class_names: Name of each class.
    """
    names = [*class_names, ""]  # label -1 (not known) selects the last name
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
    """Write predictions to a CSV file, keep the first predictions, and count all of them.

    Args:
        most: Number of predictions to keep.
        file: File to which one line per prediction is written; None writes no file.
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
        """Count a prediction, write it, and keep it if it is among the first."""
        if len(self.first) < self._most:
            self.first.append(one)
        self.count += 1
        self.num_labeled += bool(one.label)
        self.num_right += one.is_right
        if self._writer is not None:
            path, name, label = map(as_cell, (one.path, one.class_name, one.label))
            self._writer.writerow((path, name, f"{one.confidence:.6f}", label))
