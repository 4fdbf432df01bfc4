"""Why a line won or lost against its baseline: one sentence a pair that can be told apart, from facts of the records."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedssl.views.closer_look import recorded_look
from fedssl.views.comparison.gather import Line
from fedssl.views.comparison.groups import Group

Floats = npt.NDArray[np.float64]

MOST_REASONS = 8
"""A comparison of more pairs gives no reasons: nobody would read them."""

USED = 0.02
"""Of a line that uses pseudo-labels for a smaller share of the unlabeled images, it is not said how many of them are right."""

SAME = 0.02
"""If all classes gain within this of one another, in [0, 1], no class is named."""


def reasons(group: Group, lines: pd.DataFrame, pairs: pd.DataFrame) -> Iterator[str]:
    """Yield a sentence for each line of a group that can be told apart from the baseline.

    It says how many of the used pseudo-labels are right, beside the accuracy of the baseline's model, and which class gains most and
    which least.

    Args:
        group: The lines.
        lines: Their rows of `fedssl.views.comparison.comparison.Comparison.lines`.
        pairs: Their pairs of `fedssl.views.comparison.verdicts.Verdicts`.
    """
    apart = pairs[pairs["apart"]] if len(pairs) else pairs
    if len(apart) > MOST_REASONS:
        return
    by_label = {line.label: line for line in group.lines}
    rows = {row["label"]: row for row in lines.to_dict("records")}
    first = group.lines[0]
    for pair in apart.to_dict("records"):
        label, gain = str(pair["label"]), float(pair["gain"])
        facts = list(_classes(by_label[label], first))
        if not _knows_held_out_images(by_label[label]) and not _knows_held_out_images(first):
            facts = [*_pseudo_labels(rows[label], rows[first.label]["ema_accuracy"]), *facts]
        if facts:
            verb = "gains" if gain > 0 else "loses"
            yield f"{label} {verb} {abs(gain) * 100:.1f} points against {first.label}: {'; '.join(facts)}"


def _knows_held_out_images(line: Line) -> bool:
    """Return whether a run of a line began with weights that were trained on its held-out images, which may be the reason."""
    return any(run.data.get("weights_remark") for run in line.runs.values())


def _pseudo_labels(line: Mapping[Any, Any], accuracy: float) -> Iterator[str]:
    """Say how many of a line's pseudo-labels are used and right at the end, beside the baseline's accuracy."""
    right, used = line["pseudo_label_accuracy"], line["pseudo_label_coverage"]
    if not used > USED:
        return
    if right != right:
        yield f"it uses pseudo-labels for {used * 100:.0f} % of the unlabeled images, and nobody knows how many of them are right"
        return
    than = "fewer than the model of the baseline has right" if right < accuracy else ""
    more = f", {than} ({accuracy * 100:.0f} %)" if than else ""
    yield f"it uses pseudo-labels for {used * 100:.0f} % of the unlabeled images, and {right * 100:.1f} % of them are right{more}"


def _classes(line: Line, first: Line) -> Iterator[str]:
    """Say which class gains most and which least, by the share of its held-out images that the EMA models have right."""
    own, others = _recall(line), _recall(first)
    if own is None or others is None or own.shape != others.shape:
        return
    gain = own - others
    known = np.flatnonzero(~np.isnan(gain))
    if len(known) < 2:
        return
    most, least = known[np.argmax(gain[known])], known[np.argmin(gain[known])]
    if gain[most] - gain[least] <= SAME:
        return
    names = next(iter(line.runs.values())).data["class_names"]
    best, worst = (round(float(gain[place]) * 100) for place in (most, least))
    if worst >= 0:
        yield f"class {names[most]} gains most ({best:+d}), class {names[least]} least ({worst:+d})"
    elif best > 0:
        yield f"class {names[most]} gains most ({best:+d}), class {names[least]} loses most ({worst:+d})"
    else:
        yield f"no class gains, class {names[least]} loses most ({worst:+d})"


def _recall(line: Line) -> Floats | None:
    """Return the share of each class's held-out images that the EMA models name correctly, (classes,), over all seeds.

    It is NaN for a class without images; None if a run has no closer look.
    """
    counts = []
    for run in line.runs.values():
        look = recorded_look(run)
        if look is None or "confusion" not in look["models"]["ema"]:
            return None
        counts.append(np.asarray(look["models"]["ema"]["confusion"], dtype=np.float64))
    total: Floats = np.sum(counts, axis=0)
    images = total.sum(1)
    recall = np.full(len(total), np.nan)
    np.divide(np.diag(total), images, out=recall, where=images > 0)
    return recall
