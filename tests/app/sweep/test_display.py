"""The display of a sweep follows from the messages of its processes."""

import io
import itertools
import re

import pytest

from fedssl.app.sweep.display import Lines, make_display
from fedssl.app.sweep.messages import Began, Ended, Failed, RoundDone, Said
from fedssl.app.sweep.points import Point, names_of_rows
from fedssl.core.console import Console
from tests.helpers import small_experiment
from tests.views.screen.terminal import Terminal

NAN = float("nan")
M = ["supervised", "temporal_ensembling"]
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
    rows = [line.split()[1:-1] for line in last.splitlines() if "│ seed " in line]
    assert rows == [
        ["seed", "0", "2/10", "50.0", "%", "75.0", "%"],
        ["seed", "1", "5/10", "-", "-"],
    ]


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (40, 24)])
def test_running_rows_keep_what_differs_and_break_no_word(size):
    """At 40 columns a name may take two lines; the screen is gone when the sweep is over, as a Ctrl-C leaves it."""
    keys = ("federation.partition.alpha", "method.kind")
    varied = itertools.product(("0.2", "5"), M, (0, 1))
    points = [
        Point(small_experiment(seed=seed), tuple(zip(keys, values, strict=True)), frozenset(keys))
        for *values, seed in varied
    ]
    terminal = Terminal(*size)
    with make_display(terminal.console(), points, 0, plain=False) as display:
        for point in points[::2]:
            display.show(point, Began(10))
            display.show(point, RoundDone(1, 1.0, 1.0))
        display._display._live.refresh()
        shown = terminal.shown
        terminal.write("^C")
    text = " ".join(" ".join(line.strip("│").split()) for line in shown)
    assert "…" not in text
    heads = {"running", "round", "EMA"} | ({"pseudo-labels", "right"} if size[0] > 40 else set())
    assert heads <= set(text.split())
    rows = [line for line in shown if "1/10" in line]
    assert len(rows) == 4
    whole = [f"alpha {alpha}, {method}, seed 0" for alpha in (0.2, 5) for method in M]
    if size[0] > 40:
        assert all(name in row for name, row in zip(whole, rows, strict=True))
    assert sorted(re.findall(r"temporal_ensembling|supervised", text)) == sorted(M * 2)
    assert terminal.shown == []


def test_a_line_is_broken_between_words_only():
    terminal = Terminal(40, 24)
    path = "runs/a/" + "b" * 50
    terminal.console().tell(f"accuracy 90.0 % of the last ten evaluations: {path}")
    assert terminal.shown[:2] == ["accuracy 90.0 % of the last ten", "evaluations:"]
    assert "".join(terminal.shown[2:]) == path
    file = io.StringIO()
    Console(file=file, width=40).tell("accuracy 90.0 % of the last ten evaluations")
    assert file.getvalue() == "accuracy 90.0 % of the last ten evaluations\n"


def test_rows_have_names_that_are_different():
    assert names_of_rows(POINTS) == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert names_of_rows(POINTS[:1]) == ["small"]
    others = [Point(small_experiment(name=name), (), frozenset()) for name in "ab"]
    assert names_of_rows(others) == ["a", "b"]
    texts = [
        Point(small_experiment(), (("data.root", text),), frozenset(["data.root"]))
        for text in ("1", '"1"')
    ]
    assert names_of_rows(texts) == [point.name for point in texts]


def test_a_display_that_fails_ends_no_sweep(caplog, monkeypatch):
    def fail(self, point, message):
        raise ValueError("no room")

    monkeypatch.setattr(Lines, "show", fail)
    text = shown(plain=False)
    assert caplog.text.count("no longer shown: ValueError: no room") == 1
    assert text.count("\x1b[?25h") == text.count("\x1b[?25l") > 0  # the cursor is seen again
