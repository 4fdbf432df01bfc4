"""`fedssl list`, `schema` and `doctor`: show what an experiment file can contain, and what this machine has."""

import importlib
import itertools
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:
    from fedssl.app.commands.needs import Needs
    from fedssl.core.registry import Family, Plugin

FAMILIES = {
    "methods": "fedssl.methods.base:METHODS",
    "strategies": "fedssl.experiment.experiment:STRATEGIES",
    "datasets": "fedssl.data.sources.base:SOURCES",
    "models": "fedssl.models.base:MODELS",
    "evaluators": "fedssl.metrics.evaluators.base:EVALUATORS",
    "partitions": "fedssl.data.partitions.base:PARTITIONS",
    "labels": "fedssl.data.labels.base:LABEL_SPLITS",
    "label_noises": "fedssl.data.label_noise.base:LABEL_NOISES",
    "features": "fedssl.data.features.base:FEATURE_SKEWS",
    "laws": "fedssl.experiment.system.laws.base:LAWS",
    "availabilities": "fedssl.experiment.system.availability.base:AVAILABILITIES",
    "augmentations": "fedssl.augment.base:AUGMENTATIONS",
    "optimizers": "fedssl.training.optimizers.base:OPTIMIZERS",
    "schedules": "fedssl.training.schedules.base:SCHEDULES",
    "trackers": "fedssl.experiment.experiment:TRACKERS",
}
"""The families that `fedssl list` can list, and their places, so that only the requested family is imported."""

COMMON_NOTES = {
    "traffic": "size of a request to a client, and of the reply, as a multiple of the model's size; what a strategy "
    "sends to single clients is not counted",
    "": "All of this holds for the default settings, listed below, and for the default model.",
}
NOTES = {
    "methods": {
        "labels at": "where labels can be, so that the federation learns",
        "state": "what is kept beside the model, by its scope; reset: it is made anew in each round",
    }
    | COMMON_NOTES,
    "strategies": {
        "server needs": "each reply, or only sums of the replies, which workers make",
        "client half": "what the strategy changes at clients, and the state that it needs for this, by its scope",
    }
    | COMMON_NOTES,
}
"""Families whose members are listed by group with what they need, and what the headings mean."""


@guarded
def list_plugins(
    family: Annotated[
        str,
        typer.Argument(
            metavar="FAMILY",
            help=f"One of: {', '.join(FAMILIES)}. Without it, what each of them is called in a file, and its kinds.",
            autocompletion=lambda: sorted(FAMILIES),
            show_default=False,
        ),
    ] = "",
) -> None:
    """List the kinds that a section of the experiment file can name, with their settings.

    Examples:
      fedssl list

      fedssl list methods
    """
    if not family:
        with quick_imports():
            families = _families()
        console = Console()
        console.print(families)
        console.say("fedssl list FAMILY says what the kinds are, and which settings they have")
        return
    if family not in FAMILIES:
        raise InputError(
            "list",
            f"there is no family {family!r}",
            f"{suggest_nearest(family, FAMILIES)}; `fedssl explain {family}` tells settings, if it is a section of a file",
        )
    with quick_imports():
        members = members_of(family)
        needs = _needs_of(family, members)
    console = Console()
    if needs:
        console.print(_overview(needs), "", _legend(NOTES[family]), "", sep="\n")
    console.print(_details(members, needs))
    console.say(f"fedssl explain {_section_of(family)}.KIND tells what the settings of a kind mean")


def _families() -> Table:
    """Return a table of all families: the first section that names a member, and the kinds of all members."""
    table = Table(show_edge=False)
    table.add_column("family", style="bold", overflow="fold")
    table.add_column("section", overflow="fold")
    table.add_column("kinds")
    for family in FAMILIES:
        table.add_row(family, _section_of(family), ", ".join(members_of(family)))
    return table


def _section_of(family: str) -> str:
    """Return the section of the experiment file that names a member of a family; the first one of several."""
    from fedssl.experiment.families import PLUGIN_SECTIONS

    package = _family(family).package
    return next(section for section, each in PLUGIN_SECTIONS.items() if each.package == package)


def _family(family: str) -> "Family":
    module, _, name = FAMILIES[family].partition(":")
    found: Family = getattr(importlib.import_module(module), name)
    return found


def members_of(family: str) -> "dict[str, type[Plugin]]":
    """Return the built-in members of a family by their kinds, such as ``fedavg`` and ``flwr:NAME``."""
    plugins = _family(family)
    found = {kind: plugins.get(kind) for kind in plugins.names()}
    return {f"{k}:NAME" if "name" in m.model_fields else k: m for k, m in found.items()}


def _needs_of(family: str, members: "Mapping[str, type[Plugin]]") -> "dict[str, Needs]":
    """Return what each member needs, ordered by group; nothing for families without groups."""
    if family not in NOTES:
        return {}
    logging.getLogger("flwr").setLevel(logging.ERROR)  # Flower warns of what no experiment can set
    from fedssl.app.commands.needs import needs_of_method, needs_of_strategy, with_defaults

    needs_of = {"methods": needs_of_method, "strategies": needs_of_strategy}[family]
    found = {kind: needs_of(with_defaults(member)) for kind, member in members.items()}
    return dict(sorted(found.items(), key=lambda item: item[1].group.casefold()))


def _overview(needs: "Mapping[str, Needs]") -> Table:
    """Return a table that says in one line what each member needs."""
    headings = next(iter(needs.values())).by_heading
    table = Table(show_edge=False)
    for heading in ("kind", *headings):
        table.add_column(heading, overflow="fold")
    for group, kinds in itertools.groupby(needs, lambda kind: needs[kind].group):
        table.add_row(group, style="bold")
        for kind in kinds:
            table.add_row(f"  {kind}", *needs[kind].by_heading.values())
    return table


def _legend(notes: Mapping[str, str]) -> Table:
    """Return what the headings of the overview mean."""
    legend = Table.grid(padding=(0, 2, 0, 1))
    legend.add_column(overflow="fold")
    legend.add_column()
    for heading, meaning in notes.items():
        legend.add_row(Text(heading, "bold"), meaning)
    return legend


def _details(members: "Mapping[str, type[Plugin]]", needs: "Mapping[str, Needs]") -> Table:
    """Return a table of descriptions and settings, in the order of the overview if there is one."""
    table = Table(show_edge=False)
    table.add_column("kind", style="bold", overflow="fold")
    table.add_column("what it is", overflow="fold")
    table.add_column("settings", overflow="fold")
    for kind in needs or members:
        member = members[kind]
        doc = (member.__doc__ or "").strip().partition("\n")[0]
        table.add_row(kind, doc, "\n".join(_settings_of(member)))
    return table


def _settings_of(member: "type[Plugin]") -> Iterator[str]:
    """Yield each setting of a member, with its default if it has one."""
    for field, info in member.model_fields.items():
        if field == "name":
            continue
        if info.is_required():
            yield field
        else:
            yield f"{field} = {shown_default(info.get_default(call_default_factory=True))}"


def shown_default(value: Any) -> str:
    """Return a default as a table shows it; a plug-in is shown as its kind."""
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
