"""`fedssl report`: writes the page of a recorded run, finished or not."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedssl.app.commands.arguments import PluginsOption, check_runs, load_run
from fedssl.app.guard import guarded_reader
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports

if TYPE_CHECKING:  # --help must not wait for torch
    from fedssl.views.run import Run


@guarded_reader
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.", show_default=False)],
    plugins: PluginsOption = False,
) -> None:
    """Write report.html into run directories; it shows how a run went, or how far it has come.

    Examples:
      fedssl report runs/digits-fixmatch/20260101-120000-seed0

      fedssl report runs/digits-fixmatch/*
    """
    check_runs(runs)
    require("vl_convert", "report", "the report")
    with quick_imports():
        from fedssl.views.reports.run_report import write_report

    console = Console()
    for run in [load_run(path, plugins=plugins) for path in runs]:
        try:
            path = write_report(run, _find_closer_look(run, console))
        except OSError as error:
            problem = f"report.html cannot be written: {error.strerror}"
            raise InputError(
                str(run.path), problem, "copy the run to a folder that you can write to"
            ) from None
        console.tell(f"report: {path}")


def _find_closer_look(run: "Run", console: Console) -> "Mapping[str, Any] | None":
    """Return a closer look at the run's newest models.

    If there is no model or the images are missing, the user is told, and the recorded closer look is returned.
    """
    from fedssl.views.closer_look import closer_look, read_evaluation, recorded_look

    try:
        return recorded_look(run) or closer_look(run)
    except InputError as error:  # the page can show the rest
        console.tell(f"no closer look at the models: {error}")
        return read_evaluation(run.path)
