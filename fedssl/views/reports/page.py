"""A page of charts in one HTML file that opens offline: it loads nothing from the network."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedssl.core.files import write_atomically
from fedssl.views.reports.charts import Chart
from fedssl.views.reports.vega import javascript
from fedssl.views.text_table import TextTable

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Figure:
    """A number at the top of a page: its name, its value and a remark on its meaning."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """The content of a page, from top to bottom.

    Args:
        title: Title of the page.
        subtitle: One line that describes the content.
        state: How far what is shown has come; empty if it is complete.
        reload_seconds: The browser loads the page again after so many seconds; 0: it does not.
        figures: Numbers at the top of the page.
        remarks: Sentences that the reader must not miss, such as why a run stopped.
        tables: Tables before the charts.
        notes: Sentences on what the tables show; they stand below the first table, so that it is seen before them.
        charts: Charts, in this order.
        texts: Long texts by name, folded up at the end of the page.
    """

    title: str
    subtitle: str
    state: str = ""
    reload_seconds: int = 0
    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()
    tables: Sequence[TextTable] = ()
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def page_text(page: Page) -> str:
    """Return the HTML of a page."""
    charts = [
        {"name": chart.name, "rows": chart.rows, "spec": chart.spec | {"description": chart.note}}
        for chart in page.charts
    ]
    columns = {
        "many": balanced_columns(len(page.figures), 7),
        "some": balanced_columns(len(page.figures), 4),
    }
    text: str = _template().render(page=page, data=_as_script(charts), vega=javascript(), **columns)
    return text


def balanced_columns(count: int, most: int) -> int:
    """Return the number of columns, at most `most`, with which the fewest rows hold as many tiles each as they can.

    Example:
        >>> [balanced_columns(count, 7) for count in (1, 7, 8, 9)]
        [1, 7, 4, 5]
    """
    rows = -(-count // most) or 1
    return -(-count // rows) or 1


def write_page(page: Page, path: Path) -> None:
    """Write a page as one HTML file.

    Args:
        page: Content of the page.
        path: The HTML file to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, page_text(page).encode())


@functools.lru_cache(maxsize=1)
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(TEMPLATE)


def _as_script(value: Any) -> str:
    """Return JSON that is safe inside a script element, whatever texts it contains."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
