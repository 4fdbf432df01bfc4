"""The interface of evaluators: an evaluator says how a phase's global model is judged.

The classifier of the model is one judge. A judge of features is another: it learns the classes from labeled images, with
the model frozen, and then names the class of held-out images. So a model can be judged that has learned without labels.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.core.slots import Tensors
from fedssl.data.federation import Federation
from fedssl.data.images import Rows
from fedssl.data.shard import ImageSpec, as_float
from fedssl.metrics.accuracy import BATCH_SIZE

SECTION = "server.evaluator"
"""Place of the section in the experiment file; errors name it."""


@dataclass(frozen=True)
class Subject:
    """A global model in evaluation mode, as an evaluator sees it.

    Args:
        logits: Function from normalized images (B, C, H, W) to the classifier's logits (B, num_classes).
        layers: Functions from normalized images to features (B, width), by the name of the layer that makes them.
        spec: What the images have in common.
    """

    logits: Callable[[Tensor], Tensor]
    layers: Mapping[str, Callable[[Tensor], Tensor]]
    spec: ImageSpec


@dataclass(frozen=True)
class Examples:
    """The labeled images that an evaluator learns from.

    Args:
        images: uint8, shape (n, C, H, W).
        labels: Classes, int64, shape (n,).
    """

    images: Tensor
    labels: Tensor


class Evaluator(Plugin):
    """How a global model is judged: what the judge learns once for each model, and its scores for images.

    Example:
        The simplest evaluator learns nothing and takes the classifier's logits as scores:

        >>> class ByLogits(Evaluator):
        ...     def scores(self, subject, learned, images):
        ...         return {"classifier": subject.logits(images)}
        >>> spec = ImageSpec((1, 1, 2), 2, (0.0,), (1.0,), flips=False)
        >>> subject = Subject(lambda images: images.flatten(1), {}, spec)
        >>> ByLogits().scores(subject, {}, torch.tensor([[[[0.0, 1.0]]]]))["classifier"].argmax(1).item()
        1
    """

    is_abstract: ClassVar[bool] = True

    @property
    def learns(self) -> bool:
        """Whether the evaluator learns from labeled images before it judges; by default it does not."""
        return False

    @property
    def title(self) -> str:
        """What tables and charts call the evaluator."""
        return self.kind.rpartition(".")[2].replace("_", " ")

    def describe(self, federation: Federation) -> str:
        """Return the judge in a few words, such as ``linear probe, 40 labels``, as records and views name it.

        Judges whose accuracies cannot be compared must have different words: so the words end with the changed settings.
        """
        return ", ".join([self.title, *self.changed_settings()])

    def changed_settings(self, *unsaid: str) -> list[str]:
        """Return the settings that are not at their default, such as ``penalty = 10.0``.

        Args:
            unsaid: Names of settings that are left out.
        """
        return [
            f"{name} = {getattr(self, name)}"
            for name, field in type(self).model_fields.items()
            if name not in unsaid
            and getattr(self, name) != field.get_default(call_default_factory=True)
        ]

    def check(self, layers: Sequence[str], federation: Federation) -> None:
        """Raise `InputError` if the evaluator cannot judge the models of a phase; by default it can.

        Args:
            layers: Names of the layers whose features the phase's method offers.
            federation: The federation as the server knows it.
        """

    def examples(self, federation: Federation) -> Examples:
        """Return the labeled images that the evaluator learns from; called only if it learns."""
        raise NotImplementedError(f"{self.kind} learns, but does not say from which images")

    def learn(self, subject: Subject, examples: Examples) -> Tensors:
        """Return what the evaluator learns of one model, as tensors by name; nothing by default.

        It runs once for each model, without gradients. The same arguments must give the same bits.

        Args:
            subject: The model, in evaluation mode.
            examples: The labeled images; the only images that may be looked at.
        """
        return {}

    @abstractmethod
    def scores(self, subject: Subject, learned: Tensors, images: Tensor) -> dict[str, Tensor]:
        """Return the logits (B, num_classes) that the judge gives to images, by the name of what it looks at.

        The first entry is the judgment: accuracy, loss and predictions come from it. The accuracy of each entry is
        recorded too if there are layers.

        Args:
            subject: The model, in evaluation mode.
            learned: What `learn` returned, on the device of the images.
            images: Normalized images (B, C, H, W).
        """


class FeatureEvaluator(Evaluator):
    """A judge that learns from the features of some layers, each layer by itself.

    The labeled images are shown as they are, without augmentation. The judge's accuracy is that of the first layer; the
    record has the accuracy of every layer as a number, ``probe.LAYER``, and that of the moving average as
    ``probe.LAYER.ema``.

    Example:
        A new judge of features defines two pure functions:

        >>> class NearestMean(FeatureEvaluator):
        ...     def learn_layer(self, features, labels, num_classes):
        ...         return {"means": torch.stack([features[labels == c].mean(0) for c in range(num_classes)])}
        ...     def score_layer(self, learned, features):
        ...         return -torch.cdist(features, learned["means"])
        >>> judge, labels = NearestMean(), torch.tensor([0, 1])
        >>> learned = judge.learn_layer(torch.tensor([[0.0], [4.0]]), labels, 2)
        >>> judge.score_layer(learned, torch.tensor([[3.0]])).argmax(1).item()
        1
    """

    is_abstract: ClassVar[bool] = True
    layers: tuple[str, ...] = Field(
        ("backbone",),
        min_length=1,
        description="layers whose features are judged; the first one gives the accuracy; backbone: the features before the "
        "head; projection, where a method has one: the first layer of its projection head",
    )
    per_class: int | None = Field(
        None,
        ge=1,
        description="labeled images of each class that the judge learns from, drawn from all training images; unset: "
        "fraction, or else all labels that clients and server hold, and no others",
    )
    fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of the training images of each class that the judge learns from, instead of per_class",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**63,
        description="seed of the draw of these images; the experiment's seed does not change the draw",
    )

    @model_validator(mode="after")
    def _check_labels(self) -> "FeatureEvaluator":
        if self.per_class is not None and self.fraction is not None:
            raise ValueError("per_class and fraction exclude each other; drop one")
        return self

    @property
    def learns(self) -> bool:
        """Say yes."""
        return True

    @property
    def has_own_labels(self) -> bool:
        """Whether the judge draws labeled images of its own, instead of those that clients and server have labels for."""
        return self.per_class is not None or self.fraction is not None

    @abstractmethod
    def learn_layer(self, features: Tensor, labels: Tensor, num_classes: int) -> Tensors:
        """Return what the judge learns of one layer, as tensors by name.

        Args:
            features: Features of the labeled images, (n, width), on the CPU.
            labels: Their classes, int64 (n,); a class may be missing.
            num_classes: C, the number of classes.
        """

    @abstractmethod
    def score_layer(self, learned: Tensors, features: Tensor) -> Tensor:
        """Return logits (B, num_classes) for features (B, width); `learned` is what `learn_layer` returned."""

    def head(self, learned: Tensors) -> nn.Linear | None:
        """Return the judge of a layer as one linear layer from its features to logits; None, the default, if it is none.

        `fedssl export` writes the model's trunk and this layer as one network.
        """
        return None

    def describe(self, federation: Federation) -> str:
        """Return the title, the layer if it is not the backbone, the number of labels, and the changed settings."""
        num_labels = len(self.rows(federation))
        layer = "" if self.layers[0] == "backbone" else f" on {self.layers[0]}"
        labels = f"{num_labels:,} label{'s' * (num_labels != 1)}"
        # The other layers do not change the accuracy; without own labels, the seed draws nothing.
        unsaid = ("layers",) if self.has_own_labels else ("layers", "seed")
        return ", ".join([self.title + layer, labels, *self.changed_settings(*unsaid)])

    def check(self, layers: Sequence[str], federation: Federation) -> None:
        """Raise `InputError` if a layer is missing or named twice, or if there are too few labeled images."""
        unknown = [layer for layer in self.layers if layer not in layers]
        if unknown:
            raise InputError(
                f"{SECTION}.layers", f"names {unknown[0]!r}, which the method does not have",
                f"it has: {', '.join(layers)}",
            )  # fmt: skip
        if len(set(self.layers)) < len(self.layers):
            raise InputError(f"{SECTION}.layers", "names a layer twice", "name each layer once")
        if len(self.rows(federation)) == 0:
            raise InputError(
                SECTION,
                f"is {self.kind!r}, which learns from labeled images, but the server knows of no label: only the clients "
                "have labels, or nobody has",
                "set per_class or fraction, which take images of the server's own [data]; or take 'classifier'",
            )

    def rows(self, federation: Federation) -> Rows:
        """Return the rows of the training images that the judge learns from, ascending.

        Images whose labels are held back for validation are never among them, and no image of a site is.

        Raises:
            InputError: A class has fewer than `per_class` training images.
        """
        if not self.has_own_labels:
            return np.flatnonzero(federation.labeled_here)
        train = federation.train_here
        known = train.labelable & (train.labels >= 0)
        known[federation.held_back_rows] = False
        # Every image of the pool has a rank that depends on no split, so that each class gives its first images by rank.
        stream = rng.make_numpy_generator(self.seed, "evaluator/labels")
        rank = stream.permutation(len(train.pool))
        places = np.arange(len(train)) if train.rows is None else train.rows
        order = np.flatnonzero(known)
        order = order[np.argsort(rank[places[order]])]
        chosen = []
        for label in range(federation.data.spec.num_classes):
            own = order[train.labels[order] == label]
            count = self._count(len(own))
            if count > len(own):
                name = federation.data.class_names[label]
                problem = f"is {self.per_class}, but {name!r} has {len(own)} training images"
                raise InputError(f"{SECTION}.per_class", problem, "lower it")
            chosen.append(own[:count])
        return np.sort(np.concatenate(chosen))

    def _count(self, size: int) -> int:
        """Return the number of images of a class of that size; a fraction takes at least one image, if there is one."""
        if self.fraction is None:
            assert self.per_class is not None
            return self.per_class
        return min(size, max(1, round(self.fraction * size)))

    def examples(self, federation: Federation) -> Examples:
        """Return the labeled images.

        Without `per_class` and `fraction`, images and labels are those that their owners have: under a feature skew as the
        clients see them, under label noise with its wrong labels. Otherwise, images are unchanged and labels are true.
        """
        rows = self.rows(federation)
        if not self.has_own_labels:
            labels = torch.from_numpy(federation.given[rows])
            return Examples(federation.images_as_seen(rows), labels)
        train = federation.data.train
        return Examples(torch.from_numpy(train.read(rows)), torch.from_numpy(train.labels[rows]))

    def learn(self, subject: Subject, examples: Examples) -> Tensors:
        """Return what the judge learns of every layer, by ``LAYER/NAME``."""
        learned: dict[str, Tensor] = {}
        for layer in self.layers:
            parts = [
                subject.layers[layer](subject.spec.normalize(as_float(part))).cpu()
                for part in torch.split(examples.images, BATCH_SIZE)
            ]
            found = self.learn_layer(
                torch.cat(parts), examples.labels.cpu(), subject.spec.num_classes
            )
            learned |= {f"{layer}/{name}": tensor for name, tensor in found.items()}
        return learned

    def scores(self, subject: Subject, learned: Tensors, images: Tensor) -> dict[str, Tensor]:
        """Return the logits by layer."""
        return {
            layer: self.score_layer(of_layer(learned, layer), subject.layers[layer](images))
            for layer in self.layers
        }


def of_layer(learned: Tensors, layer: str) -> Tensors:
    """Return what was learned of one layer, by name."""
    prefix = f"{layer}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in learned.items()
        if name.startswith(prefix)
    }


EVALUATORS = Family(
    "evaluator", "fedssl.metrics.evaluators", Evaluator, SECTION, default="classifier"
)
