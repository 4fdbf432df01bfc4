"""Pages that the board opens: reports of runs, and comparisons; they need libraries for which the list does not wait."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fedssl.app.guard import unreadable
from fedssl.core.errors import FedsslError
from fedssl.core.extras import require
from fedssl.core.processes import quick_imports
from fedssl.record.overview import regular_files
from fedssl.record.run_path import REPORT, SUMMARY


class Pages:
    """Make pages one at a time, because each of them takes memory and a core."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def report(self, path: Path) -> str:
        """Return the report of a run: the file of a finished run if there is one, else a page of the record as it is now.

        Raises:
            InputError: The record is damaged, or a library is missing.
        """
        if {REPORT, SUMMARY} <= regular_files(path):
            return (path / REPORT).read_text(encoding="utf-8")
        require("vl_convert", "report", "the report")
        with self._lock:
            return _explained(_report, path)

    def comparison(self, paths: Sequence[Path], *, force: bool) -> str:
        """Return the page that `fedssl compare` makes of runs.

        Args:
            paths: Run directories; the first is that of the baseline.
            force: Compare runs even if their data or their split differs.

        Raises:
            InputError: The runs cannot be compared, or a library is missing.
        """
        require("pandas", "compare", "the comparison")
        require("vl_convert", "compare", "the page")
        with self._lock:
            return _explained(_comparison, paths, force)


def _explained(make: Callable[..., str], *arguments: object) -> str:
    """Return what a function makes of records; whatever they make it raise becomes one message."""
    try:
        return make(*arguments)
    except FedsslError:
        raise
    except Exception as error:
        raise unreadable(error) from error


def _report(path: Path) -> str:
    with quick_imports():
        from fedssl.views.closer_look import read_evaluation
        from fedssl.views.reports.material import read_material
        from fedssl.views.reports.page import page_text
        from fedssl.views.reports.run_report import report_page
        from fedssl.views.run import Run

    material = read_material(Run(path), read_evaluation(path))
    return page_text(report_page(material, is_live=True))


def _comparison(paths: Sequence[Path], force: bool) -> str:
    with quick_imports():
        from fedssl.views.comparison.comparison import Comparison
        from fedssl.views.reports.comparison_report import comparison_page
        from fedssl.views.reports.page import page_text

    return page_text(comparison_page(Comparison.of_runs(paths, force=force)))
