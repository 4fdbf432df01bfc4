"""`fedssl advise`: says which method fits the federation of an experiment file, from measured tables."""

import shlex
from typing import Annotated

import typer

from fedssl.app.commands.arguments import File, Settings, check_files, load_experiment
from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports


@guarded
def advise(
    file: File,
    settings: Settings = None,
    traffic: Annotated[
        float | None,
        typer.Option(min=0, help="Most traffic, relative to FedAvg with labels at all clients."),
    ] = None,
) -> None:
    """Say which method fits the federation of an experiment, from the measured tables of docs/results.md.

    The advice depends on where the labels are, how many there are, how skewed the clients are, and how much may be sent. The
    experiment is not run.

    Examples:
      fedssl advise mine.toml

      fedssl advise mine.toml --traffic 1.5
    """
    require("pandas", "advise", "the tables")
    check_files([file], settings)
    with quick_imports():
        from fedssl.app.advice.advice import advise as advice_for
        from fedssl.app.advice.evidence import load_evidence
        from fedssl.app.advice.situation import situation_of
        from fedssl.app.simulation import check_experiment
        from fedssl.clients.local_data import simulated_federation
        from fedssl.record.description import remarks_on_means
        from fedssl.views.text_table import OnScreen

    experiment = load_experiment(file, settings or [])
    if experiment.federation.private:
        raise InputError(
            "advise",
            "the images of private clients are not here",
            "name them as federation.sites, or give advise a simulation with the same labels",
        )
    check_experiment(experiment)
    federation = simulated_federation(experiment)
    situation = situation_of(federation)
    advice = advice_for(load_evidence(), situation, traffic)
    console = Console()
    console.say(f"your federation: {situation.describe()}")
    console.say("measured in federations with labels at the same place:")
    for table in advice.tables():
        console.print(OnScreen(table))
    for sentence in (*advice.sentences(), *remarks_on_means(experiment, federation)):
        console.tell(sentence)
    console.tell(
        "Every line began with some rounds of supervised training ([[phases]]), and shows one unlabeled image for each labeled one."
    )
    words = [word for setting in advice.settings for word in ("--set", setting)]
    if experiment.phases:
        console.tell(
            "To try it, give these settings to the phase that learns from unlabeled images:"
        )
        console.print(" ".join(advice.settings), soft_wrap=True)
    else:
        console.tell("To try it:")
        console.print(shlex.join(["fedssl", "run", str(file), *words]), soft_wrap=True)
