"""Predictions of a run's model for images, and how often they are right if labels are known."""

import csv
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np
import torch
from torch import nn

from fedssl.core.text import as_cell
from fedssl.data.blocks import Block
from fedssl.data.shard import ImageSpec
from fedssl.metrics.balanced import Balanced, measure_balanced
from fedssl.metrics.predictions import predict_probs
from fedssl.views.closer_look import fingerprints

COLUMNS = ("path", "class", "confidence", "label")
"""Header of the CSV file of predictions."""

MOST_PROBS = 50_000_000
"""At most this many probabilities are kept for macro F1 and AUROC; they take four bytes each."""


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one image.

    Args:
        path: Name of the image.
        class_name: Name of the most probable class.
        confidence: Probability of that class, in [0, 1].
        label: Name of the true class; empty if it is not known.
        true_class: Number of the true class; -1 if it is not known.
        probs: Probability of every class.
        was_trained_on: Whether the image is known to be a training image of the run; only asked if the class is known.
    """

    path: str
    class_name: str
    confidence: float
    label: str
    true_class: int
    probs: Sequence[float]
    was_trained_on: bool

    @property
    def is_right(self) -> bool:
        """Whether the label is known and equals the predicted class."""
        return self.class_name == self.label


def predictions_of(
    network: nn.Module,
    blocks: Iterable[Block],
    spec: ImageSpec,
    class_names: Sequence[str],
    trained_on: Callable[[], Collection[str]],
) -> Iterator[Prediction]:
    """Yield a classifier's prediction for every image, in order; only one block is in memory at a time.

    Args:
        network: Classifier in evaluation mode, from normalized images to logits.
        blocks: Blocks of named images of the shape of `spec`.
        spec: Shape of the images and how to normalize them.
        class_names: Name of each class.
        trained_on: Function that returns the fingerprints of the run's training images; called if a class is known.
    """
    names = [*class_names, ""]  # label -1 (not known) selects the last name
    for block in blocks:
        probs = predict_probs(network, torch.from_numpy(block.images), spec)
        confidences, classes = probs.max(1)
        known = (block.labels >= 0).any()
        seen = [one in trained_on() for one in fingerprints(block.images)] if known else None
        assert block.names is not None
        yield from (
            Prediction(path, names[cls], confidence, names[label], label, of_all, was_trained_on)
            for path, cls, confidence, label, of_all, was_trained_on in zip(
                block.names, classes.tolist(), confidences.tolist(), block.labels.tolist(),
                probs.tolist(), seen or [False] * len(probs), strict=True,
            )
        )  # fmt: skip


class Tally:
    """Counts right predictions of images whose class is known, and keeps what the measures by class need."""

    def __init__(self) -> None:
        self.count = 0
        self.num_right = 0
        self._labels, self._probs = array("q"), array("f")

    def add(self, one: Prediction) -> None:
        """Count a prediction of an image whose class is known."""
        self.count += 1
        self.num_right += one.is_right
        if len(self._probs) <= MOST_PROBS:
            self._labels.append(one.true_class)
            self._probs.extend(one.probs)

    @property
    def accuracy(self) -> float:
        """Share of the images that are named correctly, in [0, 1]."""
        return self.num_right / self.count

    def measure_balanced(self) -> Balanced | None:
        """Return the measures that give every class the same weight; None for images of one class, or for too many."""
        labels = np.array(self._labels, dtype=np.int64)
        if len(np.unique(labels)) < 2 or len(self._probs) > MOST_PROBS:
            return None
        return measure_balanced(np.array(self._probs).reshape(len(labels), -1), labels)


class Predictions:
    """Write predictions to a CSV file, keep the first predictions, and count all of them.

    Args:
        most: Number of predictions to keep.
        file: File to which one line per prediction is written; None writes no file.
    """

    def __init__(self, most: int, file: TextIO | None) -> None:
        self.first: list[Prediction] = []
        self.count = 0
        self.labeled = Tally()
        """Images whose class is known."""
        self.new = Tally()
        """Images whose class is known, without training images of the run."""
        self._most = most
        self._writer = None if file is None else csv.writer(file)
        if self._writer is not None:
            self._writer.writerow(COLUMNS)

    def add(self, one: Prediction) -> None:
        """Count a prediction, write it, and keep it if it is among the first."""
        if len(self.first) < self._most:
            self.first.append(one)
        self.count += 1
        if one.label:
            self.labeled.add(one)
            if not one.was_trained_on:
                self.new.add(one)
        if self._writer is not None:
            path, name, label = map(as_cell, (one.path, one.class_name, one.label))
            self._writer.writerow((path, name, f"{one.confidence:.6f}", label))
