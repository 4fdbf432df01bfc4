"""`fedssl validate` and `fedssl show`: check an experiment file and show its federation before any training."""

from pathlib import Path
from typing import Annotated

import typer

from fedssl.app.commands.arguments import (
    File,
    Settings,
    check_files,
    load_experiment,
    say_changed_kinds,
)
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports

PICTURES = (".png", ".pdf", ".svg")
"""Suffixes of the pictures that `show` can write."""


@guarded
def validate(
    file: File,
    settings: Settings = None,
    step: Annotated[
        bool, typer.Option("--step/--no-step", help="Also train one client for one step.")
    ] = True,
) -> None:
    """Check an experiment file against its data, try one step of one client, and say what would run.

    Examples:
      fedssl validate mine.toml

      fedssl validate mine.toml --set federation.clients=1000
    """
    check_files([file], settings)
    with quick_imports():
        from fedssl.app.simulation import (
            check_engine,
            check_experiment,
            choice_here,
            plan_workers_here,
        )
        from fedssl.app.trial_step import try_one_step
        from fedssl.clients.local_data import simulated_federation
        from fedssl.record.description import (
            describe,
            remarks_on_data,
            remarks_on_means,
            remarks_on_systems,
        )
        from fedssl.record.judges import judges_of, remarks_on_judges
        from fedssl.record.leaks import remark_on_weights
        from fedssl.server.accountant import account_for

    experiment = load_experiment(file, settings or [])
    check_engine(experiment)
    check_experiment(experiment)
    engine, because = experiment.engine, ""
    if experiment.federation.private:
        workers = "unused: clients with private data are deployed and not simulated"
    elif engine.address is None:
        choice = choice_here(experiment)
        engine, because = choice.experiment.engine, choice.reason
        workers = plan_workers_here(choice.experiment).describe()
    else:
        workers = f"as many workers as the cluster at {engine.address} has room for"
    federation, tried = simulated_federation(experiment), list[str]()
    if step and not experiment.federation.private:
        tried = try_one_step(experiment, federation)
    console = Console()
    facts = [describe(experiment, federation), f"engine {engine.kind}: {workers}"]
    facts += [f"  because {because}"] if because else []
    account = account_for(experiment)
    facts += [] if account is None else [f"privacy: {account.describe()}"]
    console.tell(f"{file}: valid")
    say_changed_kinds([experiment], console)
    remarks = remarks_on_judges(judges_of(experiment, federation)) + remarks_on_systems(experiment)
    remarks += remarks_on_means(experiment, federation)
    remarks += [remark] if (remark := remark_on_weights(experiment, federation)) else []
    for line in (*facts, *remarks_on_data(federation), *remarks, *tried):
        console.tell(f"  {line}")


@guarded
def show(
    file: File,
    settings: Settings = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write (.png, .pdf or .svg); by default NAME-federation.png here."
        ),
    ] = None,
) -> None:
    """Draw the federation of an experiment before any training: the images and labels of each client.

    Examples:
      fedssl show mine.toml

      fedssl show mine.toml --set federation.partition.alpha=0.1 --out skewed.png
    """
    require("matplotlib", "show", "the picture")
    check_files([file], settings)
    with quick_imports():
        from fedssl.app.simulation import check_experiment, virtual_seconds
        from fedssl.clients.local_data import simulated_federation
        from fedssl.data.client_names import client_names
        from fedssl.record.description import describe, remarks_on_data
        from fedssl.record.run_path import check_output
        from fedssl.views.federation_table import (
            describe_skew,
            describe_system,
            device_table,
            federation_table,
        )
        from fedssl.views.pictures.federation_plot import plot_federation
        from fedssl.views.text_table import OnScreen

    # Draw the federation as a run would; what private clients hold is not known here.
    experiment = load_experiment(file, settings or [])
    check_experiment(experiment)
    federation = simulated_federation(experiment)
    console = Console()
    console.tell(describe(experiment, federation))
    if experiment.federation.private:
        console.tell("nothing to draw: what clients hold is private, and only the clients know it")
        return
    # Print the tables: images by client and class, and the devices if there is virtual time.
    names = client_names(federation, experiment.federation.partition)
    console.print(OnScreen(federation_table(federation, names)))
    for line in (describe_skew(federation), *remarks_on_data(federation)):
        console.tell(line)
    timed = virtual_seconds(experiment)
    if timed is not None:
        console.print(OnScreen(device_table(*timed)))
        console.tell(describe_system(experiment, timed[1]))
    # Draw the picture; a name without a picture's suffix becomes a PNG.
    path = out or Path(f"{experiment.name}-federation.png")
    path = path if path.suffix in PICTURES else path.with_name(f"{path.name}.png")
    check_output(path, path.suffix)
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
    console.tell(f"picture: {path}")
