"""Lines that different judges measured are marked, and accuracies of different judges never share a curve."""

import dataclasses

import pandas as pd

from fedssl.record.lines import Table
from fedssl.record.rows import RoundRow
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.comparison.table import tables_of
from tests.views.comparison.records import record, rows_of

PROBE = "linear probe, 40 labels"


def test_a_line_of_another_judge_is_marked_and_noted(tmp_path):
    record(tmp_path / "a", [0.5, 0.6], name="ours")
    record(tmp_path / "b", [0.7, 0.8], name="theirs", facts={"judged_by": [PROBE]})
    comparison = Comparison.of_runs([tmp_path / "a", tmp_path / "b"], force=False)
    assert comparison.lines.judged_by.tolist() == ["classifier", PROBE]
    labels = [row[0] for row in tables_of(comparison)[0].rows]
    assert labels == ["ours", f"theirs ({PROBE})"]
    assert comparison.notes == (
        f"theirs: its accuracy is that of another judge ({PROBE}) than the accuracy of ours (classifier), so the two do not "
        "measure the same",
    )
    alone = Comparison.of_runs([tmp_path / "b"], force=False)
    assert alone.notes == ()


def test_rounds_of_another_judge_than_the_last_are_left_out(tmp_path):
    """A probe judges three rounds, and the classifier two more: the baseline's 60 % are reached by the classifier in round 5."""
    record(tmp_path / "base", [0.6] * 5, name="base")
    phases = [{"rounds": 3, "server": {"evaluator": "linear_probe"}}, {"rounds": 2}]
    path = tmp_path / "ours"
    record(path, [0.9, 0.9, 0.9, 0.3, 0.7], name="ours", facts={"judged_by": [PROBE, "classifier"]})
    text = (path / "experiment.toml").read_text()
    (path / "experiment.toml").write_text(_with_phases(text, phases))
    (path / "rounds.csv").unlink()
    table = Table(path / "rounds.csv", RoundRow)
    rows = rows_of([0.9, 0.9, 0.9, 0.3, 0.7])
    table.add([dataclasses.replace(row, phase=int(row.round > 3)) for row in rows])
    table.close()
    (path / "summary.json").write_text(
        (path / "summary.json").read_text().replace(PROBE, "classifier")
    )
    comparison = Comparison.of_runs([tmp_path / "base", path], force=False)
    ours = comparison.curves[comparison.curves["label"] == "ours"]
    assert ours.ema_accuracy.isna().tolist() == [True, True, True, False, False]
    assert comparison.lines.rounds_to_reach.tolist() == [1, 5]
    left_out = (
        f"ours: the accuracies of rounds with another judge than the last ({PROBE}) are left out"
    )
    assert left_out in comparison.notes


def _with_phases(text, phases):
    """Return an experiment's TOML with these phases in place of its rounds."""
    lines = [line for line in text.splitlines() if not line.startswith("rounds =")]
    for phase in phases:
        lines += ["[[phases]]", f"rounds = {phase['rounds']}"]
        if "server" in phase:
            lines.append(f"server = {{ evaluator = '{phase['server']['evaluator']}' }}")
    return "\n".join(lines) + "\n"


def test_a_record_from_before_judges_were_recorded_is_one_of_classifiers(tmp_path):
    path = record(tmp_path / "old", [0.5, 0.6], name="old")
    summary = (path / "summary.json").read_text()
    (path / "summary.json").write_text(summary.replace('  "judged_by": "classifier",\n', ""))
    comparison = Comparison.of_runs([path], force=False)
    assert comparison.lines.judged_by.tolist() == ["classifier"]
    assert pd.notna(comparison.curves.ema_accuracy).all()
