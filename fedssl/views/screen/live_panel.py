"""A panel that is redrawn in place at the end of a terminal, and leaves nothing there once it is over."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.segment import Segment

BELOW = 2
"""Lines below a panel: a free one where the cursor waits, and one to which the cursor goes before the panel is erased.

A terminal writes ^C where the cursor waits, and not into the border. Without the second line, a panel as high as the terminal would
scroll before it is erased, and its upper border would stay.
"""


@dataclass(frozen=True)
class PanelAtEnd:
    """A panel and a free line. Lines above the lower border are left out where the terminal is too low for all.

    Args:
        panel: The panel.
    """

    panel: Panel

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the lines."""
        lines = console.render_lines(self.panel, options)
        room = max(2, options.size.height - BELOW)
        for line in lines if len(lines) <= room else [*lines[: room - 1], lines[-1]]:
            yield from line
            yield Segment.line()
        yield Segment.line()


def live_panel(console: Console, panel: Callable[[], Panel | None], per_second: float) -> Live:
    """Return a display of a panel; while it is shown, what is written to the terminal appears above the panel.

    A standard error stream that leads to a file is left alone.

    Args:
        console: The terminal.
        panel: Returns the panel as it is now, or None as long as there is nothing to show.
        per_second: The panel is drawn anew so many times a second.
    """

    def shown() -> PanelAtEnd | str:
        now = panel()
        return "" if now is None else PanelAtEnd(now)

    return Live(
        get_renderable=shown,
        console=console,
        refresh_per_second=per_second,
        transient=True,
        redirect_stderr=sys.stderr.isatty(),
    )
