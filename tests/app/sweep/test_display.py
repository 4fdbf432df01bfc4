"""The display of a sweep follows from the messages of its processes."""

import io
import re

import pytest

from fedssl.app.sweep.display import Lines, make_display
from fedssl.app.sweep.messages import Began, Ended, Failed, RoundDone, Said
from fedssl.app.sweep.points import Point
from fedssl.core.console import Console
from tests.helpers import small_experiment

NAN = float("nan")
POINTS = [Point(small_experiment(seed=seed, rounds=10), (), frozenset()) for seed in range(4)]
SAID = [
    (0, Began(10)),
    (1, Began(10)),
    (1, Began(10, 4)),  # it goes on
    (0, RoundDone(1, 0.5, 0.75)),
    (0, RoundDone(2, NAN, NAN)),  # not evaluated
    (1, Said("the checkpoint of round 5 is damaged")),
    (1, RoundDone(5, NAN, NAN)),
    (2, Failed("Traceback\nMemoryError: too much\n")),
    (3, Began(10)),
    *((3, RoundDone(round, 0.9, 1.0)) for round in range(1, 11)),
    (3, Ended("small seed 3: accuracy 90.0 %")),
]


def shown(*, plain: bool) -> str:
    """Return all that was written for a terminal, erased or not."""
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=90, height=40)
    with make_display(console, POINTS, 2, plain=plain) as display:
        for number, message in SAID:
            display.show(POINTS[number], message)
    return text.getvalue()


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("plain", [False, True])
def test_what_came_of_runs_stays(plain):
    text = shown(plain=plain)
    lines = without_codes(text).splitlines()
    assert "small/seed1: the checkpoint of round 5 is damaged" in lines
    assert "[3/6] small/seed2 failed: MemoryError: too much" in lines
    assert "[4/6] small seed 3: accuracy 90.0 %" in lines
    assert ("\x1b[" in text) != plain


def test_the_panel_counts_runs_and_the_rounds_that_are_left_to_run():
    last = without_codes(shown(plain=False)).rpartition("╭")[2]
    assert "3 of 6 runs done, 1 failed, 2 left" in last
    # Of 40 rounds, four were done before and ten are nobody's any more.
    assert "13/26" in last
    rows = [line.split()[1:-1] for line in last.splitlines() if "small/" in line]
    assert rows == [
        ["small/seed0", "2/10", "50.0", "%", "75.0", "%"],
        ["small/seed1", "5/10", "-", "-"],
    ]


def test_a_display_that_fails_ends_no_sweep(caplog, monkeypatch):
    def fail(self, point, message):
        raise ValueError("no room")

    monkeypatch.setattr(Lines, "show", fail)
    text = shown(plain=False)
    assert caplog.text.count("no longer shown: ValueError: no room") == 1
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") > 0  # the cursor is seen again
