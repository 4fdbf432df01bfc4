"""Check the form of an experiment file before torch is imported: keys, kinds, and the types and ranges of plain settings.

Importing torch and the methods takes most of the time in which a command starts, and a mistyped key should be told at once. What this
check cannot tell is left to the experiment's model: whether settings go together, kinds of the user's own, and the names behind a colon.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedssl.core.errors import InputError
from fedssl.core.findings import input_error
from fedssl.core.registry import Section
from fedssl.core.trust import NOBODY, trusting
from fedssl.experiment.elsewhere import name_the_place
from fedssl.experiment.outline import Outline, Unsure
from fedssl.experiment.phases import naming, settings_in
from fedssl.experiment.preset import merge_with_presets
from fedssl.experiment.settings import tables_of


def check_form(path: Path, table: Mapping[str, Any], settings: Iterable[str]) -> None:
    """Raise `InputError` for a mistake that the outline shows, as `Experiment.load` would; nothing is imported.

    Args:
        path: The experiment file, for the message.
        table: The content of the file.
        settings: Each ``dotted.key=value``.
    """
    outline = Outline.read()
    try:
        _check(outline, path, table, settings)
    except Unsure:
        return
    except InputError:
        if outline.is_current:
            raise


def _check(outline: Outline, path: Path, table: Mapping[str, Any], settings: Iterable[str]) -> None:
    family_at = outline.family_at
    overrides = tables_of(settings, family_at)
    # A kind of the user's own becomes a section that takes any settings.
    with trusting(NOBODY):
        try:
            merged = merge_with_presets(table, overrides, family_at, [])
            experiment = _built(outline.experiment, merged)
            own = experiment.model_dump(mode="json", exclude_none=True, exclude={"phases"})
            for i, phase in enumerate(experiment.phases):  # type: ignore[attr-defined]
                with naming(i):
                    _built(outline.plan, settings_in(own, phase, family_at, is_first=not i))
        except InputError as error:
            raise name_the_place(error, outline.experiment).within(f"{path}: ") from None


def _built(model: type[Section], table: Mapping[str, Any]) -> Section:
    try:
        return model.model_validate(dict(table))
    except ValidationError as error:
        raise input_error(error, model) from None
