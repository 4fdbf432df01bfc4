"""Comparisons: the runs that belong together, the names of these groups, and the runs that are left out."""

import pytest

from fedssl.core.errors import InputError
from fedssl.views.comparison.gather import gather
from fedssl.views.comparison.labels import in_short, label_lines, short_keys
from tests.views.comparison.records import record


def lines_of(*paths):
    return {line.label: sorted(line.runs) for line in gather(paths).lines}


def test_seeds_of_the_same_settings_are_one_line(tmp_path):
    record(tmp_path / "deep" / "er" / "b0", [0.5], name="b")
    record(tmp_path / "a" / "0", [0.5], name="a")
    record(tmp_path / "a" / "1", [0.5], name="a", seed=1)
    assert lines_of(tmp_path) == {"a": [0, 1], "b": [0]}
    assert list(lines_of(tmp_path / "deep", tmp_path)) == ["b", "a"]  # the first is the baseline


def test_the_engine_and_the_record_make_no_line_of_their_own(tmp_path):
    record(tmp_path / "0", [0.5], engine={"kind": "serial"})
    record(tmp_path / "1", [0.5], seed=1, engine={"kind": "ray"}, record={"report": False})
    assert lines_of(tmp_path) == {"small": [0, 1]}


def test_where_the_data_lies_makes_no_line_of_its_own(tmp_path):
    data = {"source": "mnist", "train_size": 300}
    record(tmp_path / "0", [0.5], data={**data, "root": "/here"})
    record(tmp_path / "1", [0.5], seed=1, data={**data, "root": "/there", "download": True})
    record(tmp_path / "2", [0.5], seed=2, data={**data, "train_size": 200})
    lines = lines_of(tmp_path)
    assert sorted(lines.values()) == [[0, 1], [2]]
    assert not any("data.root" in label for label in lines)


def test_other_settings_are_another_line_named_by_what_differs(tmp_path):
    for seed in (0, 1):
        for threshold in (0.3, 0.9):
            method = {"threshold": threshold}
            record(tmp_path / f"{threshold}-{seed}", [0.5], seed=seed, method=method)
    record(tmp_path / "other", [0.5], name="other")
    assert lines_of(tmp_path) == {
        "small (threshold 0.3)": [0, 1],
        "small (threshold 0.9)": [0, 1],
        "other": [0],
    }


def test_labels_name_no_setting_that_the_kind_implies():
    lines = [
        {"name": '"a"', "method.kind": '"fixmatch"', "method.threshold": "0.9", "train.lr": "0.1"},
        {"name": '"a"', "method.kind": '"vat"', "method.xi": "1.0", "train.lr": "0.1"},
    ]
    assert label_lines(lines) == ["fixmatch", "vat"]
    lines.append(lines[0] | {"method.threshold": "0.5"})
    assert label_lines(lines) == ["fixmatch, threshold 0.9", "vat", "fixmatch, threshold 0.5"]


def test_labels_tell_a_setting_from_none():
    lines = [
        {"name": '"a"', "train.clip": "1.0"},
        {"name": '"a"'},
        {"name": '"b"', "train.clip": "2.0"},
    ]
    assert label_lines(lines) == ["a (clip 1)", "a", "b"]
    section = [{"name": '"a"', "federation.features.kind": '"rotation"'}, {"name": '"a"'}]
    assert label_lines(section) == ["a (rotation)", "a"]


def test_a_label_has_as_much_of_a_settings_name_as_tells_it_from_the_others():
    keys = ("federation.partition.alpha", "strategy.alpha", "rounds", "data.source", "method.kind")
    assert short_keys(keys) == {
        "federation.partition.alpha": "partition.alpha",
        "strategy.alpha": "strategy.alpha",
        "rounds": "rounds",
        "data.source": "",
        "method.kind": "",
    }
    both = {"method.kind": "method", "server.method.kind": "server.method"}
    assert short_keys(both) == both


def test_labels_are_different_where_their_short_forms_are_not():
    lines = [{"name": '"a"', "method.x": value} for value in ("1", '"1"')]
    assert label_lines(lines) == ["method.x=1", 'method.x="1"']


def test_a_value_is_written_as_people_write_it():
    settings = {"a.on": "true", "b.lr": "0.05", "c.alpha": "5.0", "d.root": '"x y"', "e.n": "null"}
    assert in_short(settings) == "on true, lr 0.05, alpha 5, root x y, n unset"


def test_a_run_that_is_named_twice_counts_once(tmp_path, monkeypatch):
    record(tmp_path / "a" / "0", [0.5])
    monkeypatch.chdir(tmp_path)
    found = gather([tmp_path / "a" / "0", tmp_path, tmp_path.__class__("a")])
    assert [list(line.runs) for line in found.lines] == [[0]]
    assert found.notes == ()


def test_of_the_same_settings_and_seed_the_newest_counts(tmp_path):
    new = record(tmp_path / "a", [0.9], ended="2026-02-01T00:00:00")
    old = record(tmp_path / "b", [0.5], ended="2026-01-31T23:59:59", engine={"kind": "ray"})
    found = gather([tmp_path])
    assert found.lines[0].runs[0].path == new
    assert found.notes == (f"left out because newer runs have the same settings and seed: {old}",)


def test_unfinished_runs_in_a_folder_are_left_out_and_named(tmp_path):
    record(tmp_path / "a", [0.5])
    killed = [
        record(tmp_path / f"killed{seed}", [0.5], seed=seed, finished=False) for seed in (1, 2)
    ]
    (tmp_path / "never-began").mkdir()
    found = gather([tmp_path])
    assert [list(line.runs) for line in found.lines] == [[0]]
    assert found.notes == (f"left out because they are not finished: {killed[0]}, {killed[1]}",)
    with pytest.raises(InputError, match=r"killed1: is not finished; go on with it: .*--resume"):
        gather([tmp_path / "a", killed[0]])


def test_nothing_to_compare_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"lost: no such folder"):
        gather([tmp_path / "lost"])
    with pytest.raises(InputError, match=r"holds no finished run"):
        gather([tmp_path])
    record(tmp_path / "killed", [0.5], finished=False)
    with pytest.raises(InputError, match=r"holds no finished run"):
        gather([tmp_path])
