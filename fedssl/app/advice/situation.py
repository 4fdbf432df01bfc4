"""What decides which method fits a federation: where its labels are, how many there are, and how skewed its clients are."""

import math
from dataclasses import dataclass
from typing import Literal

from fedssl.core.errors import InputError
from fedssl.data.federation import Federation
from fedssl.views.federation_table import label_skew

Place = Literal["server", "all clients", "some clients"]
"""Who holds the labels."""


USUAL = 0.5
"""Labels are at all clients if more than this share of the clients has some: a few labels of each class miss a client or two by chance."""


@dataclass(frozen=True)
class Situation:
    """A federation in four numbers and one word.

    Args:
        place: Who holds the labels.
        label_skew: Mean total-variation distance of a client's classes to the federation's, in [0, 1]; NaN if unknown.
        labels: Number of labels.
        classes: Number of classes.
        clients: K, the number of clients.
    """

    place: Place
    label_skew: float
    labels: int
    classes: int
    clients: int

    @property
    def labels_per_class(self) -> float:
        """Mean number of labels of a class."""
        return self.labels / self.classes

    def describe(self) -> str:
        """Return the situation in one line."""
        skew = "unknown skew" if math.isnan(self.label_skew) else f"skew {self.label_skew:.2f}"
        where = "the server" if self.place == "server" else self.place
        return (
            f"{self.labels:,} labels at {where}, {self.labels_per_class:,.1f} a class; "
            f"{self.clients:,} clients, {skew}"
        )


def situation_of(federation: Federation) -> Situation:
    """Return the situation of a federation as it was drawn.

    Raises:
        InputError: Nobody has a label, or every image has one.
    """
    at_clients = federation.labeled_sizes
    at_server = len(federation.server_rows)
    labels = int(at_clients.sum()) + at_server
    if labels == 0:
        raise InputError("advise", "nobody has a label, so no classifier can be trained")
    if at_clients.sum() == federation.sizes.sum() and not at_server:
        raise InputError(
            "advise",
            "every image has a label, so there is nothing to learn from unlabeled images",
            "supervised training fits it, and dividemix where labels are wrong",
        )
    place: Place = "server"
    if at_clients.any():
        is_usual = (at_clients > 0).mean() > USUAL
        place = "all clients" if is_usual else "some clients"
    return Situation(
        place=place,
        label_skew=label_skew(federation),
        labels=labels,
        classes=federation.data.spec.num_classes,
        clients=federation.num_clients,
    )
