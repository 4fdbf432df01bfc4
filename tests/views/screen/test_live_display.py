"""The live screen of a run, as it looks on terminals of several sizes."""

import dataclasses

import pytest

from fedssl.record.global_model import GlobalModel
from fedssl.record.rows import Failure, RoundEnd
from fedssl.views.screen.display import right_and_used, sparkline
from fedssl.views.screen.live_display import FREE_LINE, LiveDisplay
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
    assert len(terminal.shown) == terminal.height - 1  # and the line where the cursor waits
    shown = rounds_in(terminal.shown)
    assert shown == list(range(61 - len(shown), 61))
    assert len(shown) >= terminal.height - 10


NAN = float("nan")


@pytest.mark.parametrize(
    ("right", "used", "line"),
    [
        (0.9, 0.5, "90.0 % right, 50.0 % used"),
        (NAN, 0.5, "unknown how many right, 50.0 % used"),
        (NAN, 0.0, "- right, 0.0 % used"),
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
    assert len(terminal.shown) == 23
    assert sum("client 1: RuntimeError" in line for line in terminal.shown) == 3


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
    assert len(display._console.render_lines(display._screen())) == 20


def test_the_free_line_is_a_line():
    assert len(Terminal(10, 5).console().render_lines(FREE_LINE)) == 1
