"""`fedssl compare`: compares recorded runs in tables, a page, files and a picture."""

import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedssl.app.commands.arguments import check_folders_of_runs
from fedssl.app.guard import guarded_reader
from fedssl.core.console import Console
from fedssl.core.extras import require

if TYPE_CHECKING:
    from fedssl.views.comparison.comparison import Comparison


class Measure(StrEnum):
    """A measure that gives every class the same weight; the names are those of `fedssl.metrics.balanced.MEASURES`."""

    macro_f1 = "macro_f1"
    balanced_accuracy = "balanced_accuracy"
    auroc = "auroc"


@guarded_reader
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or folders with runs at any depth; the first one is the baseline, if no other is named.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results; by default runs/comparison-STAMP.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compare runs even if their data or their splits differ."),
    ] = False,
    yardsticks: Annotated[
        bool,
        typer.Option(
            "--yardsticks",
            help="Also measure classical classifiers on the same labels, as `fedssl baseline` does.",
        ),
    ] = False,
    latex: Annotated[
        bool,
        typer.Option(
            "--latex",
            help="Also write comparison.tex, and comparison.pdf and .svg as wide as a column of a paper.",
        ),
    ] = False,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="The line that others are compared with, or settings such as method.kind=supervised: one baseline for each "
            "value of the other settings.",
            show_default=False,
        ),
    ] = None,
    bound: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="A line such as all labels, or its settings: show how much of the gap between the baseline and it the others close.",
            show_default=False,
        ),
    ] = None,
    measure: Annotated[
        list[Measure] | None,
        typer.Option(
            help="Also show a measure that gives every class the same weight; name several one by one.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare recorded runs: means and intervals over seeds, paired differences, and costs.

    RUN is a run directory, or a folder with runs at any depth. Runs with the same name and settings are the seeds of
    one line. Lines with the same data are compared with the first of them, or with the one that --baseline names.

    Examples:
      fedssl compare runs/digits-supervised runs/digits-fixmatch

      fedssl compare runs/digits-supervised runs --out comparison

      fedssl compare runs/few-labels runs --bound all-labels

      fedssl compare runs/sweep-digits --baseline method.kind=supervised

      fedssl compare runs/skin-supervised runs/skin-fixmatch --measure macro_f1 --measure auroc
    """
    check_folders_of_runs(runs)
    require("pandas", "compare", "the table")
    if yardsticks:
        require("sklearn", "--yardsticks", "the classifiers")
    if latex:
        require("matplotlib", "--latex", "the figure")
    from fedssl.views.comparison.comparison import Comparison

    comparison = Comparison.of_runs(
        runs,
        force=force,
        yardsticks=yardsticks,
        baseline=baseline,
        bound=bound,
        by_data=not force,
        measures=measure or (),
    )
    show_comparison(comparison, out, Console(), latex=latex)


def show_comparison(
    comparison: "Comparison",
    out: Path | None,
    console: Console,
    *,
    brief: bool = False,
    latex: bool = False,
) -> None:
    """Print a comparison, and write it to files.

    Args:
        comparison: What to show.
        out: Folder for the files, as `fedssl.views.comparison.files.write_files` writes them; None: a new folder below ``runs/``.
        console: The console on which to print.
        brief: Print only accuracies, and costs if there is virtual time; the files hold everything.
        latex: Write the table of accuracies as ``comparison.tex``, and the curves as ``comparison.pdf`` and ``comparison.svg``.

    Raises:
        InputError: The folder cannot be written to.
    """
    from fedssl.views.comparison.files import write_files
    from fedssl.views.comparison.table import tables_of
    from fedssl.views.text_table import OnScreen

    for table in tables_of(comparison, brief=brief):
        console.print(OnScreen(table))
        console.print()
    said = [f"note: {note}" for note in comparison.notes]
    folder = out or Path("runs") / time.strftime("comparison-%Y%m%d-%H%M%S")
    said += write_files(comparison, folder, latex=latex)
    for line in said:
        console.say(line)
