"""What every label split is: a law that says which examples keep their label."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.data.images import Mask, Rows


@dataclass(frozen=True)
class Pool:
    """The examples of a federation, some of which are to be labeled.

    Args:
        labels: True class of each, int64 (N,); -1 where nobody knows it.
        labelable: Which may be given their label, (N,).
        owner: Client of each, int64 (N,); not yet known to a split whose labels are at the server.
        num_classes, num_clients: How many there are.
    """

    labels: Rows
    labelable: Mask
    owner: Rows | None
    num_classes: int
    num_clients: int


class LabelSplit(Plugin):
    """A law that leaves some of a federation's examples labeled, and how many of each class."""

    is_abstract: ClassVar[bool] = True

    at_server: ClassVar[bool] = False
    """Whether labeled examples are the server's, which clients then do not hold."""

    default_per_class: ClassVar[int | Literal["all"]] = 4
    """Taken where neither `per_class` nor `fraction` is set."""

    per_class: int | tuple[int, ...] | Literal["all"] | None = Field(
        None,
        description="labeled examples of each class in the whole federation: one number, one for each class, or all; "
        "unset: 4 (some_clients: all)",
    )
    fraction: float | None = Field(
        None, gt=0, le=1, description="share of each class that is labeled, instead of per_class"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each class's labels that nobody trains on: the model is evaluated on them INSTEAD of the "
        "test images, to choose settings with nothing but the labels there are",
    )

    @model_validator(mode="after")
    def _check_amount(self) -> "LabelSplit":
        if self.per_class is not None and self.fraction is not None:
            raise ValueError("per_class and fraction exclude each other; drop one")
        counts = (self.per_class,) if isinstance(self.per_class, int) else self.per_class
        if isinstance(counts, tuple) and (min(counts, default=0) < 0 or not any(counts)):
            raise ValueError(f"per_class = {self.per_class}: there must be at least one label")
        return self

    def draw(self, pool: Pool, generator: np.random.Generator) -> Mask:
        """Say which examples are labeled, (N,): by default so many of each class, uniformly over the whole federation.

        Args:
            pool: The examples.
            generator: Source of the draw.

        Raises:
            InputError: More labels are asked for than there are examples.
        """
        return choose(pool.labels, pool.labelable, self.amounts(pool, pool.labelable), generator)

    def amounts(self, pool: Pool, candidates: Mask, whose: str = "") -> list[int]:
        """Return how many examples of each class are to be labeled.

        Args:
            pool: The examples.
            candidates: Which of them may be, (N,).
            whose: Ends the message's "there are so many images", if these are not all.

        Raises:
            InputError: There are not as many, or `per_class` lists another number of classes.
        """
        there = np.bincount(pool.labels[candidates], minlength=pool.num_classes)
        if self.fraction is not None:
            return [max(min(int(n), 1), round(self.fraction * int(n))) for n in there]
        per_class = self.default_per_class if self.per_class is None else self.per_class
        if per_class == "all":
            return [int(n) for n in there]
        wanted = [per_class] * pool.num_classes if isinstance(per_class, int) else list(per_class)
        if len(wanted) != pool.num_classes:
            raise InputError(
                "federation.labels.per_class",
                f"lists {len(wanted)} numbers, but there are {pool.num_classes} classes",
            )
        for cls, (count, most) in enumerate(zip(wanted, there, strict=True)):
            if count > most:
                raise InputError(
                    "federation.labels.per_class",
                    f"is {count}, but class {cls} has {most} training images{whose}",
                    f"the smallest class, {int(there.argmin())}, has {int(there.min())}",
                )
        return wanted

    def share_for_validation(
        self, labels: Rows, labeled: Mask, generator: np.random.Generator
    ) -> Rows:
        """Return the rows of labeled examples that are held back, ascending: of each class the same share.

        Raises:
            InputError: The share is none of any class, or leaves no label to train on.
        """
        if not self.validation:
            return np.empty(0, dtype=np.int64)
        held = []
        for members in members_by_class(labels, labeled):
            count = round(self.validation * len(members))
            held.append(generator.choice(members, size=count, replace=False))
        rows = np.sort(np.concatenate(held))
        if not 0 < len(rows) < labeled.sum():
            raise InputError(
                "federation.labels.validation",
                f"is {self.validation:g}, which is {len(rows)} of {int(labeled.sum())} labels",
                "some must be held back and some must be left; it is rounded class by class",
            )
        return rows


LABEL_SPLITS = Family(
    "label split", "fedssl.data.labels", LabelSplit, "federation.labels", default="at_clients"
)


def members_by_class(labels: Rows, candidates: Mask) -> Iterator[Rows]:
    """Yield the rows of the candidates of each class that has any, ascending."""
    rows = np.flatnonzero(candidates & (labels >= 0))
    order = rows[np.argsort(labels[rows], kind="stable")]
    classes, starts = np.unique(labels[order], return_index=True)
    yield from np.split(order, starts[1:]) if len(classes) else ()


def choose(
    labels: Rows,
    candidates: Mask,
    amounts: list[int],
    generator: np.random.Generator,
    log_weights: npt.NDArray[np.float64] | None = None,
) -> Mask:
    """Choose exactly so many candidates of each class, without replacement.

    Args:
        labels: Class of each example, int64 (N,).
        candidates: Which may be chosen, (N,); of each class as many as its amount, at least.
        amounts: How many of each class.
        generator: Source of the draw.
        log_weights: Logarithm of each example's odds, (N,); by default all are equal. The examples with the largest
            sum of it and Gumbel noise are those that drawing one by one by weight would give, and no weight is too small.

    Returns:
        Shape (N,), true where chosen.

    Reference:
        Vieira, "Gumbel-max trick and weighted reservoir sampling", 2014; Efraimidis & Spirakis, "Weighted random
        sampling with a reservoir", Information Processing Letters 97(5), 2006.
    """
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for members in members_by_class(labels, candidates):
        count = amounts[labels[members[0]]]
        if log_weights is None:
            chosen[generator.choice(members, size=count, replace=False)] = True
        else:
            keys = log_weights[members] + generator.gumbel(size=len(members))
            chosen[members[np.argsort(-keys, kind="stable")[:count]]] = True
    return chosen
