"""A page of charts in one file that opens offline: it asks for nothing from anywhere."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedssl.core.files import write_atomically
from fedssl.views.reports.charts import Chart
from fedssl.views.reports.vega import javascript
from fedssl.views.text_table import Grid

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Figure:
    """A number that a page begins with: what it is, how much, and what that means."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Page:
    """What stands on a page, from above.

    Args:
        title: Of the page.
        subtitle: What it is about, in a line.
        figures: Numbers to begin with.
        remarks: Sentences that must not be missed, such as why a run stopped.
        tables: Before the charts.
        charts: In their order.
        texts: Long texts by name, folded up at the end.
    """

    title: str
    subtitle: str
    figures: Sequence[Figure] = ()
    remarks: Sequence[str] = ()
    tables: Sequence[Grid] = ()
    charts: Sequence[Chart] = ()
    texts: Mapping[str, str] = field(default_factory=dict)


def write_page(page: Page, path: Path) -> None:
    """Write a page as one HTML file.

    Args:
        page: What stands on it.
        path: The file.
    """
    charts = [
        {"name": chart.name, "rows": chart.rows, "spec": chart.spec | {"description": chart.note}}
        for chart in page.charts
    ]
    text = _template().render(page=page, data=_as_script(charts), vega=javascript())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


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
    """Return JSON that can stand inside a script element, whatever texts are in it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
