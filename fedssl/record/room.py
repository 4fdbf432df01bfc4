"""The room that the settings of a run leave for advice: nobody can follow an advice that its settings rule out."""

from typing import NamedTuple

from fedssl.experiment.experiment import Experiment, PhasePlan

AGAINST_DRIFT = ("fedprox", "scaffold")
"""Strategies that hold clients together which pull apart."""


class Room(NamedTuple):
    """What advice on a run may ask for.

    Args:
        closed: Settings that cannot move further, each with the direction, up (1) or down (-1), in which it cannot.
        has_threshold: Whether the last phase's method has the setting ``threshold``.
        in_epochs: Whether clients count epochs and not steps.
        strategies: Other strategies that the last phase could have.
    """

    closed: frozenset[tuple[str, int]] = frozenset()
    has_threshold: bool = False
    in_epochs: bool = False
    strategies: tuple[str, ...] = AGAINST_DRIFT


OPEN = Room()
"""The room of settings that rule no advice out."""


def room_of(experiment: Experiment, *, is_whole: bool) -> Room:
    """Return the room that the last phase of an experiment leaves.

    Args:
        experiment: The experiment that ran.
        is_whole: Whether the run had all its rounds; a run that ended early as it was told to gets no more from more rounds.
    """
    plan = experiment.plans[-1]
    federation, supervised = plan.federation, [p.method.kind for p in experiment.plans[:-1]]
    never = {
        ("rounds", 1): not is_whole,
        ("federation.sample", 1): federation.sample >= federation.clients,
        ("train.local_steps", -1): plan.train.local_steps == 1,
        ("phases", 1): "supervised" in supervised or plan.server_trains,
        ("server.train", 1): not plan.server_trains,
        ("method.kind", 1): plan.method.partner != "" or plan.method.kind == "freematch",
    }
    never |= {("method.threshold", way): True for way in _ends_of_threshold(plan)}
    return Room(
        closed=frozenset(move for move, is_closed in never.items() if is_closed),
        has_threshold="threshold" in type(plan.method).model_fields,
        in_epochs=plan.train.local_epochs is not None,
        strategies=_strategies(plan),
    )


def _ends_of_threshold(plan: PhasePlan) -> list[int]:
    """Return the directions in which the method's threshold cannot move: it is at an end of what the method allows."""
    field = type(plan.method).model_fields.get("threshold")
    value = getattr(plan.method, "threshold", None)
    limits = [] if field is None else field.metadata
    at_most = any(getattr(limit, "le", None) == value for limit in limits)
    at_least = any(getattr(limit, "ge", None) == value for limit in limits)
    return [way for way, is_there in ((1, at_most), (-1, at_least)) if is_there]


def _strategies(plan: PhasePlan) -> tuple[str, ...]:
    """Return the strategies of `AGAINST_DRIFT` that a phase could have; none if it has one, or is one system with its method."""
    own = plan.strategy
    if own.kind in AGAINST_DRIFT or own.partner or plan.method.partner:
        return ()
    # A client's control variates would drift apart from the server's under noise, which refuses such a run.
    return tuple(k for k in AGAINST_DRIFT if plan.privacy is None or k != "scaffold")
