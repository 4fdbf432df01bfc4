"""`fedssl list`, `schema` and `doctor`: show what an experiment file can contain, and what this machine has."""

import importlib
import json
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.processes import quick_imports

FAMILIES = {
    "methods": "fedssl.methods.base:METHODS",
    "strategies": "fedssl.experiment.experiment:STRATEGIES",
    "datasets": "fedssl.data.sources.base:SOURCES",
    "models": "fedssl.models.base:MODELS",
    "partitions": "fedssl.data.partitions.base:PARTITIONS",
    "labels": "fedssl.data.labels.base:LABEL_SPLITS",
    "label_noises": "fedssl.data.label_noise.base:LABEL_NOISES",
    "features": "fedssl.data.features.base:FEATURE_SKEWS",
    "laws": "fedssl.experiment.system.laws.base:LAWS",
    "availabilities": "fedssl.experiment.system.availability.base:AVAILABILITIES",
    "augmentations": "fedssl.augment.base:AUGMENTATIONS",
    "trackers": "fedssl.experiment.experiment:TRACKERS",
}
"""The families that `fedssl list` can list, and their places, so that only the requested family is imported."""


@guarded
def list_plugins(
    family: Annotated[
        str,
        typer.Argument(
            help=f"One of: {', '.join(FAMILIES)}.",
            autocompletion=lambda: sorted(FAMILIES),
            show_default=False,
        ),
    ],
) -> None:
    """List the kinds that a section of the experiment file can name, with their settings.

    Examples:
      fedssl list methods

      fedssl list partitions
    """
    if family not in FAMILIES:
        raise InputError(
            "list", f"there is no family {family!r}", suggest_nearest(family, FAMILIES)
        )
    with quick_imports():
        module, _, name = FAMILIES[family].partition(":")
        plugins = getattr(importlib.import_module(module), name)
        kinds = {kind: plugins.get(kind) for kind in plugins.names()}
    table = Table(show_edge=False)
    table.add_column("kind", style="bold")
    table.add_column("what it is")
    table.add_column("settings")
    for kind, plugin in kinds.items():
        fields = [
            field
            if info.is_required()
            else f"{field} = {_shorten(info.get_default(call_default_factory=True))}"
            for field, info in plugin.model_fields.items()
            if field != "name"
        ]
        shown = f"{kind}:NAME" if "name" in plugin.model_fields else kind
        doc = (plugin.__doc__ or "").strip().partition("\n")[0]
        table.add_row(shown, doc, "\n".join(fields))
    Console().print(table)


def _shorten(value: Any) -> str:
    from fedssl.core.registry import Plugin

    if isinstance(value, Plugin):
        return value.kind
    if value is None:
        return "unset"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=str)


@guarded
def schema() -> None:
    """Print the JSON Schema of experiment files, for editors.

    Example:
      fedssl schema > fedssl.schema.json
    """
    with quick_imports():
        from fedssl.experiment.experiment import Experiment

    Console().print(json.dumps(Experiment.model_json_schema(), indent=2), soft_wrap=True)


@guarded
def doctor() -> None:
    """Show what this machine has and what a run would use."""
    with quick_imports():
        import torch

        from fedssl.app.simulation import this_machine
        from fedssl.data.cache import CACHE_VARIABLE, cache_folder
        from fedssl.engine.plan import AS_MANY_AS_FIT, plan_workers
        from fedssl.record.provenance import environment

    facts = environment()
    table = Table(show_header=False, show_edge=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_row("python", f"{facts['python']} ({sys.executable})")
    table.add_row("platform", facts["platform"])
    table.add_row("cores", str(facts["cores"]))
    gpus = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(i) for i in range(gpus)]
    table.add_row("GPUs", ", ".join(names) if names else "none")
    for name, version in facts["versions"].items():
        table.add_row(name, version)
    kept = sum(path.stat().st_size for path in cache_folder().rglob("*") if path.is_file())
    table.add_row(
        "data cache", f"{cache_folder()} ({kept / 1e6:,.0f} MB; {CACHE_VARIABLE} moves it)"
    )
    plan = plan_workers(AS_MANY_AS_FIT, [this_machine()])
    table.add_row("a run would use", plan.describe())
    Console().print(table)
