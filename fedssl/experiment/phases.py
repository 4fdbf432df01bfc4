"""The ``[[phases]]`` of the experiment file: which settings a phase may override, and the settings that it then has.

Importing this module does not import torch: `fedssl.experiment.form` checks phases before torch is there.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from fedssl.core.errors import InputError
from fedssl.core.registry import Section
from fedssl.experiment.settings import FamilyAt, merge

MOST_PHASES = 1000
"""An experiment has at most this many phases; each phase is validated like an experiment of its own."""

PHASE_SECTIONS = ("model", "method", "train", "strategy", "server", "augment", "federation")
"""A phase may override these sections; in ``federation``, only the number of sampled clients."""


class Phase(Section):
    """One of the ``[[phases]]``: a number of rounds, and the settings that differ in them from the experiment's."""

    model_config = ConfigDict(frozen=True, extra="allow")

    rounds: int = Field(ge=1, description="rounds of this phase")

    @property
    def overrides(self) -> dict[str, Any]:
        """The tables of settings that this phase lays over the experiment's own."""
        return dict(self.model_extra or {})


Phases = Annotated[
    tuple[Phase, ...],
    Field(
        max_length=MOST_PHASES,
        description="the phases of a run, in order; none: one phase of `rounds` rounds, or of 40 if that is unset",
    ),
]


def settings_in(
    table: Mapping[str, Any], phase: Phase, family_at: FamilyAt, *, is_first: bool
) -> dict[str, Any]:
    """Return the settings of a phase as a table.

    Args:
        table: The experiment's own settings.
        phase: The phase, with its overrides.
        family_at: The families of the experiment file.
        is_first: Whether no phase goes before it.

    Raises:
        InputError: The phase overrides a setting that it may not override.
    """
    if not is_first:
        _refuse_weights(phase, family_at)
    for section, value in phase.overrides.items():
        if section not in PHASE_SECTIONS:
            allowed = f"one of: {', '.join(PHASE_SECTIONS)}"
            raise InputError(section, "a phase cannot set this", allowed)
        if section == "federation" and (not isinstance(value, Mapping) or set(value) != {"sample"}):
            raise InputError("federation", "a phase can set federation.sample only")
    return {**merge(table, phase.overrides, family_at), "rounds": phase.rounds}


@contextlib.contextmanager
def naming(phase: int) -> Iterator[None]:
    """Let an `InputError` of the block name the phase, from 0, in its field."""
    try:
        yield
    except InputError as error:
        raise error.within(f"phases[{phase}].") from None


def _refuse_weights(phase: Phase, family_at: FamilyAt) -> None:
    """Refuse a file of weights in a phase that goes on from another one."""
    family = family_at("model")
    assert family is not None, "an experiment has a model"
    model = family.as_table(phase.overrides.get(family.section))
    if isinstance(model, Mapping) and {"weights", "new_head"} & set(model):
        raise InputError(
            f"{family.section}.weights",
            "a phase after the first one begins with the weights of the phase before it",
            "set it in the first phase or in [model]",
        )
