"""How the models of a run were judged, phase by phase, in words that records and views share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment, PhasePlan

if TYPE_CHECKING:
    from fedssl.record.rows import RoundRow

CLASSIFIER = "classifier"
"""The judge of a model that learns from labels; no view names this judge, because every reader expects it."""

UNTRAINED = "untrained classifier"
"""The judge of a phase whose method trains no classifier, although no other evaluator was chosen."""


def judges_of(experiment: Experiment, federation: Federation) -> tuple[str, ...]:
    """Return the judge of each phase, such as ``classifier`` or ``linear probe, 40 labels``."""
    return tuple(_judge_of(plan, federation) for plan in experiment.plans)


def _judge_of(plan: PhasePlan, federation: Federation) -> str:
    judge = plan.server.evaluator.describe(federation)
    return UNTRAINED if judge == CLASSIFIER and not plan.method.trains_classifier else judge


def judge_in(judges: Sequence[str], phase: int) -> str:
    """Return the judge of a phase; a record of an older version names no judges, and they were classifiers.

    Args:
        judges: The judge of each phase.
        phase: Number of the phase, from 0.
    """
    return judges[phase] if phase < len(judges) else CLASSIFIER


def in_brackets(judge: str) -> str:
    """Return what stands behind the word *accuracy*: the judge in brackets; nothing for a classifier."""
    return "" if judge == CLASSIFIER else f" ({judge})"


def judged_as_the_last(rows: Sequence["RoundRow"], judges: Sequence[str]) -> "list[RoundRow]":
    """Return the evaluated rounds with the judge of the last evaluated round: only their accuracies can be compared."""
    evaluated = [row for row in rows if row.evaluated]
    last = judge_in(judges, evaluated[-1].phase) if evaluated else CLASSIFIER
    return [row for row in evaluated if judge_in(judges, row.phase) == last]


def remarks_on_judges(judges: Sequence[str]) -> list[str]:
    """Return a sentence for each phase whose accuracy is chance, because its method trains no classifier."""
    return [
        f"Phase {number} trains no classifier, so its accuracy is chance: set server.evaluator to knn or linear_probe there."
        for number, judge in enumerate(judges, 1)
        if judge == UNTRAINED
    ]
