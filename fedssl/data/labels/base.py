"""The base class of label splits: a label split is a law that says which examples keep their label."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.data.images import Mask, Rows, name_of_class


@dataclass(frozen=True)
class Pool:
    """The examples of a federation, some of which are to be labeled.

    Args:
        labels: True class of each example, int64 (N,); -1 where nobody knows the class.
        labelable: Whether an example may be given its label, (N,).
        owner: Client of each example, int64 (N,); None for a split at the server, which draws before images are dealt.
        num_classes, num_clients: Number of classes and of clients.
        class_names: Name of each class, for messages; empty: the classes have only numbers.
    """

    labels: Rows
    labelable: Mask
    owner: Rows | None
    num_classes: int
    num_clients: int
    class_names: Sequence[str] = ()


class LabelSplit(Plugin):
    """A law that says how many of a federation's examples are labeled, and which.

    Example:
        A member may define `draw`; the default draws uniformly over all clients. This one labels examples of client 0.

        >>> class AtFirstClient(LabelSplit):
        ...     def draw(self, pool, generator):
        ...         candidates = pool.labelable & (pool.owner == 0)
        ...         return choose(pool.labels, candidates, self.amounts(pool, candidates), generator)
        >>> owner = np.array([0, 0, 1, 1])
        >>> pool = Pool(np.array([0, 1, 0, 1]), np.full(4, True), owner, num_classes=2, num_clients=2)
        >>> AtFirstClient(per_class=1).draw(pool, np.random.default_rng(0)).tolist()
        [True, True, False, False]
    """

    is_abstract: ClassVar[bool] = True

    at_server: ClassVar[bool] = False
    """Whether the server holds the labeled examples; if so, no client holds them."""

    default_per_class: ClassVar[int | Literal["all"]] = 4
    """Number of labeled examples of each class if neither `per_class` nor `fraction` is set."""

    per_class: int | tuple[int, ...] | Literal["all"] | None = Field(
        None,
        description="number of labeled examples of each class in the whole federation: one number for all classes, a "
        "list with a number for each class, or all; unset: 4 (some_clients: all)",
    )
    fraction: float | None = Field(
        None, gt=0, le=1, description="share of each class that is labeled, instead of per_class"
    )
    validation: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of each class's labels that nobody trains on: the model is evaluated on these images "
        "INSTEAD of the test images, so that settings are chosen with the given labels alone",
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
        """Return whether each example is labeled, (N,).

        By default the labels of each class are drawn uniformly over the whole federation.

        Args:
            pool: The examples.
            generator: Stream to draw from.

        Raises:
            InputError: The settings ask for more labels than there are examples.
        """
        return choose(pool.labels, pool.labelable, self.amounts(pool, pool.labelable), generator)

    def amounts(self, pool: Pool, candidates: Mask, whose: str = "") -> list[int]:
        """Return how many examples of each class are to be labeled.

        Args:
            pool: The examples.
            candidates: Whether an example may be labeled, (N,).
            whose: End of the error message "class C has N training images", to say whose images the candidates are;
                empty if they are everybody's.

        Raises:
            InputError: A class has too few candidates, or `per_class` lists numbers for more or fewer classes.
        """
        there = np.bincount(pool.labels[candidates], minlength=pool.num_classes)
        if self.fraction is not None:
            return [max(min(int(n), 1), round(self.fraction * int(n))) for n in there]
        wanted = self.wanted_of_each_class(there)
        for cls, (count, most) in enumerate(zip(wanted, there, strict=True)):
            if count > most:
                asked, smallest = (
                    name_of_class(number, pool.class_names) for number in (cls, int(there.argmin()))
                )
                raise InputError(
                    "federation.labels.per_class",
                    f"is {count}, but class {asked} has {most} training images{whose}",
                    f"the smallest class, {smallest}, has {int(there.min())}",
                )
        return wanted

    def wanted_of_each_class(self, there: Rows) -> list[int]:
        """Return how many labels of each class `per_class` asks for, which may be more than there are.

        Args:
            there: Number of candidates of each class, (num_classes,).

        Raises:
            InputError: `per_class` lists numbers for more or fewer classes.
        """
        per_class = self.default_per_class if self.per_class is None else self.per_class
        if per_class == "all":
            return [int(n) for n in there]
        wanted = [per_class] * len(there) if isinstance(per_class, int) else list(per_class)
        if len(wanted) != len(there):
            raise InputError(
                "federation.labels.per_class",
                f"lists {len(wanted)} numbers, but there are {len(there)} classes",
            )
        return wanted

    def draw_validation_rows(
        self, labels: Rows, labeled: Mask, generator: np.random.Generator
    ) -> Rows:
        """Return the rows of labeled examples that are held back for validation, ascending.

        The share `validation` is held back of every class, rounded class by class.

        Args:
            labels: Class of each example, int64 (N,).
            labeled: Whether an example carries a label, (N,).
            generator: Stream to draw from.

        Raises:
            InputError: The share rounds to no label at all, or leaves no label to train on.
        """
        if not self.validation:
            return np.empty(0, dtype=np.int64)
        held = []
        for members in rows_by_group(labels, labeled):
            count = round(self.validation * len(members))
            held.append(generator.choice(members, size=count, replace=False))
        rows = np.sort(np.concatenate(held))
        if not 0 < len(rows) < labeled.sum():
            raise InputError(
                "federation.labels.validation",
                f"is {self.validation:g}, which is {len(rows)} of {int(labeled.sum())} labels",
                "hold back at least one label and leave at least one to train on; each class is rounded by itself",
            )
        return rows


LABEL_SPLITS = Family(
    "label split", "fedssl.data.labels", LabelSplit, "federation.labels", default="at_clients"
)


def rows_by_group(groups: Rows, candidates: Mask) -> Iterator[Rows]:
    """Yield the rows of the candidates of each group, ascending; groups without candidates are left out.

    Args:
        groups: Class or client of each example, int64 (N,); examples of negative groups are left out.
        candidates: Whether an example counts, (N,).
    """
    rows = np.flatnonzero(candidates & (groups >= 0))
    order = rows[np.argsort(groups[rows], kind="stable")]
    names, starts = np.unique(groups[order], return_index=True)
    yield from np.split(order, starts[1:]) if len(names) else ()


def choose(
    labels: Rows,
    candidates: Mask,
    amounts: list[int],
    generator: np.random.Generator,
    log_weights: npt.NDArray[np.float64] | None = None,
) -> Mask:
    """Choose an exact number of candidates of each class, without replacement.

    Args:
        labels: Class of each example, int64 (N,).
        candidates: Whether an example may be chosen, (N,). Each class has at least as many candidates as its amount.
        amounts: How many examples of each class to choose.
        generator: Stream to draw from.
        log_weights: Logarithm of each example's weight, (N,); by default all weights are equal. Gumbel noise is added,
            and the examples with the largest sums are chosen. This gives the same law as drawing one example after the
            other in proportion to the weights, and no weight is too small for it.

    Returns:
        Whether each example is chosen, (N,).

    Reference:
        Vieira, "Gumbel-max trick and weighted reservoir sampling", 2014; Efraimidis & Spirakis, "Weighted random
        sampling with a reservoir", Information Processing Letters 97(5), 2006.
    """
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for members in rows_by_group(labels, candidates):
        count = amounts[labels[members[0]]]
        if log_weights is None:
            chosen[generator.choice(members, size=count, replace=False)] = True
        else:
            keys = log_weights[members] + generator.gumbel(size=len(members))
            chosen[members[np.argsort(-keys, kind="stable")[:count]]] = True
    return chosen
