"""Remarks of a run that went wrong; a healthy run and a short run have none."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl import run
from fedssl.record.global_model import GlobalModel
from fedssl.record.remarks import FEWEST_ROUNDS, most_frequent_share, remark_on
from fedssl.record.resume import outcome_of
from fedssl.record.rows import NAN, Outcome, RoundRow, summarize
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.screen.display import closing_line
from tests.helpers import small_experiment
from tests.views.comparison.records import record


def rows(*accuracies, loss=0.5, coverage=NAN):
    return tuple(
        RoundRow(i, 0, "fixmatch", 1.0, a, loss, a, loss, 0.1, NAN, coverage, 1, 1, 5, 0)
        for i, a in enumerate(accuracies, 1)
    )


def test_a_collapsed_run_says_so():
    said = remark_on(rows(0.6, 0.7, 0.7, 0.5, 0.35), 0.35, "test")
    assert said == (
        "The model learned nothing, or lost it: after round 5 it is right on 35.0 % of test images, "
        "and naming the most frequent class alone is right on 35.0 %."
    )


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 3e5])
def test_a_diverged_run_says_so(loss):
    assert "The model diverged" in remark_on(rows(*[0.9] * 5, loss=loss), 0.1, "test")


def test_a_run_that_used_no_pseudo_label_says_so():
    said = remark_on(rows(*[0.9] * 6, coverage=0.0), 0.1, "test")
    assert said == "No pseudo-label was used in any of 6 rounds."
    mixed = (*rows(*[0.9] * 6, coverage=0.0), *rows(0.9, coverage=0.001))
    assert remark_on(mixed, 0.1, "test") == ""


def test_a_run_in_which_nobody_trained_says_so_however_short_it_is():
    idle = tuple(dataclasses.replace(r, clients_ok=0, clients_inactive=2) for r in rows(0.9, 0.9))
    assert remark_on(idle, 0.1, "test").startswith("No client trained in any of 2 rounds")
    assert remark_on((*idle, *rows(0.9)), 0.1, "test") == ""


@given(
    st.lists(st.floats(0.36, 1), max_size=12),
    st.floats(0, 49),
    st.sampled_from([NAN, 0.01, 1.0]),
)
def test_a_healthy_run_says_nothing(accuracies, loss, coverage):
    assert remark_on(rows(*accuracies, loss=loss, coverage=coverage), 0.35, "test") == ""


@given(st.lists(st.floats(0, 1), max_size=FEWEST_ROUNDS - 1))
def test_a_short_run_is_not_judged(accuracies):
    assert remark_on(rows(*accuracies, loss=NAN, coverage=0.0), 0.9, "test") == ""


def test_rounds_without_an_evaluation_and_unknown_shares_say_nothing():
    assert remark_on(rows(*[NAN] * 9), 0.9, "test") == ""
    assert remark_on(rows(*[0.1] * 9), NAN, "test") == ""
    assert np.isnan(most_frequent_share(np.full(3, -1)))
    assert most_frequent_share(np.array([0, 1, 1, -1])) == pytest.approx(2 / 3)


def test_the_last_line_the_summary_and_a_comparison_say_it(tmp_path):
    experiment = small_experiment(rounds=5)
    outcome = Outcome(GlobalModel(), rows(*[0.1] * 5), 1.0, most_frequent=0.2)
    remark = summarize(experiment, outcome)["remark"]
    assert remark
    assert closing_line(experiment, outcome).endswith(f". {remark}")
    path = record(tmp_path / "run", [0.5] * 5)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "remark": remark}))
    assert any(remark in note for note in Comparison.of_runs([path], force=False).notes)
    del summary["remark"]  # as an older version wrote it
    (path / "summary.json").write_text(json.dumps(summary))
    assert Comparison.of_runs([path], force=False).notes == ()


def test_a_run_that_cannot_learn_says_so_in_its_record(tmp_path):
    """A learning rate too small to matter leaves the initial model; the share is that of the test images."""
    experiment = small_experiment(rounds=FEWEST_ROUNDS, train={"lr": 1e-12, "optimizer": "sgd"})
    done = run(experiment, out=tmp_path / "run", progress=False)
    labels = done.federation.held_out.labels
    assert done.summary["most_frequent_class"] == np.bincount(labels).max() / len(labels)
    last = done.round_rows[-1].server_accuracy
    assert bool(done.summary["remark"]) == (last <= done.summary["most_frequent_class"])
    again = outcome_of(tmp_path / "run")
    assert summarize(experiment, dataclasses.replace(again))["remark"] == done.summary["remark"]
