"""The command line: every command is one screen of glue over the library, which it imports itself."""

import importlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from fedssl import __version__
from fedssl.deploy.commands import app as deploy_app
from fedssl.errors import InputError, RunFailed, nearest
from fedssl.extras import is_installed, remedy_for, require
from fedssl.guard import DONE, complain, guarded
from fedssl.startup import quick_imports

if TYPE_CHECKING:  # each command imports what it needs: --help must not wait for torch
    from fedssl.config import Experiment
    from fedssl.record.rows import Outcome

app = typer.Typer(
    name="fedssl",
    help="Federated semi-supervised learning: simulate, measure, deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(deploy_app, name="deploy")

FAMILIES = {
    "methods": "fedssl.methods.base:METHODS",
    "strategies": "fedssl.config:STRATEGIES",
    "datasets": "fedssl.data.sources.base:SOURCES",
    "models": "fedssl.models.base:MODELS",
    "partitions": "fedssl.data.partitions.base:PARTITIONS",
    "labels": "fedssl.data.labels.base:LABEL_SPLITS",
    "label_noises": "fedssl.data.label_noise.base:LABEL_NOISES",
    "features": "fedssl.data.features.base:FEATURE_SKEWS",
    "laws": "fedssl.system.laws.base:LAWS",
    "availabilities": "fedssl.system.availability.base:AVAILABILITIES",
    "augmentations": "fedssl.augment.base:AUGMENTATIONS",
}
"""What `fedssl list` can list, and where it stands: only the family that is asked for is imported."""

Files = Annotated[list[Path], typer.Argument(help="Experiment files (TOML).", show_default=False)]
File = Annotated[Path, typer.Argument(help="Experiment file (TOML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a setting, e.g. --set method.threshold=0.9; repeatable."),
]


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Federated semi-supervised learning: simulate, measure, deploy."""
    if version:
        print(f"fedssl {__version__}")
        raise typer.Exit(DONE)
    _tell()


def _tell() -> None:
    """Let what is said while data is prepared, which can take minutes, and of workers appear on stderr."""
    log = logging.getLogger("fedssl")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)


@app.command()
@guarded
def run(
    files: Files,
    settings: Settings = None,
    engine: Annotated[
        str | None, typer.Option(help="serial, ray or flower; over the file's own.")
    ] = None,
    workers: Annotated[
        str | None, typer.Option(help="Number of Ray actors, or auto; over the file's own.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Run directory; for several runs, the folder that holds theirs."),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each file: its seed, the next one, and so on.")
    ] = 1,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with runs that were killed; those that ended stay."),
    ] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Plain lines, no live screen.")] = False,
) -> None:
    """Run experiments; of several runs, end with a table that compares them.

    Examples:
      fedssl run experiments/digits/fixmatch.toml

      fedssl run experiments/digits/*.toml --seeds 5

      fedssl run experiments/digits/fixmatch.toml --set federation.partition.alpha=0.1 --engine serial

      fedssl run experiments/digits/*.toml --seeds 5 --resume
    """
    with quick_imports():
        from fedssl.interrupts import interruptible
        from fedssl.runs import Runs
        from fedssl.simulation import Engine, check, check_engine

    overrides = list(settings or [])
    overrides += [f"engine.kind={engine}"] if engine else []
    overrides += [f"engine.workers={workers}"] if workers else []
    console = Console()
    with interruptible() as interrupts:
        experiments = _experiments(files, overrides, seeds)
        for experiment in experiments:
            check_engine(experiment)
        if len(experiments) > 1:
            require("pandas", "run", "the comparison of several runs")
        with Engine() as workforce:
            workforce.start(experiments[0])  # its workers make themselves ready while we check
            for experiment in experiments:
                check(experiment)
            runs = Runs(
                workforce, console, interrupts, plain=plain, resume=resume, complain=complain
            )
            finished, failed = runs.run(experiments, _folders(experiments, out))
        if len(finished) > 1:
            stamp = time.strftime("%Y%m%d-%H%M%S")
            _compare(finished, out or Path("runs") / f"comparison-{stamp}", console)
    if failed:
        raise RunFailed(f"{failed} of {len(experiments)} runs failed")


def _experiments(files: list[Path], settings: list[str], seeds: int) -> list["Experiment"]:
    """Return every file's experiment with its seed, the next one, and so on."""
    from fedssl.config import Experiment

    experiments = []
    for file in files:
        first = _load(file, settings).seed
        experiments += [
            Experiment.load(file, [*settings, f"seed={first + i}"]) for i in range(seeds)
        ]
    _refuse_twins(experiments)
    return experiments


def _folders(experiments: list["Experiment"], out: Path | None) -> list[Path | None]:
    """Return where each experiment is recorded, where that was said."""
    if out is None or len(experiments) == 1:
        return [out] * len(experiments)
    return [out / f"{experiment.name}-seed{experiment.seed}" for experiment in experiments]


def _load(file: Path, settings: list[str]) -> "Experiment":
    """Read an experiment file, which may name modules beside it or in the current folder."""
    from fedssl.config import Experiment

    for folder in (str(file.absolute().parent), str(Path.cwd())):
        if folder not in sys.path:
            sys.path.append(folder)  # a console script looks in neither by itself
    return Experiment.load(file, settings)


def _refuse_twins(experiments: "list[Experiment]") -> None:
    names = [(experiment.name, experiment.seed) for experiment in experiments]
    for name, seed in names:
        if names.count((name, seed)) > 1:
            raise InputError(
                "name", f"two experiments are called {name!r} with seed {seed}", "rename one"
            )


def _compare(finished: "list[tuple[Experiment, Outcome]]", folder: Path, console: Console) -> None:
    from fedssl.record.comparison import (
        Finished,
        as_rich,
        comparison_table,
        costs_as_rich,
        curves,
    )
    from fedssl.record.rows import summarize

    runs = [Finished(*run) for run in finished]
    table = comparison_table(runs)
    first = runs[0].experiment
    evaluated_on = first.evaluated_on
    title = (
        f"{first.data.kind}, {evaluated_on} images: mean of the last "
        f"{summarize(first, runs[0].outcome)['last_rounds']} evaluations, ± deviation over seeds"
    )
    console.print(as_rich(table, title))
    costs = costs_as_rich(table)
    if costs is not None:
        console.print(costs)
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "comparison.csv", index=False)
    if is_installed("matplotlib"):
        from fedssl.record.plots import plot_comparison

        drawn = str(folder / "comparison.png")
        data = f"{first.data.kind}, {evaluated_on} images"
        caption = f"{data}: mean over seeds, band from worst to best"
        plot_comparison(curves(runs), caption, Path(drawn))
    else:
        drawn = f"none without matplotlib ({remedy_for()})"
    where = f"  picture: {drawn}   table: {folder / 'comparison.csv'}"
    console.print(where, style="dim", highlight=False, markup=False, soft_wrap=True)


@app.command()
@guarded
def validate(file: File, settings: Settings = None) -> None:
    """Check an experiment file against its data without training, and say what it would run."""
    with quick_imports():
        from clients.local_data import simulated_federation
        from fedssl.record.display import describe
        from fedssl.simulation import check, check_engine, plan_here

    experiment = _load(file, settings or [])
    check_engine(experiment)
    check(experiment)
    engine = experiment.engine
    if experiment.federation.private:
        workers = "unused, for clients with private data are deployed and not simulated"
    elif engine.address is None:
        workers = plan_here(experiment).describe()
    else:
        workers = f"workers as the cluster at {engine.address} has room for"
    print(f"{file}: valid")
    print(f"  {describe(experiment, simulated_federation(experiment))}")
    print(f"  engine {engine.kind}: {workers}")


@app.command("list")
@guarded
def list_plugins(
    family: Annotated[
        str, typer.Argument(help="methods, strategies, datasets, models, partitions, ...")
    ],
) -> None:
    """List what a section of the experiment file can name, with its settings."""
    if family not in FAMILIES:
        raise InputError("list", f"there are no {family!r}", nearest(family, FAMILIES))
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
            else f"{field} = {_short(info.get_default(call_default_factory=True))}"
            for field, info in plugin.model_fields.items()
            if field != "name"
        ]
        shown = f"{kind}:NAME" if "name" in plugin.model_fields else kind
        doc = (plugin.__doc__ or "").strip().partition("\n")[0]
        table.add_row(shown, doc, "\n".join(fields))
    Console().print(table)


def _short(value: Any) -> str:
    from fedssl.registry import Plugin

    if isinstance(value, Plugin):
        return value.kind
    if value is None:
        return "unset"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value, default=str)


@app.command()
@guarded
def show(
    file: File,
    settings: Settings = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG to write; by default NAME-federation.png here.")
    ] = None,
) -> None:
    """Draw the federation of an experiment before any training: who holds what, who has labels."""
    require("matplotlib", "show", "the picture")
    with quick_imports():
        from clients.local_data import simulated_federation
        from fedssl.record.display import describe
        from fedssl.record.federation_plot import plot_federation
        from fedssl.record.federation_table import (
            client_names,
            describe_skew,
            describe_system,
            device_table,
            federation_table,
        )
        from fedssl.simulation import check, virtual_seconds

    experiment = _load(file, settings or [])
    check(experiment)
    federation = simulated_federation(experiment)
    console = Console()
    console.print(describe(experiment, federation), highlight=False, markup=False)
    if experiment.federation.private:
        console.print("nothing to draw: what clients hold is private, and only they know it")
        return
    names = client_names(federation, experiment.federation.partition)
    console.print(federation_table(federation, names))
    console.print(describe_skew(federation), highlight=False, markup=False, soft_wrap=True)
    timed = virtual_seconds(experiment)
    if timed is not None:
        console.print(device_table(*timed))
        console.print(
            describe_system(experiment, timed[1]), highlight=False, markup=False, soft_wrap=True
        )
    path = out or Path(f"{experiment.name}-federation.png")
    deadline = experiment.system.deadline if experiment.system else None
    try:
        plot_federation(
            federation,
            names,
            describe(experiment, federation),
            path,
            None if timed is None else timed[1],
            deadline,
        )
    except (OSError, ValueError) as error:
        raise InputError("--out", f"cannot write {path}: {error}", "name a .png") from None
    console.print(f"picture: {path}", highlight=False, markup=False, soft_wrap=True)


@app.command()
@guarded
def schema() -> None:
    """Print the JSON Schema of experiment files, for editors."""
    with quick_imports():
        from fedssl.config import Experiment

    print(json.dumps(Experiment.model_json_schema(), indent=2))


@app.command()
@guarded
def doctor() -> None:
    """Say what this machine has and what a run would use."""
    with quick_imports():
        import torch

        from fedssl.data.cache import CACHE_VARIABLE, cache_folder
        from fedssl.engine.plan import AS_MANY_AS_FIT, plan_workers
        from fedssl.record.provenance import environment
        from fedssl.simulation import this_machine

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
