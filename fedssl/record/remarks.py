"""Remarks on a run that went wrong, for its end: facts of its record, in one line."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from fedssl.record.rows import RoundRow

FEWEST_ROUNDS = 5
"""A run with fewer evaluated rounds is too short to be judged, so it gets no remark."""

EXPLODED = 50.0
"""A model with a held-out loss above this (nats per image) has diverged; a guess among a thousand classes has 6.9."""


def remark_on(
    rows: Sequence["RoundRow"], most_frequent: float, evaluated_on: str, *, is_trained: bool = True
) -> str:
    """Return what went wrong in a run, as sentences on one line; empty if nothing did.

    Args:
        rows: Every round of the run.
        most_frequent: Share of the most frequent class among the held-out images, in [0, 1]; NaN if unknown.
        evaluated_on: Kind of the held-out images: ``"test"`` or ``"validation"``.
        is_trained: Whether the run's last phase trained the judge that its accuracies come from.
    """
    return " ".join(_remarks(rows, most_frequent, evaluated_on, is_trained=is_trained))


def most_frequent_share(labels: npt.NDArray[np.int64]) -> float:
    """Return the share of the most frequent class among the known labels, (N,), in [0, 1]; NaN if none is known."""
    known = labels[labels >= 0]
    return float(np.bincount(known).max() / len(known)) if len(known) else math.nan


def _remarks(
    rows: Sequence["RoundRow"], most_frequent: float, evaluated_on: str, *, is_trained: bool
) -> Iterator[str]:
    if rows and all(row.clients_ok == 0 for row in rows) and rows[-1].clients_inactive:
        yield (
            f"No client trained in any of {len(rows)} rounds: the method found nothing to train on. It may want labels at "
            "the clients, a lower threshold, or a server that trains longer first."
        )
    if not is_trained:
        yield (
            "The accuracy is chance, because the last phase trains no classifier: set server.evaluator to knn or "
            "linear_probe."
        )
    evaluated = [row for row in rows if row.evaluated]
    if len(evaluated) >= FEWEST_ROUNDS:
        last = evaluated[-1]
        if not math.isfinite(last.server_loss) or last.server_loss > EXPLODED:
            yield (
                f"The model diverged: its loss on {evaluated_on} images is {last.server_loss:.3g} "
                f"after round {last.round}."
            )
        if is_trained and last.server_accuracy <= most_frequent:
            yield (
                f"The model learned nothing, or lost it: after round {last.round} it is right on "
                f"{last.server_accuracy * 100:.1f} % of {evaluated_on} images, and naming the most frequent "
                f"class alone is right on {most_frequent * 100:.1f} %."
            )
    used = [row.pseudo_label_coverage for row in rows if not math.isnan(row.pseudo_label_coverage)]
    if len(used) >= FEWEST_ROUNDS and max(used) == 0:
        yield f"No pseudo-label was used in any of {len(used)} rounds."
