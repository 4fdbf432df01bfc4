"""The live screen of a run, as it looks on terminals of several sizes."""

import dataclasses
import io
import logging
import sys
from datetime import datetime

import pytest

from fedssl.app.sweep.display import Lines, Screen
from fedssl.app.sweep.display import make_display as make_sweep_display
from fedssl.cli import _LogLines
from fedssl.core.console import Console
from fedssl.record.global_model import GlobalModel
from fedssl.record.rows import Failure, Outcome, RoundEnd
from fedssl.views.screen.display import (
    PlainDisplay,
    make_display,
    progress_bar,
    right_and_used,
    sparkline,
)
from fedssl.views.screen.live_display import LiveDisplay
from fedssl.views.screen.live_panel import BELOW
from tests.helpers import federation_of, small_experiment
from tests.views.comparison.records import rows_of
from tests.views.screen.terminal import Terminal

SIZES = [(80, 24), (120, 40), (40, 24), (40, 12)]
ACCURACIES = [round(0.2 + 0.01 * number, 2) for number in range(60)]


@pytest.fixture
def show():
    """Return a function that shows rounds on a terminal of some size, and returns the display and the terminal."""
    experiment = small_experiment(rounds=60)
    displays = []

    def showing(size, rounds, failures=()):
        terminal = Terminal(*size)
        display = LiveDisplay(terminal.console())
        displays.append(display)
        display.began(experiment, federation_of(experiment))
        for row in rows_of(ACCURACIES[:rounds]):
            display.round_ended(RoundEnd(row, [], list(failures), GlobalModel()))
        display._live.refresh()
        return display, terminal

    yield showing
    for display in displays:
        display.failed("")


def rounds_in(lines):
    """Return the numbers of the rounds that a screen shows."""
    cells = [line.strip("│").split() for line in lines]
    return [int(cell[0]) for cell in cells if "%" in cell and cell[0].isdecimal()]


@pytest.mark.parametrize("size", SIZES)
def test_the_latest_rounds_fill_the_height_of_the_terminal(show, size):
    _, terminal = show(size, 60)
    assert len(terminal.shown) == terminal.height - BELOW
    shown = rounds_in(terminal.shown)
    assert shown == list(range(61 - len(shown), 61))
    assert len(shown) >= terminal.height - 10


NAN = float("nan")


@pytest.mark.parametrize(
    ("right", "used", "line"),
    [
        (0.9, 0.5, "90.0 % right, 50.0 % used"),
        (NAN, 0.5, "unknown how many right, 50.0 % used"),
        (NAN, 0.0, "none used"),
        (NAN, NAN, ""),
    ],
)
def test_where_nobody_knows_how_many_pseudo_labels_are_right_screens_say_so(
    show, right, used, line
):
    assert right_and_used(right, used) == line
    display, terminal = show((80, 24), 1)
    row = dataclasses.replace(
        rows_of([0.5, 0.6])[1], pseudo_label_accuracy=right, pseudo_label_coverage=used
    )
    display.round_ended(RoundEnd(row, [], [], GlobalModel()))
    display._live.refresh()
    (shown,) = [text for text in terminal.shown if text.strip("│").split()[:1] == ["2"]]
    assert ("unknown" in shown) == line.startswith("unknown")


def test_failures_leave_less_room_for_rounds(show):
    _, terminal = show((80, 24), 60, [Failure(3, 1, "RuntimeError: no")])
    assert len(terminal.shown) == 24 - BELOW
    assert sum("client 1: RuntimeError" in line for line in terminal.shown) == 3


REASON = (
    "census: client 1 is left out: it could not answer the census: fedssl.core.errors.InputError: client 1: "
    "--data: there is nothing at /srv/hospital/images/of/many/years/and/wards; look whether the disk is mounted"
)


def words_on(terminal):
    return " ".join(" ".join(line.strip("│").split()) for line in terminal.shown)


@pytest.mark.parametrize("size", SIZES[:3])
def test_reasons_are_whole_at_any_width(show, size):
    display, terminal = show(size, 2)
    (row,) = rows_of([0.5])
    display.round_ended(RoundEnd(row, [], [], GlobalModel(), incidents=[f"{REASON}\nTraceback"]))
    display._live.refresh()
    letters = words_on(terminal).replace(" ", "")
    assert f"incident: {REASON}".replace(" ", "") in letters
    assert "Traceback" not in letters
    assert len(terminal.shown) < terminal.height
    display.ended(Outcome(GlobalModel(), (row,), 1.0))  # the reason outlives the panel
    assert f"incident: {REASON}".replace(" ", "") in words_on(terminal).replace(" ", "")


def test_of_more_troubles_than_there_is_room_for_the_latest_are_shown(show):
    failures = [Failure(3, client, f"Error: {client} {'no ' * 100}") for client in range(3)]
    _, terminal = show((40, 24), 1, failures)
    shown = words_on(terminal)
    assert "client 2: Error" in shown
    assert "client 0: Error" not in shown
    assert len(rounds_in(terminal.shown)) == 1


def test_what_the_run_waits_for_is_shown_until_the_round_is_over(show):
    display, terminal = show((80, 24), 2)
    until = datetime(2026, 1, 1, 12, 0, 5).astimezone()
    display.waiting("client 1 went away", until)
    display._live.refresh()
    assert "client 1 went away; the run waits until 12:00:05 at most" in words_on(terminal)
    display.waiting("no answer yet from client 2", None)
    display._live.refresh()
    assert "no answer yet from client 2" in words_on(terminal)
    assert "at most" not in words_on(terminal)
    (row,) = rows_of([0.5])
    display.round_ended(RoundEnd(row, [], [], GlobalModel()))
    display._live.refresh()
    assert "client" not in words_on(terminal).replace("clients", "")


@pytest.mark.parametrize("size", SIZES)
def test_heads_are_whole_at_any_width(show, size):
    _, terminal = show(size, 3)
    (heads,) = (line for line in terminal.shown if " round " in line and "EMA" in line)
    words = heads.strip("│").split()
    assert set(words) <= {
        *("round", "method", "accuracy", "EMA", "pseudo-labels", "labels"),
        *("right", "used", "clients", "s"),
    }
    assert {"round", "accuracy", "EMA", "right"} <= set(words)
    if size[0] == 120:
        assert " ".join(words) == "round method accuracy EMA pseudo-labels right used clients s"
    assert "…" not in "".join(terminal.shown)


def test_the_course_is_as_wide_as_the_screen(show):
    _, terminal = show((120, 40), 60)
    (course,) = (line for line in terminal.shown if "EMA accuracy" in line)
    assert sparkline(ACCURACIES, 60) in course


@pytest.mark.parametrize("size", SIZES)
def test_ctrl_c_leaves_nothing_of_the_screen(show, size):
    """The terminal itself writes ^C where the cursor is."""
    display, terminal = show(size, 5)
    terminal.write("^C")
    display.failed("interrupted")
    assert terminal.shown == []


def test_a_terminal_that_shrinks_is_filled_anew(show):
    display, terminal = show((120, 40), 60)
    display._console.height = terminal.height = 20
    assert len(display._console.render_lines(display._live.get_renderable())) == 19


LOW = [(80, 24), (60, 20), (40, 15), (40, 12), (30, 6)]
"""Terminals, the last of which are too low for the panel."""


@pytest.mark.parametrize("size", LOW)
def test_nothing_of_the_panel_stays_above_the_screen(show, size):
    """A panel as high as the terminal scrolled before it was erased, and its upper border stayed."""
    display, terminal = show(size, 60, [Failure(3, 1, "RuntimeError: no " * 9)])
    assert "╭" in terminal.shown[0]
    assert "╰" in terminal.shown[-1]
    display.failed("interrupted")
    assert terminal.lines == [""] * len(terminal.lines)


@pytest.mark.parametrize("size", LOW)
def test_what_is_logged_stands_above_the_panel_and_stays(show, monkeypatch, size):
    log = logging.Logger("a log")
    log.addHandler(_LogLines())  # before the panel is there
    monkeypatch.setattr(sys, "stderr", stderr := Terminal(*size))
    display, terminal = show(size, 1)
    log.info("small clients are trained \x1btogether")
    log.warning("a client went away")
    display._live.refresh()
    assert terminal.shown.count("a client went away") == 1
    display.ended(Outcome(GlobalModel(), tuple(rows_of([0.5])), 1.0))
    said = " ".join(" ".join(terminal.lines).split())
    assert said.startswith(
        r"small clients are trained \x1btogether a client went away small seed 0"
    )
    assert not set("╭│╰") & set(said)
    assert stderr.lines == [""]
    log.info("afterwards")
    assert stderr.lines == ["afterwards", ""]


def test_a_log_in_a_file_is_not_shown(show, monkeypatch):
    monkeypatch.setattr(sys, "stderr", file := io.StringIO())
    _, terminal = show((80, 24), 1)
    print("a warning", file=sys.stderr)
    assert file.getvalue() == "a warning\n"
    assert "a warning" not in terminal.shown


@pytest.mark.parametrize(("kind", "is_live"), [("dumb", False), ("xterm", True)])
def test_a_terminal_whose_cursor_cannot_be_moved_gets_lines(kind, is_live):
    """As that of an editor, where the live screen showed nothing before the end."""
    console = Console(file=Terminal(80, 24), force_terminal=True, _environ={"TERM": kind})
    assert isinstance(make_display(console), LiveDisplay if is_live else PlainDisplay)
    sweep = make_sweep_display(console, [], 0, plain=False)
    assert isinstance(sweep._display, Screen if is_live else Lines)


def test_without_colors_the_bar_shows_what_is_done_by_its_length():
    terminal = Terminal(60, 24)
    console = Console(file=terminal, force_terminal=True, width=60, no_color=True)
    progress = progress_bar(console, "round")
    progress.advance(progress.add_task("rounds", total=4))
    console.print(progress)
    bar = terminal.shown[0].partition("1/4 ")[2].partition("0:")[0]
    assert bar.count("━") == len(bar) // 4
    assert not bar.strip("━╸").strip()
