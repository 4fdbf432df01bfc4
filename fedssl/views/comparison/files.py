"""The files of a comparison: its page, its tables and its pictures."""

from pathlib import Path
from typing import TYPE_CHECKING

from fedssl.core.extras import install_command, is_installed
from fedssl.record.run_path import unwritable_error

if TYPE_CHECKING:
    from fedssl.views.comparison.comparison import Comparison


def write_files(comparison: "Comparison", folder: Path, *, latex: bool) -> list[str]:
    """Write page, tables and picture; return lines that name their files.

    The files are ``comparison.html``, ``comparison.png``, ``comparison.csv``, ``comparison_curves.csv``, and, if there is anything to
    write, ``comparison_numbers.csv``, ``comparison_tests.csv`` and ``comparison_yardsticks.csv``.

    Args:
        comparison: What to write.
        folder: Where; it is made if it does not exist.
        latex: Also write the table of accuracies as ``comparison.tex``, and the curves as ``comparison.pdf`` and ``comparison.svg``.

    Raises:
        InputError: The folder cannot be written to.
    """
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
    from fedssl.views.pictures.paper_plot import plot_for_paper

    (folder / "comparison.tex").write_text(comparison.latex(), encoding="utf-8")
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
    from fedssl.views.pictures.plots import save_figure

    save_figure(comparison.plot(), path)
    return str(path)
