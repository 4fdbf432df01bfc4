"""`fedssl compare` as a person uses it: tables, files and refusals; `fedssl run` ends with the same table."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.table import Table

from fedssl.app.commands.compare import Measure, show_comparison
from fedssl.core.console import Console
from fedssl.metrics.balanced import MEASURES
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.latex import latex_of
from fedssl.views.comparison.table import tables_of
from fedssl.views.pictures import paper_plot
from fedssl.views.pictures.plots import comparison_figure, save_figure
from fedssl.views.reports.comparison_report import comparison_page
from fedssl.views.text_table import NOTE_WIDTH, OnScreen, TextTable
from tests.helpers import fedssl, refused, small_toml
from tests.views.comparison.records import Spent, record

TIMED = Spent(virtual_seconds=60.0)


@pytest.fixture
def runs(tmp_path):
    """Two lines over three seeds: the second is better on two of them, and worse on one."""
    courses = {
        "base": ([0.4, 0.5], [0.5, 0.7], [0.5, 0.6]),
        "ours": ([0.7, 0.8], [0.8, 0.9], [0.2, 0.5]),
    }
    for name, seeds in courses.items():
        for seed, course in enumerate(seeds):
            record(tmp_path / "runs" / name / str(seed), course, name=name, seed=seed)
    return tmp_path / "runs"


def text_of(comparison, width=80):
    console = Console(file=io.StringIO(), width=width)
    for table in map(OnScreen, tables_of(comparison)):
        console.print(table)
    return console.file.getvalue()


def test_tables_files_and_a_picture(runs, tmp_path):
    result = fedssl("compare", runs, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("name")
    assert lines.index.tolist() == ["base", "ours"]
    assert lines.ema_accuracy.tolist() == pytest.approx([0.6, 2.2 / 3])
    assert lines.gain["ours"] == pytest.approx(np.mean([0.3, 0.2, -0.1]))
    assert lines.reached.tolist() == [2, 2]
    assert lines.rounds_to_reach.isna().all()  # for the third seed never did
    curves = pd.read_csv(tmp_path / "out" / "comparison_curves.csv")
    assert curves.groupby("label").size().to_dict() == {"base": 2, "ours": 2}
    assert curves.ema_accuracy_low.tolist() == pytest.approx([0.4, 0.5, 0.2, 0.5])
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for words in ("60.0 ± 10.0", "+13.3", "-10.0", "+30.0", "2 of 3"):
        assert words in result.output


def test_what_is_written_is_to_the_bit_what_was_computed(runs, tmp_path):
    comparison = Comparison.of_runs([runs], force=False)
    show_comparison(comparison, tmp_path / "out", Console(file=io.StringIO()))
    read = pd.read_csv(tmp_path / "out" / "comparison.csv", dtype=str)
    assert list(read) == list(comparison.lines)
    for column in comparison.lines.drop(columns=["name", "label", "judged_by", "baseline"]):
        np.testing.assert_array_equal(read[column].astype(float), comparison.lines[column])


def test_the_first_line_is_the_baseline(runs):
    comparison = Comparison.of_runs([runs / "ours", runs], force=False)
    assert comparison.baselines == ["ours"]
    assert comparison.target == pytest.approx(2.2 / 3)
    assert comparison.lines.gain.tolist() == pytest.approx([0, -0.4 / 3])


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_the_screen_and_lose_nothing(tmp_path, width):
    """With a long name, intervals as wide as three seeds make them, and virtual time."""
    expensive = Spent(12345.6, 98_765_432_100, 98_765_432_100, virtual_seconds=1_234_567.8)
    for seed, accuracies in ((0, (0.9, 0.2)), (1, (0.1, 0.8)), (2, (0.1, 0.8))):
        for threshold, accuracy in zip((0.25, 0.75), accuracies, strict=True):
            path = tmp_path / f"{threshold}-{seed}"
            method = {"threshold": threshold}
            record(path, [accuracy] * 2, spent=expensive, seed=seed, name="x" * 40, method=method)
    record(tmp_path / "y", [0.5] * 2, name="y")
    text = text_of(Comparison.of_runs([tmp_path], force=False, measures=tuple(MEASURES)), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for words in (
        "x" * 40,
        "-177.5 to +224.1",
        "2,469,135.6",
        "(threshold",
        "197,530.9",
        "24,691.2",
    ):
        assert words in text


@pytest.mark.parametrize("width", [40, 80])
def test_no_table_breaks_a_word_that_fits(tmp_path, width):
    for alpha in (0.2, 1.0, 5.0):
        for method in ("supervised", "fixmatch"):
            dirichlet = {"partition": {"kind": "dirichlet", "alpha": alpha}}
            path = tmp_path / f"{alpha}-{method}"
            record(
                path, [0.5, 0.6], federation=dirichlet, method={"kind": method}, partition="same"
            )
    comparison = Comparison.of_runs([tmp_path], force=False)
    lines = text_of(comparison, width).splitlines()
    assert max(map(len, lines)) <= width
    shown = set(" ".join(lines).split())
    for table in tables_of(comparison):
        texts = (table.title, *table.columns, *(cell for row in table.rows for cell in row))
        assert {word for text in texts for word in text.split()} <= shown


@pytest.mark.parametrize(("length", "width"), [(84, 80), (84, 70), (36, 40), (84, 40)])
@pytest.mark.parametrize("sign", ["-", ""])
def test_a_long_name_is_broken_and_takes_no_figure_away(runs, length, width, sign):
    """A lecturer's name of 84 characters left a table of names alone; one of 36 stood the figures on end at 40 columns."""
    name = (f"digits{sign}" * length)[:length]
    for seed, accuracy in enumerate((0.5, 0.7, 0.6)):
        record(runs / "long" / str(seed), [accuracy] * 2, name=name, seed=seed)
    comparison = Comparison.of_runs([runs], force=False)
    lines = text_of(comparison, width).splitlines()
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    for table in tables_of(comparison):
        figures = (*table.columns, *(cell for row in table.rows for cell in row[1:]))
        assert {word for text in figures for word in text.split()} <= words
    assert name in "".join(line[: width // 2 + 1].strip() for line in lines)


def test_columns_that_have_no_room_stand_in_a_table_below(runs):
    grid = tables_of(Comparison.of_runs([runs], force=False))[0]
    console = Console(file=io.StringIO(), width=40)
    shown = list(OnScreen(grid).__rich_console__(console, console.options))
    tables = [each for each in shown if isinstance(each, Table)]
    assert shown[1:-1] == tables
    assert len(tables) > 1
    heads = [[str(column.header) for column in table.columns] for table in tables]
    assert {own[0] for own in heads} == {grid.columns[0]}
    assert [name for own in heads for name in own[1:]] == list(grid.columns[1:])


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_the_note_of_a_narrow_table_is_not_as_narrow(width):
    """Below a table of nineteen places, a note would take a dozen lines."""
    grid = TextTable("a title", ("first", "second"), [("a", "b")], "word " * 40)
    console = Console(file=io.StringIO(), width=width)
    console.print(OnScreen(grid))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, (line.rstrip() for line in lines))) <= width
    assert sum("word" in line for line in lines) <= -(-40 * 5 // (min(width, NOTE_WIDTH) - 5))


def test_every_column_is_explained(runs):
    known = {"EMA": "(EMA)", "accuracy": "global model", "seeds": "over seeds"}
    for table in tables_of(Comparison.of_runs([runs], force=False, measures=tuple(MEASURES))):
        for column in table.columns[1:]:
            assert known.get(column, column) in f"{table.title} {table.note}"


def test_the_table_has_a_column_for_each_setting_that_was_varied(tmp_path):
    """With its whole name and its plain value, so that a reader of the file can group by it."""
    for alpha in (0.2, 5.0):
        for method in ({"kind": "supervised"}, {"kind": "fixmatch", "threshold": 0.9}):
            dirichlet = {"partition": {"kind": "dirichlet", "alpha": alpha}}
            path = tmp_path / "runs" / f"{alpha}-{method['kind']}"
            record(path, [0.5], federation=dirichlet, method=method, partition="same")
    result = fedssl("compare", tmp_path / "runs", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    lines = pd.read_csv(tmp_path / "out" / "comparison.csv").set_index("label")
    assert lines["federation.partition.alpha"].to_dict() == {
        "alpha 0.2, fixmatch": 0.2,
        "alpha 0.2, supervised": 0.2,
        "alpha 5, fixmatch": 5.0,
        "alpha 5, supervised": 5.0,
    }
    assert lines["method.kind"].tolist() == ["fixmatch", "supervised"] * 2
    assert "method.threshold" not in lines  # the kind implies it


def test_a_line_without_a_setting_has_an_empty_cell(tmp_path):
    own = ({"train": {"rates": {"body": 0.5}}}, {"train": {"rates": {}}}, {"name": "c"})
    for number, settings in enumerate(own):
        record(tmp_path / str(number), [0.5], **settings)
    lines = Comparison.of_runs([tmp_path], force=False).lines
    assert lines["train.rates.body"].tolist()[0] == 0.5
    assert lines["train.rates.body"].isna().tolist() == [False, True, True]


def test_settings_that_differ_are_shown_and_training_is_warned_of(tmp_path):
    """As a newcomer did it: two files with other learning rates and rounds, and a gain that says nothing of the methods."""
    slow = {"train": {"lr": 0.01}, "method": {"kind": "supervised"}}
    record(tmp_path / "a", [0.5], name="a", **slow)
    record(tmp_path / "b", [0.9] * 2, name="b", method={"kind": "fixmatch"}, train={"lr": 0.05})
    found = Comparison.of_runs([tmp_path], force=False)
    assert found.differences["train.lr"] == {"0.01": ["a"], "0.05": ["b"]}
    assert {"rounds", "train.lr"} <= found.differences.keys()
    assert "method.kind" not in found.differences
    assert any(
        "lines differ in their training" in note and "train.lr" in note for note in found.notes
    )
    text = text_of(found)
    assert "train.lr = 0.05" in text


def test_a_sweep_over_the_learning_rate_is_no_reason_to_warn(tmp_path):
    for lr in (0.01, 0.02, 0.05):
        record(tmp_path / str(lr), [0.5], train={"lr": lr})
    found = Comparison.of_runs([tmp_path], force=False)
    assert list(found.differences) == ["train.lr"]
    assert found.notes == ()


def test_the_share_of_a_gap_that_a_line_closes(tmp_path):
    """From 50 % to 90 %: 60 % has come a quarter of the way, and 40 % has gone back as far."""
    for name, accuracy in (("few", 0.5), ("ours", 0.6), ("worse", 0.4), ("all", 0.9)):
        record(tmp_path / name, [accuracy], name=name)
    paths = [tmp_path / "few", tmp_path]
    found = Comparison.of_runs(paths, force=False, bound="all")
    closed = dict(zip(found.lines.label, found.lines.gap_closed, strict=True))
    assert closed == pytest.approx({"few": 0, "ours": 0.25, "worse": -0.25, "all": 1})
    assert "gap %" in text_of(found)
    assert "gap_closed" not in Comparison.of_runs(paths, force=False).lines
    lower = Comparison.of_runs(paths, force=False, bound="worse")
    assert lower.lines.gap_closed.isna().all()
    assert "no share of a gap: worse is not above few" in lower.notes
    refused(fedssl("compare", tmp_path, "--bound", "none"), "--bound", "few", "worse")


@pytest.mark.parametrize(("accuracies", "is_gap"), [((0.5, 0.9), False), ((0.9, 0.91), True)])
def test_a_bound_that_cannot_be_told_from_the_baseline_leaves_no_gap(tmp_path, accuracies, is_gap):
    """The bound is above the baseline on average; its seeds differ by much more than that, or by less."""
    for seed in range(3):
        for name, accuracy in (("few", 0.6), ("ours", 0.8), ("all", accuracies[seed % 2])):
            record(tmp_path / name / str(seed), [accuracy], name=name, seed=seed)
    paths = [tmp_path / "few", tmp_path]
    found = Comparison.of_runs(paths, force=False, bound="all")
    assert found.lines.gap_closed.notna().all() == is_gap
    said = [note for note in found.notes if "gap" in note]
    assert said == ([] if is_gap else ["no share of a gap: all and few cannot be told apart"])


def test_measures_that_were_asked_for_have_a_table(runs, tmp_path):
    """The second line's macro F1 is .9 for each seed; the first line's is .5, .6 and .7."""
    for path in runs.rglob("summary.json"):
        summary, seed = json.loads(path.read_text()), int(path.parent.name)
        is_first = path.parent.parent.name == "base"
        summary["ema_macro_f1"] = 0.5 + seed / 10 if is_first else 0.9
        path.write_text(json.dumps(summary))
    found = Comparison.of_runs([runs], force=False, measures=["macro_f1"])
    assert found.lines.ema_macro_f1.tolist() == pytest.approx([0.6, 0.9])
    assert found.lines.ema_macro_f1_std.tolist() == pytest.approx([0.1, 0.0])
    assert found.lines.ema_macro_f1_gain.tolist() == pytest.approx([0.0, 0.3])
    assert found.lines.ema_auroc.isna().all()
    text = text_of(found)
    assert "the same weight for every class" in " ".join(text.split())
    assert "60.0 ± 10.0" in text
    assert "+30.0" in text
    asked = ("--measure", "macro_f1", "--measure", "balanced_accuracy", "--measure", "auroc")
    result = fedssl("compare", runs, "--out", tmp_path / "out", *asked)
    assert result.exit_code == 0, result.output
    for words in ("macro F1", "bal. acc.", "AUROC", "base: no balanced accuracy, AUROC: a run of"):
        assert words in result.output
    assert "bal. acc." in (tmp_path / "out" / "comparison.html").read_text()
    assert "the same weight" not in fedssl("compare", runs, "--out", tmp_path / "b").output
    wrong = fedssl("compare", runs, "--measure", "f2")
    assert wrong.exit_code == 2
    assert "macro_f1" in wrong.output


def test_the_names_of_measures_are_one_list():
    assert list(Measure) == list(MEASURES)


def test_one_seed_has_no_interval_and_says_that_it_tells_little(tmp_path):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.7], name="b")
    text = text_of(Comparison.of_runs([tmp_path], force=False), width=200)
    assert "one seed tells little" in " ".join(text.split())
    assert "+20.0" in text
    assert "95 %" not in text
    assert "nan" not in text


def test_two_seeds_have_no_interval_and_show_their_gains(tmp_path):
    """As strangers found it, a half-width of 111 points; with three seeds there is one, and its note explains it."""
    for seed, (base, ours) in enumerate(((0.9, 0.8), (0.7, 0.9), (0.8, 0.8))):
        record(tmp_path / f"a{seed}", [base], name="a", seed=seed)
        record(tmp_path / f"b{seed}", [ours], name="b", seed=seed)
    paths = [tmp_path / f"{name}{seed}" for name in "ab" for seed in (0, 1)]
    tables = {}
    for count, chosen in ((2, paths), (3, [tmp_path])):
        found = Comparison.of_runs(chosen, force=False)
        (tables[count],) = [t for t in tables_of(found) if t.title == "what the seeds say"]
    assert tables[2].columns == ("experiment", "pairs", "worst", "best")
    assert tables[2].rows[1] == ["b", "2", "-10.0", "+20.0"]
    assert "an interval needs three seeds" in tables[2].note
    assert tables[3].columns[1:4] == ("accuracy ±", "EMA ±", "gain")
    assert "an interval needs three seeds" in tables[3].note


def without_truth(path):
    """Take from a recorded run what nobody knows if its unlabeled images truly have no label."""
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "pseudo_label_accuracy": None}))
    rounds = pd.read_csv(path / "rounds.csv").assign(pseudo_label_accuracy=np.nan)
    rounds.to_csv(path / "rounds.csv", index=False)


def test_where_nobody_knows_how_many_pseudo_labels_are_right_it_says_so(tmp_path):
    """In the table, on the page and in the picture; a line without pseudo-labels has a dash all the same."""
    record(tmp_path / "a", [0.5, 0.6], name="a")
    known = Comparison.of_runs([tmp_path], force=False)
    assert "?" not in tables_of(known)[0].note
    assert known.plot().axes[1].get_title() == "pseudo-labels: right (line), used (dots)"
    without_truth(tmp_path / "a")
    none = record(tmp_path / "b", [0.5, 0.6], name="b")
    summary = json.loads((none / "summary.json").read_text())
    unused = {"pseudo_label_accuracy": None, "pseudo_label_coverage": None}
    (none / "summary.json").write_text(json.dumps({**summary, **unused}))
    rounds = pd.read_csv(none / "rounds.csv").assign(**dict.fromkeys(unused, np.nan))
    rounds.to_csv(none / "rounds.csv", index=False)
    found = Comparison.of_runs([tmp_path], force=False)
    table = tables_of(found)[0]
    assert [row[table.columns.index("right")] for row in table.rows] == ["?", "-"]
    assert (
        "?: nobody knows how many are right, because the unlabeled images have no true label"
        in table.note
    )
    used = next(chart for chart in comparison_page(found).charts if chart.name == "used")
    assert "How many pseudo-labels are right is not known" in used.note
    assert (
        found.plot().axes[1].get_title() == "pseudo-labels used (how many are right is not known)"
    )


def test_a_legend_lists_the_lines_that_are_drawn(tmp_path):
    """A line without pseudo-labels keeps its color in the charts of pseudo-labels, and is not in their legends."""
    record(tmp_path / "a", [0.5, 0.6], name="a")
    path = record(tmp_path / "b", [0.5, 0.6], name="b")
    columns = ("pseudo_label_accuracy", "pseudo_label_coverage")
    rounds = pd.read_csv(path / "rounds.csv").assign(**dict.fromkeys(columns, np.nan))
    rounds.to_csv(path / "rounds.csv", index=False)
    charts = {
        c.name: c for c in comparison_page(Comparison.of_runs([tmp_path], force=False)).charts
    }
    for name, listed in (("by-round", ["a", "b"]), ("used", ["a"]), ("right", ["a"])):
        color = charts[name].spec["layer"][-1]["encoding"]["color"]
        assert color["scale"]["domain"] == ["a", "b"]
        assert color["legend"]["values"] == listed


def test_a_picture_of_one_round_has_no_tick_between_rounds(tmp_path):
    for name, rounds in (("one", 1), ("two", 2)):
        record(tmp_path / name, [0.5] * rounds, name=name)
        for axes in Comparison.of_runs([tmp_path / name], force=False).plot().axes:
            low, high = axes.get_xlim()
            ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
            assert ticks == list(range(1, rounds + 1))


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_a_picture_of_equal_shares_has_an_axis_of_shares(tmp_path, accuracy):
    record(tmp_path / "a", [accuracy] * 2)
    (axes, _) = Comparison.of_runs([tmp_path], force=False).plot().axes
    assert axes.get_ylim() == (0, 100)


@pytest.mark.parametrize(("gain", "shown"), [(0.0004, "0.0"), (-0.0004, "0.0"), (0.01, "+1.0")])
def test_no_gain_has_no_sign(tmp_path, gain, shown):
    record(tmp_path / "a", [0.5], name="a")
    record(tmp_path / "b", [0.5 + gain], name="b")
    table = tables_of(Comparison.of_runs([tmp_path], force=False))[0]
    assert table.rows[1][table.columns.index("gain")] == shown


def test_virtual_time_is_shown_where_there_is_any(tmp_path):
    record(tmp_path / "a", [0.5, 0.5], name="a")
    assert "virtual" not in text_of(Comparison.of_runs([tmp_path], force=False))
    record(tmp_path / "b", [0.1, 0.7], name="b", spent=TIMED)
    comparison = Comparison.of_runs([tmp_path], force=False)
    assert comparison.lines.virtual_seconds.tolist() == pytest.approx([np.nan, 120], nan_ok=True)
    assert comparison.lines.virtual_seconds_to_reach[1] == 120
    assert comparison.lines.clients_lost.tolist() == [4, 4]
    assert "virtual s" in text_of(comparison)
    assert "lost" in text_of(comparison)


def costs_of(comparison):
    """Return the table of costs: a row of cells by heading for each line."""
    table = tables_of(comparison)[-1]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows], table.note


@pytest.mark.parametrize("virtual_seconds", [np.nan, 60.0])
def test_inactive_clients_are_shown_where_there_are_any(tmp_path, virtual_seconds):
    """Two rounds, in each of which a client failed, three had nothing to train on, and two were lost."""
    record(tmp_path / "a", [0.5, 0.5], name="a")
    rows, note = costs_of(Comparison.of_runs([tmp_path], force=False))
    assert "inactive" not in rows[0]
    assert "inactive" not in note
    spent = Spent(clients_inactive=3, virtual_seconds=virtual_seconds)
    record(tmp_path / "b", [0.5, 0.5], name="b", spent=spent)
    comparison = Comparison.of_runs([tmp_path], force=False)
    (first, second), note = costs_of(comparison)
    assert (first["failed"], first["inactive"]) == ("2", "0")
    assert (second["failed"], second["inactive"]) == ("2", "6")
    assert "inactive: clients that had nothing to train on" in note
    assert second.get("lost") == ("4" if comparison.is_timed else None)
    assert comparison.is_timed == (virtual_seconds == 60)


def test_a_record_from_before_clients_could_be_inactive_has_none(tmp_path):
    path = record(tmp_path / "a", [0.5, 0.5], name="a")
    summary = json.loads((path / "summary.json").read_text())
    del summary["clients_inactive"]
    (path / "summary.json").write_text(json.dumps(summary))
    rounds = pd.read_csv(path / "rounds.csv").drop(columns="clients_inactive")
    rounds.to_csv(path / "rounds.csv", index=False)
    comparison = Comparison.of_runs([path], force=False)
    assert comparison.lines.clients_inactive.tolist() == [0]
    assert comparison.lines.clients_failed.tolist() == [2]


def test_other_splits_are_refused_and_with_force_noted(runs, tmp_path):
    record(tmp_path / "other", [0.5], name="other", partition="another")
    asked = ("compare", runs, tmp_path / "other", "--out", tmp_path / "out")
    refused(fedssl(*asked), "other: different split than base for seed 0", "--force")
    assert not (tmp_path / "out").exists()
    result = fedssl(*asked, "--force")
    assert result.exit_code == 0, result.output
    assert "note: other: different split than base for seed 0" in result.output


def test_what_is_not_there_or_cannot_be_written_is_refused(runs, tmp_path):
    refused(fedssl("compare", tmp_path / "lost"), "no such folder")
    record(tmp_path / "killed", [0.5], finished=False)
    refused(fedssl("compare", tmp_path / "killed"), "is not finished")
    (tmp_path / "blocked").write_text("a file, not a folder")
    refused(fedssl("compare", runs, "--out", tmp_path / "blocked"), "--out: cannot write to")


def test_a_fresh_folder_by_default(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fedssl("compare", "runs").exit_code == 0
    (folder,) = (tmp_path / "runs").glob("comparison-*")
    written = sorted(path.name for path in folder.iterdir())
    assert written == [
        "comparison.csv",
        "comparison.html",
        "comparison.png",
        "comparison_curves.csv",
        "comparison_tests.csv",
    ]
    assert fedssl("compare", "runs").exit_code == 0  # what was written is no run


def test_runs_that_have_just_ended_are_compared_the_same_way_and_never_refused(tmp_path):
    skewed = {"federation": {"partition": {"kind": "dirichlet", "alpha": 0.1}}}
    files = [
        small_toml(tmp_path / "a.toml", name="zero"),
        small_toml(tmp_path / "b.toml", name="a-skewed", **skewed),
    ]
    result = fedssl("run", *files, "--seeds", 2, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "note: a-skewed: different split than zero for seeds 0, 1" in result.output
    assert "federation.partition.alpha is 0.1 and not 0.5" in result.output
    table = pd.read_csv(tmp_path / "out" / "comparison.csv")
    assert table.name.tolist() == ["zero", "a-skewed"]  # as they were given
    again = [tmp_path / "out" / f"zero-seed{seed}" for seed in (0, 1)]
    asked = ("compare", *again, tmp_path / "out", "--out", tmp_path / "again")
    refused(fedssl(*asked), "different split")
    assert fedssl(*asked, "--force").exit_code == 0
    assert pd.read_csv(tmp_path / "again" / "comparison.csv").equals(table)


def test_a_table_and_figures_for_a_paper(runs, tmp_path):
    for folder, ratio, accuracy in (("a", 1, 0.5), ("b", 2, 0.4)):
        path, method = tmp_path / "odd" / folder, {"unlabeled_ratio": ratio}
        record(path, [accuracy], name="odd_one", method=method)
    out = tmp_path / "out"
    result = fedssl("compare", tmp_path / "odd", "--out", out, "--latex")
    assert result.exit_code == 0, result.output
    assert "comparison.tex" in result.output
    text = (out / "comparison.tex").read_text()
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[:2] == [r"\begin{tabular}{lrrrrrrr}", r"\toprule"]
    label = r"unlabeled\_ratio 1"
    assert body[4].startswith(label + " & 1 & 40.0 & 50.0 &  & ")
    assert "& $-$10.0 &" in body[5]
    assert (out / "comparison.pdf").read_bytes().startswith(b"%PDF")
    assert "unlabeled_ratio 1" in (out / "comparison.svg").read_text()
    several = latex_of(tables_of(Comparison.of_runs([runs], force=False))[0])
    assert r"$\pm$" in several
    assert "±" not in "".join(line for line in several.splitlines() if line[0] != "%")


LABELS = {
    "one short": ["a"],
    "four short": ["a", "b", "c", "d"],
    "six of medium length": [f"classes 2, fixmatch no. {i}" for i in range(6)],
    "three long": [f"classes_per_client 2, unlabeled_ratio {i}, mean_teacher" for i in range(3)],
    "wide letters": ["W" * 60, "M W " * 20],
    "crowded": [f"classes 2, a method with a name {i}" for i in range(12)],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("for_paper", [True, False])
def test_a_legend_is_inside_its_figure_and_leaves_room_for_curves(
    labels, for_paper, tmp_path, monkeypatch
):
    record(tmp_path / "a", [0.5, 0.6], name="a")
    one = Comparison.of_runs([tmp_path], force=False).curves
    one = one.assign(pseudo_label_accuracy=np.nan, pseudo_label_coverage=np.nan)
    curves = pd.concat([one.assign(label=label) for label in labels])
    saved = []
    if for_paper:
        monkeypatch.setattr(paper_plot, "save_figure", lambda figure, path: saved.append(figure))
        paper_plot.plot_for_paper(curves, [tmp_path / "a.svg"])
    else:
        saved.append(comparison_figure(curves, "title"))
    (figure,) = saved
    save_figure(figure, tmp_path / "a.png")
    (legend,), axes = figure.legends, figure.axes[0]
    box, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == len(labels)
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    inches = axes.get_window_extent().height / figure.dpi
    assert inches > (1.6 if for_paper else 2)
    assert axes.get_window_extent().width > 0.4 * whole.width
    if for_paper:
        assert figure.get_figwidth() == paper_plot.COLUMN


def test_a_picture_has_a_panel_of_pseudo_labels_only_if_there_are_any(tmp_path):
    record(tmp_path / "a", [0.5, 0.6], name="a")
    curves = Comparison.of_runs([tmp_path], force=False).curves
    save_figure(comparison_figure(curves, "t"), tmp_path / "both.png")
    none = curves.assign(pseudo_label_accuracy=np.nan, pseudo_label_coverage=np.nan)
    save_figure(comparison_figure(none, "t"), tmp_path / "one.png")
    both, one = (Image.open(tmp_path / f"{name}.png").width for name in ("both", "one"))
    assert one == pytest.approx(both / 2, abs=5)


def test_pictures_are_drawn(tmp_path):
    for name, spent in (("a", Spent()), ("b", TIMED)):
        for seed in (0, 1):
            course = [0.1 * seed, 0.5, 0.6]
            record(tmp_path / name / str(seed), course, name=name, seed=seed, spent=spent)
    for i in range(25):
        record(tmp_path / "many" / str(i), [0.1, 0.5], name=f"experiment-{i}")
    for name in ("a", "b", "many"):
        save_figure(
            Comparison.of_runs([tmp_path / name], force=False).plot(), tmp_path / f"{name}.png"
        )
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    heights = {name: Image.open(tmp_path / f"{name}.png").height for name in "ab"}
    assert heights["b"] > 1.5 * heights["a"]  # two more panels
