"""`fedssl report`: the page of a recorded run, finished or not."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fedssl.errors import InputError
from fedssl.extras import require
from fedssl.guard import guarded
from fedssl.startup import quick_imports


@guarded
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)],
) -> None:
    """Write report.html into run directories: how a run went, or how far it has come.

    Examples:
      fedssl report runs/digits-fixmatch/20260101-120000-seed0

      fedssl report runs/digits-fixmatch/*
    """
    require("vl_convert", "report", "the report")
    with quick_imports():
        from clients.local_data import simulated_federation
        from fedssl.record.run import Run
        from fedssl.reports.evaluation import look_closely, read_evaluation, write_evaluation
        from fedssl.reports.run_report import write_report

    console = Console()
    for run in [Run(path) for path in runs]:
        evaluation = read_evaluation(run.path)
        if evaluation is None or not run.is_finished:
            try:
                models = {"ema": run.arrays(), "model": run.arrays(average=False)}
                federation = simulated_federation(run.experiment)
                evaluation = look_closely(run.experiment, federation, models, run.model_round)
                write_evaluation(run.path, evaluation)
            except InputError as error:  # no model yet, or no images here: the rest can be shown
                console.print(
                    f"no closer look at the models: {error}", markup=False, soft_wrap=True
                )
        path = write_report(run, evaluation)
        console.print(f"report: {path}", highlight=False, markup=False, soft_wrap=True)
