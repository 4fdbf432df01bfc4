"""The base class of partitions: a partition is a law that assigns every example to a client."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.data.images import Dataset, Images, Mask, Rows


@dataclass(frozen=True)
class Examples:
    """The facts about N examples that a partition may look at.

    Args:
        labels: True class of each example, int64 (N,); -1 where nobody knows the class.
        num_classes: Number of classes.
        columns: Further facts about each example, by the column's name; int64 codes (N,).
        class_names: Name of each class, for messages; empty: the classes have only numbers.
    """

    labels: Rows
    num_classes: int
    columns: Mapping[str, Rows] = field(default_factory=dict)
    class_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows | Mask) -> "Examples":
        """Return the facts about the examples in the given rows."""
        columns = {name: codes[rows] for name, codes in self.columns.items()}
        return Examples(self.labels[rows], self.num_classes, columns, self.class_names)


class Draws(NamedTuple):
    """The two random streams that a partition draws from.

    There are two so that the number of examples cannot change how clients differ.

    Args:
        law: Stream for the differences between clients, such as their mix of classes.
        deal: Stream for the choice of the client that gets an example.
    """

    law: np.random.Generator
    deal: np.random.Generator


class Partition(Plugin):
    """A law that says which client holds which example.

    Example:
        A member defines `assign`; `deal_to` calls it, and then gives every client at least `min_size` examples.

        >>> import numpy as np
        >>> from fedssl.core.rng import make_numpy_generator
        >>> class FirstGetsAll(Partition):
        ...     def assign(self, examples, num_clients, draws):
        ...         return np.zeros(len(examples), dtype=np.int64)
        >>> examples = Examples(labels=np.array([0, 1, 0, 1]), num_classes=2)
        >>> draws = Draws(make_numpy_generator(0, "law"), make_numpy_generator(0, "deal"))
        >>> FirstGetsAll().assign(examples, 2, draws).tolist()
        [0, 0, 0, 0]
        >>> sorted(FirstGetsAll(min_size=2).deal_to(examples, 2, draws).tolist())
        [0, 0, 1, 1]
    """

    is_abstract: ClassVar[bool] = True
    by_class: ClassVar[bool] = False
    """Whether the partition looks at classes. If so, `assign` never gets an example whose class nobody knows."""

    min_size: int = Field(1, ge=1, description="smallest number of images that a client gets")

    @abstractmethod
    def assign(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example, int64 (N,); a client may get no example.

        Args:
            examples: The examples to deal, at least K of them; all their classes are known if `by_class` is true.
            num_clients: K, the number of clients.
            draws: Streams to draw from.

        Raises:
            InputError: This law cannot deal the examples.
        """

    def assign_held_out(
        self,
        held_out: Examples,
        train: Examples,
        owner: Rows,
        num_clients: int,
        draws: Draws,
    ) -> Rows:
        """Return the client of each held-out example, int64 (M,).

        By default a client gets the same share of a class as it has of the training examples of that class.

        Args:
            held_out: The M held-out examples to deal; all their classes are known.
            train: The N training examples, which are dealt already.
            owner: Client of each training example, int64 (N,); negative where no client has it.
            num_clients: K, the number of clients.
            draws: Fresh streams; `law` begins anew with the same numbers that it gave for the training examples.
        """
        return deal_by_shares(held_out.labels, class_shares(train, owner, num_clients), draws.deal)

    def deal_to(self, examples: Examples, num_clients: int, draws: Draws) -> Rows:
        """Return the client of each example, int64 (N,), with at least `min_size` examples for every client.

        A law of classes cannot see examples of unknown class. Each client gets the same share of these examples as it
        has of the examples of known class.

        Args:
            examples: The examples to deal; their classes may be unknown.
            num_clients: K, the number of clients.
            draws: Streams to draw from.

        Raises:
            InputError: There are too few examples, or the law needs classes and no class is known.
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


def examples_of(images: Images, data: Dataset) -> Examples:
    """Return the facts about some images of a data set that a partition may look at."""
    return Examples(images.labels, data.spec.num_classes, images.columns, data.class_names)


def dirichlet_shares(
    alpha: float, size: int, num_draws: int, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Return draws from Dir(alpha, ..., alpha), (num_draws, size); rows sum to 1, however small alpha is.

    A tiny alpha can underflow to a row of zeros. One uniformly drawn place of such a row then gets the share 1, as in
    the limit of the law for alpha to 0.
    """
    even = 1e100  # shares are equal to the last bit at this alpha already; sums at a larger alpha overflow
    draws = generator.dirichlet(np.full(size, min(alpha, even)), size=num_draws)
    lost = ~np.isfinite(draws).all(axis=1) | (draws.sum(axis=1) <= 0)
    winners = generator.integers(size, size=num_draws)
    draws[lost] = 0
    draws[lost, winners[lost]] = 1
    shares: npt.NDArray[np.float64] = draws / draws.sum(axis=1, keepdims=True)
    return shares


def class_shares(examples: Examples, owner: Rows, num_clients: int) -> npt.NDArray[np.float64]:
    """Return the share of each class that each client has, (num_classes, K).

    All clients have the same share of a class without examples.

    Args:
        examples: N examples; those of unknown class do not count.
        owner: Client of each example, int64 (N,); negative where no client has it.
        num_clients: K, the number of clients.
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
    """Deal the examples of every class to clients by given shares.

    Args:
        labels: Class of each example, int64 (N,).
        shares: Share of each class that each client gets, (num_classes, K); rows sum to 1.
        deal: Stream that shuffles the examples of each class.

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
    """Deal shuffled items to clients by given shares.

    Args:
        num_items: Number of items.
        shares: Share of all items that each client gets, (K,); they sum to 1.
        deal: Stream that shuffles the items.

    Returns:
        Client of each item, int64 (num_items,).
    """
    return deal.permutation(owners_by_share(num_items, shares))


def owners_by_share(num_items: int, shares: npt.NDArray[np.float64]) -> Rows:
    """Return clients in ascending order, int64 (num_items,); a client's share is how often it is there."""
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
    """Move randomly drawn examples from larger clients to clients below a minimum size.

    The draw is uniform over the spare examples of all clients: a client gives in proportion to the number of examples
    that it has above the minimum, so that the law keeps its shape. Exactly as many examples are moved as are missing;
    if no example is missing, nothing is drawn.

    Args:
        owner: Client of each example, int64 (N,); examples with a negative owner belong to no client and stay.
        num_clients: K, the number of clients.
        min_size: Smallest number of examples that a client may have.
        generator: Stream to draw from.
        movable: Whether an example may be moved, (N,); by default every example of a client may be.

    Returns:
        Client of each example, int64 (N,).

    Raises:
        InputError: Too few examples may be moved.
    """
    sizes = np.bincount(owner[owner >= 0], minlength=num_clients)
    missing = np.maximum(min_size - sizes, 0)
    if not missing.any():
        return owner.copy()
    rows = generator.permutation(
        np.flatnonzero(owner >= 0 if movable is None else movable & (owner >= 0))
    )
    rows = rows[np.argsort(owner[rows], kind="stable")]  # sorted by client, random within a client
    starts = np.searchsorted(owner[rows], np.arange(num_clients))
    place = np.arange(len(rows)) - starts[owner[rows]]
    spare = rows[place < (sizes - min_size)[owner[rows]]]
    if len(spare) < missing.sum():
        raise InputError(
            "federation.partition.min_size",
            f"is {min_size}, and too few images may be moved to clients that have less",
            "use fewer clients, or fewer labels at one place",
        )
    filled = owner.copy()
    moved = generator.choice(spare, size=int(missing.sum()), replace=False)
    filled[moved] = np.repeat(np.arange(num_clients), missing)
    return filled
