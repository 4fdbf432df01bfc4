"""Remarks on a run that went wrong or was too short, for its end: facts of its record, and what to try, in one line."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fedssl.record.room import OPEN, Room

if TYPE_CHECKING:
    from fedssl.record.rows import RoundRow

FEWEST_ROUNDS = 5
"""A run with fewer evaluated rounds is too short to be judged, so it gets no remark."""

EXPLODED = 50.0
"""A model with a held-out loss above this (nats per image) has diverged; a guess among a thousand classes has 6.9."""

MOST_NAMES = 3
"""A finding names at most this many classes."""

MOST_REMARKS = 2
"""A remark has at most this many findings; the worst come first."""

FEWEST_TO_COMPARE = 8
"""With fewer evaluated rounds, the end of a run is not compared with what came before."""

FELL = 0.1
"""A model whose accuracy, in [0, 1], is lower at the end than it was by this has lost what it had learned."""

ROSE = 0.015
"""An accuracy that rises by this from the last but one eighth of a run to the last would rise further."""

LONG_WINDOW = 8
"""The last evaluations of which an accuracy can have risen in the first half and not in the second one are at least so many."""

FEWEST_LABELED_ROUNDS = 20
"""With fewer rounds of pseudo-labels, nothing is said of how many are used and right."""

HARDLY = 0.02
"""Below this share of used pseudo-labels, a method hardly differs from training on labels alone."""

MANY = 0.1
"""Pseudo-labels for more than this share of the unlabeled images are many, and can do harm."""

WRONG = 0.5
"""Pseudo-labels do harm if less than this share of them is right."""

JUMPS = 0.05
"""An accuracy that changes by this from one evaluation to the next, beside its trend, in the second half of a phase, has not settled."""

LEARNED = 0.25
"""A model that has come less than this share of the way from chance to 1 is near chance, where jumps are luck."""

LOSS_JUMPS = 0.5
"""A loss (nats per image) that changes by this from one evaluation to the next has not settled, however little the accuracy changes."""

APART = 0.35
"""Clients pull apart if the mean cosine between the changes of two clients of a round is below this."""

ALWAYS = 0.9
"""A class that this share of the rounds does not name is never named."""

SELDOM = 0.4
"""Labels take part seldom if fewer than this share of the rounds has a client with labels."""


class Advice(NamedTuple):
    """Something to try.

    Args:
        text: What to try, as it stands behind "try".
        setting: The setting that it moves; empty if it moves none that another advice moves as well.
        direction: Whether it moves the setting up (1) or down (-1).
    """

    text: str
    setting: str = ""
    direction: int = 0


class Finding(NamedTuple):
    """A fact of a run's record, as a sentence without its full stop, and what to try."""

    fact: str
    advice: tuple[Advice, ...] = ()


LOWER_RATE = Advice("a lower train.lr", "train.lr", -1)
LOWER_THRESHOLD = Advice("a lower method.threshold", "method.threshold", -1)
HIGHER_THRESHOLD = Advice("a higher method.threshold", "method.threshold", 1)
MORE_ROUNDS = Advice("more rounds", "rounds", 1)
MORE_STEPS = Advice("more local steps", "train.local_steps", 1)
FEWER_STEPS = Advice("fewer local steps", "train.local_steps", -1)
LARGER_SAMPLE = Advice("a larger federation.sample", "federation.sample", 1)


def remark_on(
    rows: Sequence["RoundRow"],
    most_frequent: float,
    evaluated_on: str,
    *,
    is_trained: bool = True,
    is_whole: bool = True,
    room: Room = OPEN,
    class_names: Sequence[str] = (),
) -> str:
    """Return what went wrong in a run and what to try, as one or two findings on one line; empty if nothing did.

    Findings whose advice is opposite, such as more and fewer local steps, do not give this advice.

    Args:
        rows: Every round of the run.
        most_frequent: Share of the most frequent class among the held-out images, in [0, 1]; NaN if unknown.
        evaluated_on: Kind of the held-out images: ``"test"`` or ``"validation"``.
        is_trained: Whether the run's last phase trained the judge that its accuracies come from.
        is_whole: Whether the run had all its rounds; a run that ended early as it was told to needs no more of them.
        room: The room that the run's settings leave for advice; advice beyond it is not given.
        class_names: Names of the classes; empty if they are unknown.
    """
    lower = (LOWER_THRESHOLD,) if room.has_threshold else ()
    higher = (HIGHER_THRESHOLD,) if room.has_threshold else ()
    failed = list(_failures(rows, most_frequent, evaluated_on, lower, is_trained=is_trained))
    last = [row for row in rows if row.phase == rows[-1].phase]
    found = [*failed, *_pseudo_labels(last, lower, higher)]
    found += [*_labels(last), *_never_named(last, class_names)]
    if not failed and is_trained:
        found += _course(last, most_frequent, evaluated_on, room, is_whole=is_whole)
    return " ".join(_told(found[:MOST_REMARKS], room))


def _told(findings: Sequence[Finding], room: Room) -> Iterator[str]:
    """Yield each finding as a sentence, without advice that is opposite to advice of another finding or has no room."""
    moves = {(each.setting, each.direction) for own in findings for each in own.advice}
    for finding in findings:
        texts = [
            each.text.replace("local steps", "local epochs") if room.in_epochs else each.text
            for each in finding.advice
            if not each.setting or (each.setting, -each.direction) not in moves
            if (each.setting, each.direction) not in room.closed
        ]
        *others, last = texts or [""]
        options = f"{', '.join(others)} or {last}" if others else last
        yield f"{finding.fact}{f': try {options}' if options else ''}."


def most_frequent_share(labels: npt.NDArray[np.int64]) -> float:
    """Return the share of the most frequent class among the known labels, (N,), in [0, 1]; NaN if none is known."""
    known = labels[labels >= 0]
    return float(np.bincount(known).max() / len(known)) if len(known) else math.nan


def _failures(
    rows: Sequence["RoundRow"],
    most_frequent: float,
    evaluated_on: str,
    lower: Sequence[Advice],
    *,
    is_trained: bool,
) -> Iterator[Finding]:
    if rows and all(row.clients_ok == 0 for row in rows) and rows[-1].clients_inactive:
        yield Finding(
            f"No client trained in any of {len(rows)} rounds (the method found nothing to train on)",
            (
                Advice("labels at the clients"),
                *lower,
                Advice("a server that trains longer first", "server.train", 1),
            ),
        )
    if not is_trained:
        yield Finding(
            "The accuracy is chance, because the last phase trains no classifier",
            (Advice("server.evaluator = knn or linear_probe"),),
        )
    evaluated = [row for row in rows if row.evaluated]
    if len(evaluated) >= FEWEST_ROUNDS:
        last = evaluated[-1]
        if not math.isfinite(last.server_loss) or last.server_loss > EXPLODED:
            yield Finding(
                f"The model diverged (its loss on {evaluated_on} images is {last.server_loss:.3g} after round {last.round})",
                (LOWER_RATE, FEWER_STEPS),
            )
        if is_trained and last.server_accuracy <= most_frequent:
            yield Finding(
                f"The model learned nothing, or lost it: after round {last.round} it is right on "
                f"{last.server_accuracy * 100:.1f} % of {evaluated_on} images, and naming the most frequent "
                f"class alone is right on {most_frequent * 100:.1f} %"
            )


def _pseudo_labels(
    rows: Sequence["RoundRow"], lower: Sequence[Advice], higher: Sequence[Advice]
) -> Iterator[Finding]:
    """Say if no pseudo-label, hardly any, or many wrong ones were used in a phase's rounds."""
    known = [row for row in rows if not math.isnan(row.pseudo_label_coverage)]
    used = [row.pseudo_label_coverage for row in known]
    surer = (*lower, MORE_ROUNDS, MORE_STEPS)
    if len(used) >= FEWEST_ROUNDS and max(used) == 0:
        yield Finding(f"No pseudo-label was used in any of {len(used)} rounds", surer)
        return
    if len(used) < FEWEST_LABELED_ROUNDS:
        return
    late = known[-(len(known) // 4) :]
    share = float(np.mean([row.pseudo_label_coverage for row in late]))
    right = [row.pseudo_label_accuracy for row in late if row.pseudo_label_coverage > 0]
    right = [each for each in right if not math.isnan(each)]
    if share < HARDLY:
        yield Finding(
            f"Hardly any pseudo-label was used ({share * 100:.1f} % of the unlabeled images in the last {len(late)} rounds)",
            surer,
        )
    elif share > MANY and right and np.mean(right) < WRONG:
        yield Finding(
            f"Most pseudo-labels were wrong (in the last {len(late)} rounds, {share * 100:.0f} % of the unlabeled images had "
            f"one, and {np.mean(right) * 100:.0f} % of these were right)",
            (
                Advice("a first phase of supervised training", "phases", 1),
                *higher,
            ),
        )


def _never_named(rows: Sequence["RoundRow"], class_names: Sequence[str]) -> Iterator[Finding]:
    """Say which classes hardly any round of the last quarter of a phase has named by a pseudo-label, though it used some."""
    known = [row for row in rows if row.pseudo_label_coverage > 0]
    late = known[-(len(known) // 4) :]
    if len(known) < FEWEST_LABELED_ROUNDS:
        return
    unnamed = Counter(int(number) for row in late for number in row.classes_unnamed.split())
    missing = [number for number, times in sorted(unnamed.items()) if times >= ALWAYS * len(late)]
    if missing and len(class_names) > max(missing):
        names = [class_names[number] for number in missing[:MOST_NAMES]]
        others = " and others" if len(missing) > MOST_NAMES else ""
        which, whose = ("class", "its") if len(missing) == 1 else ("classes", "their")
        yield Finding(
            f"No pseudo-label named the {which} {', '.join(names)}{others} in the last {len(late)} rounds, though {whose} images were "
            "shown",
            (
                Advice("more labels there"),
                Advice(
                    "a method with a threshold for each class, such as freematch", "method.kind", 1
                ),
            ),
        )


def _labels(rows: Sequence["RoundRow"]) -> Iterator[Finding]:
    """Say if clients with labels take part in few rounds of a phase."""
    known = [row for row in rows if row.num_labeled >= 0 and row.clients_ok]
    have = sum(row.num_labeled > 0 for row in known)
    if len(known) >= FEWEST_LABELED_ROUNDS and 0 < have < SELDOM * len(known):
        yield Finding(
            f"Clients with labels took part in {have} of {len(known)} rounds, and the others trained without any label",
            (LARGER_SAMPLE, Advice("labels at more clients")),
        )


def _course(
    rows: Sequence["RoundRow"],
    most_frequent: float,
    evaluated_on: str,
    room: Room,
    *,
    is_whole: bool,
) -> Iterator[Finding]:
    """Say if the accuracy fell far below what it had been, was still rising at the end of a phase, or jumps up and down.

    An accuracy that still rises has not settled yet, so its jumps say nothing.
    """
    evaluated = [row for row in rows if row.evaluated]
    if len(evaluated) < FEWEST_TO_COMPARE:
        return
    window = max(2, len(evaluated) // 8)
    accuracy = np.array([row.server_accuracy for row in evaluated])
    means = np.convolve(accuracy, np.full(window, 1 / window), mode="valid")
    best = int(means.argmax())
    if means[best] - means[-1] > FELL:
        around = evaluated[best + window - 1].round
        yield Finding(
            f"The accuracy on {evaluated_on} images fell from {means[best] * 100:.1f} % about round {around} to "
            f"{means[-1] * 100:.1f} %",
            (LOWER_RATE, FEWER_STEPS),
        )
        return
    average = np.array([row.ema_accuracy for row in evaluated])
    # A longer window tells a rise from larger jumps.
    windows = (window, max(window, len(evaluated) // 4))
    rises = {each: _rise(accuracy, average, each, ROSE * each / window) for each in windows}
    rising = [each for each, rise in rises.items() if rise > 0]
    if not rising:
        yield from _jumps(rows, most_frequent, evaluated_on, room)
    elif is_whole:
        yield Finding(
            f"The accuracy was still rising at the end (its last {rising[0]} evaluations are {rises[rising[0]] * 100:.1f} points "
            f"above the {rising[0]} before)",
            (MORE_ROUNDS,),
        )


def _rise(
    accuracy: npt.NDArray[np.float64], average: npt.NDArray[np.float64], window: int, least: float
) -> float:
    """Return by how much the last evaluations of a phase are above as many before them; 0 if they may be so by luck.

    Args:
        accuracy, average: Accuracies of the global model and of its moving average, (E,), shares in [0, 1].
        window: Number of the last evaluations.
        least: A smaller rise counts as none, in [0, 1].
    """
    means = np.convolve(accuracy, np.full(window, 1 / window), mode="valid")
    rise = float(means[-1] - means[-1 - window])
    average_rise = average[-window:].mean() - average[-2 * window : -window].mean()
    # How far two such means differ by the noise from one evaluation to the next.
    noise = np.diff(accuracy).std() / math.sqrt(window)
    # The moving average lags behind in a short run, and hardly has any noise.
    rises = rise > max(least, 2 * noise) and average_rise > ROSE and means[-1] >= means.max()
    if not rises or window < LONG_WINDOW:
        return rise if rises else 0.0
    # A steady rise is half as large between the halves of a window; a curve that has levelled out has none there.
    half = window // 2
    later = average[-half:].mean() - average[-2 * half : -half].mean()
    return rise if later >= average_rise / 4 else 0.0


def _jumps(
    rows: Sequence["RoundRow"], most_frequent: float, evaluated_on: str, room: Room
) -> Iterator[Finding]:
    """Say if the accuracy or the loss jumps up and down because clients pull apart.

    Near chance, an accuracy jumps by luck. There the loss tells: clients that overwrite each other's work make a model that is surer
    than a guess, and more wrong.

    Args:
        rows: The rounds of a phase.
        most_frequent, evaluated_on, room: As in `remark_on`.
    """
    cosines = [_mean_cosine(row) for row in rows[len(rows) // 2 :]]
    cosines = [cosine for cosine in cosines if not math.isnan(cosine)]
    if not cosines or np.mean(cosines) >= APART:
        return
    evaluated = [row for row in rows if row.evaluated]
    late = evaluated[len(evaluated) // 2 :]
    accuracy = np.array([row.server_accuracy for row in late])
    loss = np.array([row.server_loss for row in late])
    chance = 0.0 if math.isnan(most_frequent) else most_frequent
    is_surer_than_a_guess = np.isfinite(loss).all() and loss.mean() > -math.log(chance or 1.0)
    if accuracy.mean() > chance + LEARNED * (1 - chance) and (jump := _jump(accuracy)) > JUMPS:
        jumps = f"accuracy jumps by {jump * 100:.0f} points"
    elif chance and is_surer_than_a_guess and (jump := _jump(loss)) > LOSS_JUMPS:
        jumps = f"loss on {evaluated_on} images jumps by {jump:.1f}"
    else:
        jumps = ""
    if jumps:
        yield Finding(
            f"The clients pull apart (from one evaluation to the next the {jumps}, and the changes of two clients have a mean cosine "
            f"of {np.round(np.mean(cosines), 2) + 0.0:.2f}, where 1 is the same direction)",
            (
                LARGER_SAMPLE,
                FEWER_STEPS,
                *(
                    [Advice(f"strategy.kind = {' or '.join(room.strategies)}")]
                    * bool(room.strategies)
                ),
            ),
        )


def _jump(values: npt.NDArray[np.float64]) -> float:
    """Return by how much values, (E,), change from one to the next, on average; a steep rise is no jump, so the mean change is taken off."""
    steps = np.diff(values)
    return float(np.abs(steps - steps.mean()).mean())


def _mean_cosine(row: "RoundRow") -> float:
    """Return the mean cosine between the changes of two clients of a round; NaN if fewer than two have one.

    The squared length of the mean of m changes of equal length is (1 + (m - 1) c) / m of theirs.
    """
    if row.clients_ok < 2 or not row.client_update_norm > 0:
        return math.nan
    share = row.update_norm / row.client_update_norm
    return (row.clients_ok * share**2 - 1) / (row.clients_ok - 1)
