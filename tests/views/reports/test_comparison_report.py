"""The page of a comparison: its charts hold the comparison's numbers, and a browser draws them."""

import dataclasses

import numpy as np
import pytest

from fedssl.views.comparison.comparison import Comparison
from fedssl.views.reports.charts import COLORS, DASHES, palette
from fedssl.views.reports.comparison_report import MOST_POINTS, comparison_page, write_comparison
from tests.helpers import fedssl
from tests.views.comparison.records import Spent, record
from tests.views.reports.browser import DARK, LIGHT, PHONE, is_as_wide_as_the_screen, marks, opened

CHARTS = {
    "gain", "final", "by-round", "by-megabytes", "by-seconds", "by-virtual_seconds", "right", "used",
}  # fmt: skip


ONCE = Spent()


def write_runs(path, lines: int, seeds: int = 3, rounds: int = 40, spent: Spent = ONCE):
    """Write runs of several lines, each better than the last."""
    for line in range(lines):
        for seed in range(seeds):
            noise = np.random.default_rng([line, seed]).normal(0, 0.01, rounds)
            accuracies = 0.6 + 0.02 * line + 0.2 * np.linspace(0, 1, rounds) + noise
            name = f"method-{line:02d}"
            record(path / name / str(seed), accuracies.tolist(), name=name, seed=seed, spent=spent)
    return path


@pytest.fixture(scope="module")
def comparison(tmp_path_factory) -> Comparison:
    path = write_runs(tmp_path_factory.mktemp("runs"), 3, spent=Spent(virtual_seconds=3.0))
    return Comparison.of_runs([path], force=False)


def chart_of(page, name):
    return next(chart for chart in page.charts if chart.name == name)


def test_charts_hold_the_comparisons_numbers(comparison):
    page = comparison_page(comparison)
    assert {chart.name for chart in page.charts} == CHARTS
    final = chart_of(page, "final").rows
    lines = comparison.lines.to_dict("records")
    assert [row["line"] for row in final] == [line["label"] for line in lines]
    for row, line in zip(final, lines, strict=True):
        assert row["mean"] == pytest.approx(line["ema_accuracy"] * 100, abs=0.006)
        assert row["low"] == pytest.approx(line["ema_accuracy_ci95_low"] * 100, abs=0.006)
        assert row["high"] == pytest.approx(line["ema_accuracy_ci95_high"] * 100, abs=0.006)
    gain = chart_of(page, "gain").rows
    assert [row["mean"] for row in gain] == pytest.approx(
        [line["gain"] * 100 for line in lines[1:]], abs=0.006
    )
    by_round = chart_of(page, "by-round").rows
    assert len(by_round) == 3 * 40
    assert all(row["worst"] <= row["mean"] <= row["best"] for row in by_round)
    assert chart_of(page, "by-virtual_seconds").rows[39]["virtual seconds"] == pytest.approx(120)


def test_lines_differ_by_more_than_their_colors(comparison):
    for name in ("by-round", "right", "used"):
        line = chart_of(comparison_page(comparison), name).spec["layer"][1]["encoding"]
        dashes = line["strokeDash"]["scale"]["range"]
        assert len(set(map(tuple, dashes))) == len(line["strokeDash"]["scale"]["domain"]) == 3


def test_no_two_of_many_lines_look_alike():
    names = [f"line {number}" for number in range(len(COLORS) * len(DASHES))]
    looks = palette(names, names)
    colors, dashes = (looks[look]["scale"]["range"] for look in ("color", "strokeDash"))
    assert len({(color, *dash) for color, dash in zip(colors, dashes, strict=True)}) == len(names)


def test_on_a_phone_the_first_table_is_seen_before_the_notes(comparison, tmp_path):
    """Notes filled the first screen; they still stand above all other tables."""
    notes = tuple(f"note {number}" + ": there is something to know" * 9 for number in range(4))
    path = tmp_path / "comparison.html"
    write_comparison(dataclasses.replace(comparison, notes=notes), path)
    with opened(path, PHONE) as page:
        tops = [
            page.locator(place).first.evaluate("element => element.getBoundingClientRect().top")
            for place in ("section table", "p.warn", "section:nth-of-type(2)")
        ]
        assert tops == sorted(tops)
        assert tops[0] < PHONE["viewport"]["height"] / 2
        assert page.locator("main p.warn").all_inner_texts() == list(notes)


def test_a_browser_draws_it_and_asks_for_nothing(comparison, tmp_path):
    path = tmp_path / "comparison.html"
    write_comparison(comparison, path)
    with opened(path, LIGHT) as page:
        counts = marks(page)
        assert set(counts) == CHARTS
        assert counts["by-round"] >= 3 * (2 + 40)  # a line, a band and its points each
        assert counts["final"] >= 3 * (2 + 3)
        assert page.locator("section table").count() == 5
        page.locator("#by-round .mark-symbol path").nth(25).hover(force=True)
        tooltip = page.locator("#vg-tooltip-element.visible")
        tooltip.wait_for(timeout=5000)
        row = chart_of(comparison_page(comparison), "by-round").rows[25]
        for name, value in row.items():
            shown = value if isinstance(value, str) else f"{value:g}"
            assert f"{name} {shown}" in " ".join(tooltip.inner_text().split())
    with opened(path, DARK) as page:
        assert marks(page) == counts
    with opened(path, PHONE) as page:
        assert is_as_wide_as_the_screen(page)


def test_the_interval_of_few_seeds_ends_where_accuracies_end(tmp_path):
    """Three seeds that are far apart have an interval from below 0 to above 100 %."""
    for name, accuracies in (("one", (0.1, 0.9, 0.2)), ("two", (0.9, 0.1, 0.9))):
        for seed, accuracy in enumerate(accuracies):
            record(tmp_path / name / str(seed), [accuracy], name=name, seed=seed)
    page = comparison_page(Comparison.of_runs([tmp_path], force=False))
    for name, limits in (("final", [0, 100]), ("gain", [-100, 100])):
        chart = chart_of(page, name)
        assert chart.rows[0]["low"] < limits[0]
        assert chart.rows[0]["high"] > limits[1]
        axes = [layer["encoding"]["x"] for layer in chart.spec["layer"] if "x" in layer["encoding"]]
        assert [axis["scale"]["domain"] for axis in axes if "scale" in axis] == [limits] * 3


def test_two_seeds_are_drawn_without_an_interval(tmp_path):
    comparison = Comparison.of_runs([write_runs(tmp_path, 2, seeds=2)], force=False)
    for name in ("gain", "final"):
        chart = chart_of(comparison_page(comparison), name)
        assert {row["low"] for row in chart.rows} == {None}
        assert "95 %" not in chart.note
        assert "An interval of the mean needs three seeds." in chart.note


def test_the_chart_of_time_says_that_it_leaves_out_the_start(comparison):
    page = comparison_page(comparison)
    assert "start of the workers" in chart_of(page, "by-seconds").note
    assert "start of the workers" not in chart_of(page, "by-megabytes").note


def test_many_lines_stay_small(tmp_path):
    """Thirteen methods, three seeds, a thousand rounds."""
    comparison = Comparison.of_runs([write_runs(tmp_path / "runs", 13, rounds=1000)], force=False)
    path = tmp_path / "comparison.html"
    write_comparison(comparison, path)
    assert path.stat().st_size < 4e6
    rows = chart_of(comparison_page(comparison), "by-round").rows
    assert len(rows) <= 13 * MOST_POINTS
    assert {row["round"] for row in rows if row["line"] == "method-00"} >= {1000}


def test_of_one_run_there_is_no_gain_to_draw(tmp_path):
    comparison = Comparison.of_runs([write_runs(tmp_path, 1, seeds=1)], force=False)
    page = comparison_page(comparison)
    assert "gain" not in {chart.name for chart in page.charts}
    assert page.title == "1 experiment, 1 run"


def test_a_page_says_the_one_name_that_its_lines_have(tmp_path):
    for threshold in (0.3, 0.9):
        method = {"threshold": threshold}
        record(tmp_path / "one" / str(threshold), [0.5], name="cells", method=method)
    page = comparison_page(Comparison.of_runs([tmp_path / "one"], force=False))
    assert page.title == "cells: 2 experiments, 2 runs"
    record(tmp_path / "other", [0.5], name="other")
    page = comparison_page(Comparison.of_runs([tmp_path], force=False))
    assert page.title == "3 experiments, 3 runs"


def test_the_command_writes_it(tmp_path):
    runs = write_runs(tmp_path / "runs", 2)
    result = fedssl("compare", runs, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"page: {tmp_path / 'out' / 'comparison.html'}" in result.output.replace("\n", "")
    assert (tmp_path / "out" / "comparison.html").exists()
