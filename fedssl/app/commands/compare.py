"""`fedssl compare`: recorded runs side by side, as tables, files and a picture."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedssl.app.guard import guarded_reader
from fedssl.core.console import Console
from fedssl.core.extras import is_installed, remedy_for, require

if TYPE_CHECKING:
    from fedssl.views.comparison.comparison import Comparison


@guarded_reader
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN...",
            help="Run directories, or folders with runs at any depth; the first one is compared with.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default runs/comparison-STAMP.")
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Compare runs on other data or another split all the same."),
    ] = False,
) -> None:
    """Compare recorded runs: means and intervals over seeds, paired differences, what it took to get there.

    RUN is a run directory, or a folder with runs at any depth. Runs of one name with the same settings are the seeds of
    one line; the first line is what others are compared with.

    Examples:
      fedssl compare runs/digits-supervised runs/digits-fixmatch

      fedssl compare runs/digits-supervised runs --out comparison
    """
    require("pandas", "compare", "the table")
    compare_runs(runs, out, Console(), force=force)


def compare_runs(
    paths: Sequence[Path], out: Path | None, console: Console, *, force: bool, brief: bool = False
) -> "Comparison":
    """Print how runs compare, write it down, and return it.

    Args:
        paths: Run directories, or folders of them; the first one's line is the baseline.
        out: Folder to write ``comparison.html``, ``comparison.csv``, ``comparison_curves.csv``, ``comparison_numbers.csv`` (where a
            method recorded numbers) and ``comparison.png`` to; made if need be; None: a new one below ``runs/``.
        console: Where to print.
        force: Compare them even if their data or their split differs, with a note that says so.
        brief: Print accuracies, and costs where there is virtual time; all else is in the files.

    Raises:
        InputError: There is nothing to compare, or it should not be compared; or the folder cannot be written to.
    """
    from fedssl.views.comparison.comparison import Comparison
    from fedssl.views.comparison.table import as_rich, grids_of

    comparison = Comparison.of_runs(paths, force=force)
    for grid in grids_of(comparison, brief=brief):
        console.print(as_rich(grid))
        console.print()
    said = [f"note: {note}" for note in comparison.notes]
    said += _write(comparison, out or Path("runs") / time.strftime("comparison-%Y%m%d-%H%M%S"))
    for line in said:
        console.print(line, style="dim", soft_wrap=True)
    return comparison


def _write(comparison: "Comparison", folder: Path) -> list[str]:
    """Write page, tables and picture, and return where they are."""
    from fedssl.record.run_path import unwritable

    table, curves = folder / "comparison.csv", folder / "comparison_curves.csv"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        comparison.lines.to_csv(table, index=False)
        comparison.curves.to_csv(curves, index=False)
        if len(comparison.numbers):
            comparison.numbers.to_csv(folder / "comparison_numbers.csv", index=False)
        page = _write_page(comparison, folder / "comparison.html")
        drawn = _draw(comparison, folder / "comparison.png")
    except OSError as error:
        raise unwritable(folder, str(error.strerror)) from None
    return [f"  page: {page}", f"  picture: {drawn}   table: {table}   curves: {curves}"]


def _write_page(comparison: "Comparison", path: Path) -> str:
    """Write the page if that can be done here, and say where it is."""
    if not is_installed("vl_convert"):
        return f"none without vl-convert ({remedy_for()})"
    from fedssl.views.reports.comparison_report import write_comparison

    write_comparison(comparison, path)
    return str(path)


def _draw(comparison: "Comparison", path: Path) -> str:
    """Draw the curves if that can be done here, and say where they are."""
    if not is_installed("matplotlib"):
        return f"none without matplotlib ({remedy_for()})"
    from fedssl.views.pictures.plots import plot_comparison

    data = f"{comparison.source}, {comparison.evaluated_on} images"
    plot_comparison(comparison.curves, f"{data}: mean over seeds, band from worst to best", path)
    return str(path)
