"""The user's own modules that a run imports: where they are and what they hold, so that the run can go on elsewhere."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedssl.core.plugin_modules import is_own
from fedssl.core.registry import Plugin
from fedssl.experiment.experiment import Experiment
from fedssl.record.provenance import recorded_environment


def own_modules(experiment: Experiment) -> dict[str, dict[str, str]]:
    """Return the folder from which each of the user's modules was imported, its file, and the file's checksum.

    Args:
        experiment: The experiment, whose kinds name the modules.
    """
    names = {type(plugin).__module__ for plan in experiment.plans for plugin in _plugins(plan)}
    found = {}
    for name in sorted(filter(is_own, names)):
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None:
            path = Path(file).absolute()
            steps = name.count(".") + (path.name == "__init__.py")
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            found[name] = {"folder": str(path.parents[steps]), "file": str(path), "sha256": digest}
    return found


def folders_of_own_modules(run: Path) -> list[Path]:
    """Return the folders from which a run imported the user's modules, as far as they exist.

    A folder within the run's own folder is left out: a record that came from elsewhere brings no code.

    Args:
        run: The run's folder.
    """
    folders = [Path(module["folder"]) for module in _recorded(run).values()]
    inside = run.resolve()
    return [
        folder
        for folder in dict.fromkeys(folders)
        if folder.is_dir() and not folder.resolve().is_relative_to(inside)
    ]


def changes_of_own_modules(run: Path, experiment: Experiment) -> list[str]:
    """Return a sentence for each of the user's modules that is not as it was when a run began."""
    now = own_modules(experiment)
    return [
        f"{module['file']} is not as it was when the run began; the rounds from here on use it as it is now"
        for name, module in _recorded(run).items()
        if name in now and now[name]["sha256"] != module["sha256"]
    ]


def _recorded(run: Path) -> dict[str, dict[str, str]]:
    """Return what the record of a run says about the user's modules; an older record says nothing."""
    try:
        modules = recorded_environment(run).get("own_modules", {})
        return {
            str(name): {key: str(module[key]) for key in ("folder", "file", "sha256")}
            for name, module in modules.items()
        }
    except (KeyError, AttributeError, TypeError):
        return {}  # the file is damaged, and no other reader needs it


def _plugins(value: Any) -> Iterator[Plugin]:
    """Yield every plug-in in settings, at any depth."""
    if isinstance(value, Plugin):
        yield value
    if isinstance(value, BaseModel):
        yield from _plugins({**vars(value), **(value.model_extra or {})})
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _plugins(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _plugins(each)
