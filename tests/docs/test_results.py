"""The tables of README and docs/results.md, and the evidence of `fedssl advise`, are those of the recorded files of results."""

import tarfile
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.study import collect, curves, orderings, records
from benchmarks.study import run as study_run
from benchmarks.study.evidence import FILE, make_evidence
from benchmarks.study.pages import PAGES, TABLE, all_tables, renewed
from benchmarks.study.plan import (
    BOUND,
    DATA,
    EXPERIMENTS,
    LABELS_ONLY,
    RESULTS,
    STUDIES,
    cells,
    claims,
    lines_of,
    units,
)
from benchmarks.study.records import RECORDS, summaries
from fedssl import Experiment, Run, run
from fedssl.record.resume import settings_that_change_results
from fedssl.views.comparison.comparison import Comparison

PAIR = "orderings/at_server/fixmatch_received > orderings/at_server/fixmatch"
MEASURED = [data for data in DATA if (RESULTS / f"{data}_lines.csv").exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_of_the_files(page):
    assert renewed(page, all_tables()) == page.read_text(encoding="utf-8"), (
        "python -m benchmarks.study.pages renews the tables"
    )


def test_every_table_is_on_a_page():
    shown = {match[1] for page in PAGES for match in TABLE.finditer(page.read_text("utf-8"))}
    assert shown == set(all_tables())


def test_the_evidence_is_that_of_the_files():
    assert make_evidence().to_csv(index=False) == FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("data", MEASURED)
def test_the_lines_are_means_of_the_runs(data):
    lines, runs = (pd.read_csv(RESULTS / f"{data}_{name}.csv") for name in ("lines", "runs"))
    keys = ["protocol", "skew", "line"]
    means = runs.groupby(keys)["ema_accuracy"].agg(["mean", "size"])
    found = lines.set_index(keys).sort_index()
    assert (found["ema_accuracy"] - means["mean"]).abs().max() < 1e-5
    assert (found["seeds"] == means["size"]).all()
    for cell, rows in found.groupby(keys[:2]):
        only = means.loc[cell].loc[[n for n in LABELS_ONLY if (*cell, n) in found.index]]
        only = only[only["size"] == only["size"].max()]
        assert set(rows["baseline"]) == {only["mean"].idxmax()}
    baseline = found[found.index.get_level_values("line") == found["baseline"]]
    baseline = baseline["ema_accuracy"].droplevel("line")
    bound = found.xs(BOUND, level="line")["ema_accuracy"]
    closed = (found["ema_accuracy"] - baseline) / (bound - baseline)
    assert (found["gap_closed"] - closed).abs().max() < 1e-3


@pytest.mark.parametrize("data", MEASURED)
def test_the_runs_have_the_results_of_their_records(data):
    """Every row with a kept record, to the last digit that is written."""
    table = pd.read_csv(RESULTS / f"{data}_runs.csv").set_index(
        ["protocol", "skew", "line", "seed"]
    )
    own = {
        unit.name: unit for unit in units(data, int(table.index.get_level_values("seed").max()) + 1)
    }
    measured = set(table.index.droplevel(["line", "seed"]))
    kept = [summaries(archive) for archive in sorted((RECORDS / data).glob("*.tar.xz"))]
    assert kept
    for name, summary in (item for found in kept for item in found.items()):
        unit = own[name]
        rows = [
            place
            for place in cells(data)
            if unit.protocol in (place[0], "all") and unit.skew == place[1]
            if place in measured
        ]
        assert rows, name
        for protocol, skew in rows:
            row = table.loc[protocol, skew, unit.line, unit.seed]
            assert row["ema_accuracy"] == pytest.approx(summary["ema_accuracy"], abs=1e-6)
            assert row["server_accuracy"] == pytest.approx(summary["server_accuracy"], abs=1e-6)


@pytest.mark.parametrize("data", STUDIES)
def test_a_kept_run_has_the_settings_of_its_line(data, tmp_path):
    """Otherwise the seeds of a line would be those of two lines, and its row would be wrong."""
    planned = {unit.name: unit for unit in units(data, 9)}
    for archive in sorted((RECORDS / data).glob("*.tar.xz")):
        with tarfile.open(archive) as file:
            members = [each for each in file if Path(each.name).name == "experiment.toml"]
            file.extractall(tmp_path, members, filter="data")
        for path in tmp_path.rglob("experiment.toml"):
            unit = planned[str(path.parent.relative_to(tmp_path))]
            recorded = Experiment.read(path)
            expected = Experiment.load(unit.file, unit.settings)
            assert recorded.name == expected.name
            trained, planned_so = map(settings_that_change_results, (recorded, expected))
            if recorded.data.kind != expected.data.kind:  # the same images in another layout
                del trained["data"], planned_so["data"]
            assert trained == planned_so, unit.name
            path.unlink()


def test_a_kept_run_comes_back_and_is_compared_without_its_images(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records")
    unit = next(iter(units("digits", 1)))
    run(
        Experiment.load(unit.file, [*unit.settings, "rounds=1"]),
        out=tmp_path / "runs" / unit.name,
        progress=False,
    )
    records.keep("digits", tmp_path / "runs", 1)
    (archive,) = (tmp_path / "records").rglob("*.tar.xz")
    first = archive.read_bytes()
    records.keep("digits", tmp_path / "runs", 1)  # nothing is new
    records.restore("digits", tmp_path / "back", 1)
    path, back = (tmp_path / folder / unit.name for folder in ("runs", "back"))
    assert archive.read_bytes() == first
    assert {each.name for each in path.iterdir()} - {each.name for each in back.iterdir()} == {
        "model.safetensors", "ema.safetensors", "clients.csv", "report.html",
    }  # fmt: skip
    assert all(each.read_bytes() == (path / each.name).read_bytes() for each in back.iterdir())
    monkeypatch.setattr(Run, "federation", property(lambda self: pytest.fail("images are read")))
    both = Comparison.of_runs([path, back], force=True)
    assert both.runs["ema_accuracy"].nunique() == 1
    (back / "rounds.csv").write_text("mine")
    records.restore("digits", tmp_path / "back", 1)  # what is there stays
    assert (back / "rounds.csv").read_text() == "mine"


def test_the_rows_of_cells_that_are_not_measured_stay(tmp_path, monkeypatch):
    """Whole files first, then one cell again: its rows are new ones, in their place, and those of the other cell are as they were."""
    monkeypatch.setattr(collect, "RESULTS", tmp_path / "results")
    for unit in units("digits", 1):
        if unit.line in ("supervised", BOUND):
            run(
                Experiment.load(unit.file, [*unit.settings, "rounds=1"]),
                out=tmp_path / unit.name,
                progress=False,
            )
    with pytest.raises(SystemExit, match="has no finished run with labels only"):
        collect.collect("digits", tmp_path / "nowhere", 1)
    collect.collect("digits", tmp_path, 1)
    files = {path: path.read_text() for path in (tmp_path / "results").iterdir()}
    for path, text in files.items():
        head, *rows = text.splitlines()
        assert rows, path
        place = {"protocol": ["C", "A"], "skew": "iid"}
        table = pd.read_csv(path).drop(columns=["protocol", "skew"])
        other = table.head(1).merge(pd.DataFrame(place), how="cross")[head.split(",")]
        stale = table.assign(protocol="B", skew="0.5").iloc[::-1]
        pd.concat([other, stale])[head.split(",")].to_csv(path, index=False)
    monkeypatch.setattr(collect, "cells", lambda data: [("A", "iid"), ("B", "0.5"), ("C", "iid")])
    before = {path: path.read_bytes() for path in files}
    with pytest.raises(SystemExit, match=r"2 runs .* the first is C/iid/supervised/0\. "):
        collect.collect("digits", tmp_path, 1)  # the other cells have no runs here
    assert {path: path.read_bytes() for path in files} == before
    collect.collect("digits", tmp_path, 1, [("B", "0.5")])
    for path, text in files.items():
        found = pd.read_csv(path, dtype={"skew": str})
        assert list(dict.fromkeys(found["protocol"])) == ["A", "B", "C"], path
        assert found[found["protocol"] == "B"].to_csv(index=False) == text
        assert found["protocol"].value_counts()[["A", "C"]].tolist() == [1, 1]


@pytest.mark.parametrize("data", STUDIES)
def test_every_run_of_the_plan_has_a_name_and_settings_of_its_own(data):
    planned = list(units(data, 2))
    assert len({unit.name for unit in planned}) == len(planned)
    assert len({(unit.file, *unit.settings) for unit in planned}) == len(planned)
    assert all(unit.title for unit in planned)


FASHION = sorted((EXPERIMENTS / "fashion_mnist").glob("*.toml"))


@pytest.mark.parametrize("path", FASHION, ids=lambda path: path.stem)
def test_an_experiment_on_fashion_mnist_is_a_line_of_the_study(path):
    """So that its row of docs/results.md is what a run of the file gives."""
    (unit,) = (
        unit
        for unit in units("fashion", 1)
        if (unit.protocol, unit.skew, unit.line) == ("B", "iid", path.stem)
    )
    own, studied = Experiment.load(path, ["name=same"]), Experiment.load(unit.file, unit.settings)
    found = settings_that_change_results(own)
    assert found == settings_that_change_results(studied) | {"name": "same"}


@pytest.mark.parametrize("data", DATA)
def test_every_cell_has_lines_with_labels_only_and_a_bound(data):
    for protocol, _ in cells(data):
        assert lines_of(data, protocol)[-1] == BOUND
        assert set(LABELS_ONLY[:2]) <= set(lines_of(data, protocol))


@pytest.mark.parametrize("option", ["--cells", "--lines"])
def test_a_cell_or_a_line_that_is_not_planned_is_refused(option, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["run", "fashion", "--list", option, "nothing"])
    with pytest.raises(SystemExit) as end:
        study_run.main()
    assert end.value.code == 2
    assert "there is no nothing; there are " in capsys.readouterr().err


def test_every_run_of_an_ordering_is_an_experiment():
    for unit in units("orderings", 1):
        found = Experiment.load(unit.file, unit.settings)
        assert (found.name, found.seed, found.engine.kind) == (unit.line, 0, "serial")


def test_every_pair_of_an_ordering_is_planned():
    pairs = [pair for claim in claims() for pair in claim["pairs"]]
    assert len(set(pairs)) == len(pairs)
    for first, second in map(orderings.lines_of_pair, pairs):
        assert first != second
    used = {unit.name for pair in pairs for unit in orderings.lines_of_pair(pair)}
    assert {unit.name for unit in units("orderings", 1)} <= used


def test_an_ordering_is_the_difference_of_the_seeds_that_both_lines_have(tmp_path, monkeypatch):
    """Four seeds of the first line, three of the second one; the pairs without runs are no rows."""
    monkeypatch.setattr(orderings, "FILE", tmp_path / "orderings.csv")
    first, second = orderings.lines_of_pair(PAIR)
    for unit, seeds in ((first, 4), (second, 3)):
        for seed in range(seeds):
            own = replace(unit, seed=seed)
            run(
                Experiment.load(own.file, [*own.settings, "rounds=1", "train.local_steps=1"]),
                out=tmp_path / own.name,
                progress=False,
            )
    found = orderings.measure(tmp_path, 5)
    (row,) = found.to_dict("records")
    accuracies = [
        [Run(tmp_path / replace(unit, seed=seed).name).summary["ema_accuracy"] for seed in range(3)]
        for unit in (first, second)
    ]
    gains = [above - below for above, below in zip(*accuracies, strict=True)]
    assert (row["pair"], row["seeds"]) == (PAIR, 3)
    assert row["difference"] == pytest.approx(sum(gains) / 3)
    found.assign(low=0.01, high=0.02).to_csv(orderings.FILE, index=False)
    assert orderings.table().splitlines()[-1].endswith("(+1.0 to +2.0) | above |")


def test_orderings_are_not_lost_where_their_runs_are_not_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(orderings, "FILE", tmp_path / "orderings.csv")
    monkeypatch.setattr("sys.argv", ["orderings", "--out", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="three seeds of no pair"):
        orderings.main()
    pd.DataFrame([{"pair": PAIR}]).to_csv(orderings.FILE, index=False)
    before = orderings.FILE.read_bytes()
    with pytest.raises(SystemExit, match=r"fixmatch_received.*records restore"):
        orderings.main()
    assert orderings.FILE.read_bytes() == before


def test_the_orderings_are_those_of_the_kept_runs():
    """Every pair whose runs of all seeds are kept, to the last digit that is written."""
    archives = sorted(RECORDS.rglob("*.tar.xz"))
    kept = {name: found for archive in archives for name, found in summaries(archive).items()}
    checked = 0
    for row in pd.read_csv(orderings.FILE).to_dict("records"):
        gains = []
        for seed in range(kept_seeds(kept, row["pair"])):
            above, below = (
                kept[replace(unit, seed=seed).name]["ema_accuracy"]
                for unit in orderings.lines_of_pair(row["pair"])
            )
            gains.append(above - below)
        if len(gains) == row["seeds"]:
            assert row["difference"] == pytest.approx(sum(gains) / len(gains), abs=1e-5)
            checked += 1
    assert checked


def kept_seeds(kept, pair):
    """Return of how many seeds, from 0 on, both lines of a pair are kept."""
    both = orderings.lines_of_pair(pair)
    return next(n for n in range(99) if any(replace(u, seed=n).name not in kept for u in both))


def test_the_curves_are_those_of_the_cells_that_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "RESULTS", tmp_path)
    values = {"ema_accuracy": 0.5, "ema_accuracy_low": 0.4, "ema_accuracy_high": 0.6, "seeds": 3}
    fallen = {"ema_accuracy": 0.1, "ema_accuracy_low": 0.1, "ema_accuracy_high": 0.1}
    rows = [
        {"protocol": protocol, "skew": skew, "line": line, "round": number, **values}
        | (fallen if line == "fixmatch" else {})
        for protocol, skew in [("A", "iid"), ("B", "iid"), ("B", "0.1")]
        for line in curves.DRAWN
        for number in (30, 60)
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "fashion_curves.csv", index=False)
    figure = curves.picture("fashion")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "labels at the server (A), IID", "labels at all clients (B), IID", "labels at all clients (B), Dir(.1)",
    ]  # fmt: skip
    assert all(axes.get_ylim() == (40, 52) for axes in shown), "a line that fell hides no other"
    assert all(len(axes.lines) == len(curves.DRAWN) for axes in shown)
    assert list(shown[0].lines[0].get_ydata()) == [50, 50]
