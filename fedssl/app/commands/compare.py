"""`fedssl compare`: compares recorded runs in tables, a page, files and a picture."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedssl.app.commands.arguments import check_folders_of_runs
from fedssl.app.guard import guarded_reader
from fedssl.core.console import Console
from fedssl.core.extras import install_command, is_installed, require

if TYPE_CHECKING:
    from fedssl.views.comparison.comparison import Comparison


@guarded_reader
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or folders with runs at any depth; all others are compared with the first one.",
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
    bound: Annotated[
        str | None,
        typer.Option(
            metavar="LINE",
            help="A line such as all labels: show how much of the gap between the first line and it the others close.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compare recorded runs: means and intervals over seeds, paired differences, and costs.

    RUN is a run directory, or a folder with runs at any depth. Runs with the same name and settings are the seeds of
    one line. All lines are compared with the first line.

    Examples:
      fedssl compare runs/digits-supervised runs/digits-fixmatch

      fedssl compare runs/digits-supervised runs --out comparison

      fedssl compare runs/few-labels runs --bound all-labels
    """
    check_folders_of_runs(runs)
    require("pandas", "compare", "the table")
    if yardsticks:
        require("sklearn", "--yardsticks", "the classifiers")
    if latex:
        require("matplotlib", "--latex", "the figure")
    compare_runs(runs, out, Console(), force=force, yardsticks=yardsticks, bound=bound, latex=latex)


def compare_runs(
    paths: Sequence[Path],
    out: Path | None,
    console: Console,
    *,
    force: bool,
    brief: bool = False,
    yardsticks: bool = False,
    bound: str | None = None,
    latex: bool = False,
) -> "Comparison":
    """Compare runs, print the comparison, write it to files, and return it.

    Args:
        paths: Run directories, or folders that hold run directories; the line of the first run is the baseline.
        out: Folder for the page, the picture and the tables, created if it does not exist; None: a new folder below ``runs/``. The
            files are ``comparison.html``, ``comparison.png``, ``comparison.csv``, ``comparison_curves.csv``, and, if there is anything to write,
            ``comparison_numbers.csv``, ``comparison_tests.csv`` and ``comparison_yardsticks.csv``.
        console: The console on which to print.
        force: Compare runs even if their data or their split differs; a note says so.
        brief: Print only accuracies, and costs if there is virtual time; the files hold everything.
        yardsticks: Measure classical classifiers on the federations of the first line.
        bound: Label of the line from which the share of the gap is counted that the others close; None: none is shown.
        latex: Write the table of accuracies as ``comparison.tex``, and the curves as ``comparison.pdf`` and ``comparison.svg``.

    Raises:
        InputError: No finished run is found, data or splits differ, or the folder cannot be written to.
    """
    from fedssl.views.comparison.comparison import Comparison
    from fedssl.views.comparison.table import OnScreen, tables_of

    comparison = Comparison.of_runs(paths, force=force, yardsticks=yardsticks, bound=bound)
    for table in tables_of(comparison, brief=brief):
        console.print(OnScreen(table))
        console.print()
    said = [f"note: {note}" for note in comparison.notes]
    said += _write_files(
        comparison, out or Path("runs") / time.strftime("comparison-%Y%m%d-%H%M%S"), latex=latex
    )
    for line in said:
        console.say(line)
    return comparison


def _write_files(comparison: "Comparison", folder: Path, *, latex: bool) -> list[str]:
    """Write page, tables and picture; return lines that name their files."""
    from fedssl.record.run_path import unwritable_error

    table, curves = folder / "comparison.csv", folder / "comparison_curves.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        comparison.lines.to_csv(table, index=False)
        comparison.curves.to_csv(curves, index=False)
        if len(comparison.numbers):
            comparison.numbers.to_csv(folder / "comparison_numbers.csv", index=False)
        if len(comparison.verdicts.pairs):
            comparison.verdicts.pairs.to_csv(folder / "comparison_tests.csv", index=False)
        if len(comparison.yardsticks):
            comparison.yardsticks.to_csv(folder / "comparison_yardsticks.csv", index=False)
        page = _write_page(comparison, folder / "comparison.html")
        drawn = _draw_curves(comparison, folder / "comparison.png")
        if latex:
            _write_for_paper(comparison, folder)
    except OSError as error:
        raise unwritable_error(folder, str(error.strerror)) from None
    paper = [f"  for a paper: {folder / 'comparison.tex'}, comparison.pdf, comparison.svg"]
    lines = [f"  page: {page}", f"  picture: {drawn}   table: {table}   curves: {curves}"]
    return [*lines, *(paper if latex else [])]


def _write_for_paper(comparison: "Comparison", folder: Path) -> None:
    """Write the accuracies as LaTeX, and the curves as a PDF and an SVG."""
    from fedssl.views.comparison.latex import latex_of
    from fedssl.views.comparison.table import tables_of
    from fedssl.views.pictures.paper_plot import plot_for_paper

    text = latex_of(tables_of(comparison, brief=True)[0])
    (folder / "comparison.tex").write_text(text, encoding="utf-8")
    plot_for_paper(comparison.curves, [folder / f"comparison.{kind}" for kind in ("pdf", "svg")])


def _write_page(comparison: "Comparison", path: Path) -> str:
    """Write the page; return its path, or why there is no page."""
    if not is_installed("vl_convert"):
        return f"none without vl-convert ({install_command()})"
    from fedssl.views.reports.comparison_report import write_comparison

    write_comparison(comparison, path)
    return str(path)


def _draw_curves(comparison: "Comparison", path: Path) -> str:
    """Draw the curves; return the picture's path, or why there is no picture."""
    if not is_installed("matplotlib"):
        return f"none without matplotlib ({install_command()})"
    from fedssl.views.pictures.plots import plot_comparison

    data = f"{comparison.source}, {comparison.evaluated_on} images"
    plot_comparison(comparison.curves, f"{data}: mean over seeds, band from worst to best", path)
    return str(path)
