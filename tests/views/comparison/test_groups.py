"""Which line is measured against which: by data, by a named baseline, in a grid; and a grid as rows by columns."""

import io

import pandas as pd
import pytest

from fedssl.app.commands.compare import show_comparison
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.pivot import pivot_of
from fedssl.views.comparison.table import tables_of
from fedssl.views.text_table import OnScreen
from tests.helpers import fedssl
from tests.views.comparison.records import record

ACCURACIES = {
    (0.1, "supervised"): 0.5,
    (0.1, "fixmatch"): 0.6,
    (5.0, "supervised"): 0.7,
    (5.0, "fixmatch"): 0.73,
}
"""EMA accuracy by (alpha, method): far more is due to the skew than to the method."""


def dealt(alpha):
    return {"partition": {"kind": "dirichlet", "alpha": alpha}}


@pytest.fixture
def grid(tmp_path):
    """Two methods under two skews, one seed, as a sweep leaves them."""
    for number, ((alpha, kind), accuracy) in enumerate(ACCURACIES.items()):
        path = tmp_path / "grid" / f"{number}-{alpha}-{kind}"
        settings = {"federation": dealt(alpha), "method": {"kind": kind}}
        record(path, [accuracy] * 2, name="cells", partition=f"split of {alpha}", **settings)
    return tmp_path / "grid"


def gains(comparison):
    """Return the gain of each line over its baseline by (alpha, method), in points."""
    found = {}
    for group in comparison.groups:
        for line in group.lines:
            key = float(line.settings["federation.partition.alpha"]), line.settings["method.kind"]
            row = comparison.lines.set_index("label").loc[line.label]
            found[key[0], key[1].strip('"')] = round(row.gain * 100, 6), row.baseline
    return found


def test_in_a_grid_each_skew_has_its_own_baseline(grid):
    """By hand: +10 points under alpha .1, and +3 under alpha 5; measured against the first line of all, the latter would be +23."""
    comparison = Comparison.of_runs([grid], force=False)
    found = gains(comparison)
    assert found[0.1, "fixmatch"][0] == 10
    assert found[5.0, "fixmatch"][0] == 3
    assert found[5.0, "fixmatch"][1] == found[5.0, "supervised"][1]
    assert len(comparison.groups) == 2


def test_the_first_method_of_a_sweep_is_the_baseline_and_another_can_be_named(grid):
    comparison = Comparison.of_runs([grid], force=False, baseline="method.kind=fixmatch")
    found = gains(comparison)
    assert found[0.1, "supervised"][0] == -10
    assert found[5.0, "supervised"][0] == -3


def test_what_a_sweep_showed_compare_shows_without_force(grid, tmp_path):
    result = fedssl("compare", grid, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert set(table.baseline) == {label for label in table.label if "supervised" in label}


def test_force_compares_all_with_the_first(grid):
    comparison = Comparison.of_runs([grid], force=True, by_data=False)
    assert gains(comparison)[5.0, "fixmatch"][0] == pytest.approx(23)


def test_a_named_line_is_the_baseline_of_all(tmp_path):
    for name, accuracy in (("a", 0.5), ("b", 0.6), ("c", 0.4)):
        record(tmp_path / name, [accuracy] * 2, name=name)
    comparison = Comparison.of_runs([tmp_path], force=False, baseline="b")
    assert comparison.lines.label.tolist() == ["b", "a", "c"]
    assert comparison.lines.gain.tolist() == pytest.approx([0, -0.1, -0.2])


def test_settings_of_the_baselines_section_do_not_matter(tmp_path):
    """FixMatch has a threshold, supervised training has none: they are compared all the same, at the same learning rate."""
    for lr in (0.01, 0.05):
        record(tmp_path / f"{lr}-s", [0.5], method={"kind": "supervised"}, train={"lr": lr})
        for threshold in (0.8, 0.95):
            method = {"kind": "fixmatch", "threshold": threshold}
            path = tmp_path / f"{lr}-{threshold}"
            record(path, [0.5 + lr + threshold / 10], method=method, train={"lr": lr})
    comparison = Comparison.of_runs([tmp_path], force=False, baseline="method.kind=supervised")
    assert [len(group.lines) for group in comparison.groups] == [3, 3]
    for group in comparison.groups:
        assert len({line.settings["train.lr"] for line in group.lines}) == 1


def test_all_labels_join_the_only_group_with_their_images(tmp_path):
    """The bound has other labels than the lines whose gap it bounds."""
    for name, accuracy in (("few", 0.5), ("ours", 0.6)):
        record(tmp_path / name, [accuracy] * 2, name=name)
    labels = {"labels": {"kind": "every_client", "per_class": "all"}}
    record(tmp_path / "all", [0.7] * 2, name="all", federation=labels)
    comparison = Comparison.of_runs([tmp_path], force=False, baseline="few", bound="name=all")
    assert len(comparison.groups) == 1
    gap = comparison.lines.set_index("label").gap_closed
    assert gap["ours"] == pytest.approx(0.5)


def test_a_line_that_is_alone_has_no_gain_and_is_named(grid):
    record(grid / "other", [0.9] * 2, name="other", federation=dealt(1.0))
    comparison = Comparison.of_runs([grid], force=False, baseline="method.kind=supervised")
    row = comparison.lines.set_index("name").loc["other"]
    assert row.gain == 0
    assert row.baseline == "other"
    assert any("other" in note and "no gain" in note for note in comparison.notes)


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (
            "nothing",
            "no line is called 'nothing'; one of: 'alpha 0.1, fixmatch', 'alpha 0.1, supervised', 'alpha 5, fixmatch'",
        ),
        ("alpha 5, suprvised", "did you mean 'alpha 5, supervised'?"),
        ("method.kind=softmatch", "no line has method.kind=softmatch; did you mean 'fixmatch'?"),
        ("federation.partition.alpha=x", "federation.partition.alpha=x; one of: 0.1, 5"),
        (
            "method.kin=supervised",
            "no line has the setting method.kin; did you mean 'method.kind'?",
        ),
        ("method.kind=fixmatch,federation.partition.alpha=7", "no line has federation.partition"),
    ],
)
def test_a_baseline_that_no_line_is(grid, baseline, said):
    with pytest.raises(InputError) as error:
        Comparison.of_runs([grid], force=False, baseline=baseline)
    assert said in str(error.value)
    assert "--baseline" in str(error.value)


@pytest.mark.parametrize("option", ["baseline", "bound"])
def test_both_options_name_the_same_lines_in_the_same_order(grid, option):
    """The groups that a baseline makes have an order of their own, in which their bound must not be listed."""
    with pytest.raises(InputError) as error:
        Comparison.of_runs([grid], force=False, **{option: "nothing"})
    labels = str(error.value).split("'")[3::2]
    assert labels == sorted(labels)
    assert len(labels) == 4


@pytest.mark.parametrize("label", ["alpha 5, fixmatch", "fixmatch, alpha 5", "fixmatch,alpha 5"])
def test_the_parts_of_a_label_may_stand_in_any_order(grid, label):
    comparison = Comparison.of_runs([grid], force=True, baseline=label, bound=label)
    assert comparison.baselines == ["alpha 5, fixmatch"]
    assert comparison.lines.gap_closed.isna().all()  # the bound is the baseline


def test_a_name_before_settings_may_stand_before_them_in_any_order(grid):
    record(grid / "other", [0.9] * 2, name="other", federation=dealt(5.0), partition="split of 5.0")
    label = "cells (fixmatch, alpha 5)"
    comparison = Comparison.of_runs([grid], force=True, baseline=label)
    assert comparison.baselines == ["cells (alpha 5, fixmatch)"]


@pytest.mark.parametrize("value", ["5", "5.0"])
def test_a_value_is_written_as_labels_write_it_or_as_the_file_does(grid, value):
    baseline = f"federation.partition.alpha={value},method.kind=fixmatch"
    comparison = Comparison.of_runs([grid], force=True, baseline=baseline)
    assert "alpha 5, fixmatch" in comparison.baselines


def test_a_grid_is_shown_as_rows_by_columns(grid):
    comparison = Comparison.of_runs([grid], force=False)
    pivot = pivot_of(comparison.groups)
    assert pivot.factors == ("federation.partition.alpha",)
    assert pivot.columns == ("0.1", "5")
    (table,) = [t for t in tables_of(comparison) if t.title.startswith("EMA accuracy by")]
    cells = {row[0].split("=")[-1].strip(")"): row[1:] for row in table.rows}
    assert cells == {"supervised": ["50.0", "70.0"], "fixmatch": ["60.0", "73.0"]}


def test_a_grid_of_two_settings_is_shown_too(tmp_path):
    for lr in (0.01, 0.05):
        for threshold in (0.8, 0.95):
            settings = {"method": {"threshold": threshold}, "train": {"lr": lr}}
            record(tmp_path / f"{lr}-{threshold}", [lr + threshold / 10], **settings)
    pivot = pivot_of(Comparison.of_runs([tmp_path], force=False).groups)
    assert [len(row) for row in pivot.rows.values()] == [2, 2]


def test_lines_that_are_no_grid_have_no_pivot(tmp_path):
    for name in ("a", "b"):
        record(tmp_path / name, [0.5], name=name)
    assert pivot_of(Comparison.of_runs([tmp_path], force=False).groups) is None


def test_the_screen_marks_bases_and_letters_are_of_a_group(grid, tmp_path):
    console = Console(file=io.StringIO(), width=80)
    comparison = Comparison.of_runs([grid], force=True)
    show_comparison(comparison, tmp_path / "out", console)
    text = console.file.getvalue()
    assert text.count(" base ") >= 2
    assert "marked base" in " ".join(text.split())
    for table in map(OnScreen, tables_of(comparison)):
        console.print(table)
    assert max(map(len, console.file.getvalue().splitlines()[:30])) <= 80


def test_a_gain_of_a_measure_is_over_the_rows_own_base(grid):
    comparison = Comparison.of_runs([grid], force=False, measures=("macro_f1",))
    (table,) = [each for each in tables_of(comparison) if "macro F1" in each.columns]
    assert [row[2] for row in table.rows] == ["base", "-", "base", "-"]
    assert "marked base" in table.note
    assert "first row" not in table.note
