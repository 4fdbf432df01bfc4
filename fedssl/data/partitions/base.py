"""What every partition is: a law that assigns every example to a client."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.data.images import Images, Mask, Rows


@dataclass(frozen=True)
class Examples:
    """What a partition may look at.

    Args:
        labels: True class of each example, int64 (N,); -1 where nobody knows it.
        num_classes: Number of classes.
        columns: What else is known of each, by name; int64 codes (N,).
    """

    labels: Rows
    num_classes: int
    columns: Mapping[str, Rows] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows | Mask) -> "Examples":
        """Return some of them."""
        columns = {name: codes[rows] for name, codes in self.columns.items()}
        return Examples(self.labels[rows], self.num_classes, columns)


class Draws(NamedTuple):
    """The streams that a partition draws from; two, so that how many examples there are cannot shift who gets what.

    Args:
        law: Draws what makes clients differ, such as their mix of classes.
        deal: Draws which example goes where.
    """

    law: np.random.Generator
    deal: np.random.Generator


class Partition(Plugin):
    """A law that says which client holds which example."""

    is_abstract: ClassVar[bool] = True
    by_class: ClassVar[bool] = False
    """Whether it looks at classes: it is then never shown an example whose class nobody knows."""

    min_size: int = Field(1, ge=1, description="images that every client gets at least")

    @abstractmethod
    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example, int64 (N,); some clients may get none.

        Args:
            examples: At least one a client; with known classes only, if `by_class`.
            num_clients: K.
            draws: Streams to draw from.

        Raises:
            InputError: The examples cannot be dealt by this law.
        """

    def assign_held_out(
        self,
        held_out: Examples,
        train: Examples,
        owner: Rows,
        num_clients: int,
        draws: Draws,
    ) -> Rows:
        """Return the client of each held-out example, int64 (M,): by default each class as in training.

        Args:
            held_out: To be dealt; all classes are known.
            train: What was dealt.
            owner: Client of each of `train`.
            num_clients: K.
            draws: Fresh streams; `law` is the one that training examples were dealt by.
        """
        return deal_by_shares(held_out.labels, class_shares(train, owner, num_clients), draws.deal)

    def deal_to(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example, int64 (N,), and give everybody at least `min_size`.

        Examples of unknown class follow a law of classes only in numbers: clients get as large a share of them as they
        have of the others.

        Raises:
            InputError: There are too few examples, or none of a known class.
        """
        if num_clients * self.min_size > len(examples):
            each = (
                "one" if self.min_size == 1 else f"federation.partition.min_size = {self.min_size}"
            )
            raise InputError(
                "federation.clients",
                f"is {num_clients}, but there are {len(examples)} training images to deal",
                f"every client needs at least {each}",
            )
        known = examples.labels >= 0
        if not self.by_class or known.all():
            owner = self.assign(examples, num_clients, draws)
        else:
            if not known.any():
                raise InputError(
                    "federation.partition.kind",
                    f"{self.kind!r} deals by class, and no class is known of these images",
                    "'iid' and 'quantity' do not look at classes",
                )
            owner = np.empty(len(examples), dtype=np.int64)
            owner[known] = self.assign(examples.take(known), num_clients, draws)
            sizes = np.bincount(owner[known], minlength=num_clients)
            owner[~known] = deal_by_sizes(int((~known).sum()), sizes / sizes.sum(), draws.deal)
        return fill_up(owner, num_clients, self.min_size, draws.deal)


PARTITIONS = Family(
    "partition", "fedssl.data.partitions", Partition, "federation.partition", default="dirichlet"
)


def examples_of(images: Images, num_classes: int) -> Examples:
    """Return what a partition may look at of some images."""
    return Examples(images.labels, num_classes, images.columns)


def dirichlet_shares(
    alpha: float, size: int, num_draws: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return draws from Dir(alpha, ..., alpha), (num_draws, size); rows sum to 1, however small alpha is.

    A tiny alpha can underflow to a row without mass: one place, drawn uniformly, then has it all, which is the limit.
    """
    even = 1e100  # already so to the last bit; the sums of more overflow
    draws = generator.dirichlet(np.full(size, min(alpha, even)), size=num_draws)
    lost = ~np.isfinite(draws).all(axis=1) | (draws.sum(axis=1) <= 0)
    winners = generator.integers(size, size=num_draws)
    draws[lost] = 0
    draws[lost, winners[lost]] = 1
    shares: npt.NDArray[np.float64] = draws / draws.sum(axis=1, keepdims=True)
    return shares


def class_shares(examples: Examples, owner: Rows, num_clients: int) -> npt.NDArray[np.float64]:
    """Return the share of each class that each client has, (num_classes, K); of no examples, even ones.

    Args:
        examples: With or without known classes.
        owner: Client of each; negative if none has it.
        num_clients: K.
    """
    dealt = (owner >= 0) & (examples.labels >= 0)
    cells = examples.labels[dealt] * num_clients + owner[dealt]
    counts = np.bincount(cells, minlength=examples.num_classes * num_clients).reshape(
        -1, num_clients
    )
    totals = counts.sum(1, keepdims=True)
    return np.where(totals > 0, counts / np.maximum(totals, 1), 1 / num_clients)


def deal_by_shares(
    labels: Rows, shares: npt.NDArray[np.float64], deal: np.random.Generator
) -> Rows:
    """Cut every class over the clients by given shares.

    Args:
        labels: Class of each example, int64 (N,).
        shares: Share of each class that each client gets, (num_classes, K); rows sum to 1.
        deal: Shuffles each class before it is cut.

    Returns:
        Client of each example, int64 (N,).
    """
    num_classes = len(shares)
    owner = np.empty(len(labels), dtype=np.int64)
    by_class = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[by_class], np.arange(num_classes + 1))
    for cls in range(num_classes):
        members = by_class[bounds[cls] : bounds[cls + 1]]
        owner[deal.permutation(members)] = owners_by_share(len(members), shares[cls])
    return owner


def deal_by_sizes(
    num_items: int, shares: npt.NDArray[np.float64], deal: np.random.Generator
) -> Rows:
    """Cut shuffled examples over the clients by the share of all that each gets, (K,); return (num_items,)."""
    return deal.permutation(owners_by_share(num_items, shares))


def owners_by_share(num_items: int, shares: npt.NDArray[np.float64]) -> Rows:
    """Return clients in ascending order, each as often as its share of the items comes to, int64 (num_items,)."""
    cuts = np.rint(np.cumsum(shares) * num_items).astype(np.int64)
    cuts[-1] = num_items
    counts = np.diff(np.minimum(cuts, num_items), prepend=0)
    return np.repeat(np.arange(len(shares)), counts)


def fill_up(
    owner: Rows,
    num_clients: int,
    min_size: int,
    generator: np.random.Generator,
    movable: Mask | None = None,
) -> Rows:
    """Move single examples, drawn from all that can be spared, to clients below a minimum size.

    Who gives is as random as what: large clients give in proportion to what they have above the minimum, so that the
    shape of a law is thinned and not cut. Exactly as many are moved as are missing; without any, nothing is drawn.

    Args:
        owner: Client of each example, int64 (N,); negative ones are nobody's, and stay.
        num_clients: K.
        min_size: Examples that every client gets at least.
        generator: Source of the draw.
        movable: Which examples may be moved, (N,); by default all that are somebody's.

    Returns:
        Client of each example, int64 (N,).

    Raises:
        InputError: There are not enough examples that may be moved.
    """
    sizes = np.bincount(owner[owner >= 0], minlength=num_clients)
    missing = np.maximum(min_size - sizes, 0)
    if not missing.any():
        return owner.copy()
    rows = generator.permutation(
        np.flatnonzero(owner >= 0 if movable is None else movable & (owner >= 0))
    )
    rows = rows[np.argsort(owner[rows], kind="stable")]  # by client, in random order within each
    starts = np.searchsorted(owner[rows], np.arange(num_clients))
    place = np.arange(len(rows)) - starts[owner[rows]]
    spare = rows[place < (sizes - min_size)[owner[rows]]]
    if len(spare) < missing.sum():
        raise InputError(
            "federation.partition.min_size",
            f"is {min_size}, and too few images may be moved to clients that have less",
            "fewer clients, or fewer labels at one place",
        )
    filled = owner.copy()
    moved = generator.choice(spare, size=int(missing.sum()), replace=False)
    filled[moved] = np.repeat(np.arange(num_clients), missing)
    return filled
