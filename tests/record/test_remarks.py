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
from fedssl.record.room import Room, room_of
from fedssl.record.rows import NAN, Outcome, RoundRow, summarize
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.screen.display import closing_line
from tests.helpers import small_experiment
from tests.views.comparison.records import record

THRESHOLD = Room(has_threshold=True)


def rows(*accuracies, loss=0.5, coverage=NAN, right=NAN):
    return tuple(
        RoundRow(i, 0, "fixmatch", 1.0, a, loss, a, loss, 0.1, right, coverage, 1, 1, 5, 0)
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
    assert (
        said == "No pseudo-label was used in any of 6 rounds: try more rounds or more local steps."
    )
    known = remark_on(rows(*[0.9] * 6, coverage=0.0), 0.1, "test", room=THRESHOLD)
    assert "try a lower method.threshold" in known
    mixed = (*rows(*[0.9] * 6, coverage=0.0), *rows(0.9, coverage=0.001))
    assert remark_on(mixed, 0.1, "test") == ""


def test_hardly_any_pseudo_label():
    said = remark_on(rows(*[0.9] * 40, coverage=0.01, right=0.9), 0.1, "test", room=THRESHOLD)
    assert said == (
        "Hardly any pseudo-label was used (1.0 % of the unlabeled images in the last 10 rounds): try a lower method.threshold, "
        "more rounds or more local steps."
    )
    assert remark_on(rows(*[0.9] * 19, coverage=0.01, right=0.9), 0.1, "test") == ""


def test_most_pseudo_labels_were_wrong():
    said = remark_on(rows(*[0.9] * 40, coverage=0.7, right=0.27), 0.1, "test", room=THRESHOLD)
    assert said == (
        "Most pseudo-labels were wrong (in the last 10 rounds, 70 % of the unlabeled images had one, and 27 % of these were "
        "right): try a first phase of supervised training or a higher method.threshold."
    )
    assert "threshold" not in remark_on(rows(*[0.9] * 40, coverage=0.7, right=0.27), 0.1, "test")
    assert remark_on(rows(*[0.9] * 40, coverage=0.7, right=NAN), 0.1, "test") == ""


def test_an_accuracy_that_fell_names_when_it_was_best():
    said = remark_on(rows(*np.linspace(0.5, 0.8, 20), *np.linspace(0.8, 0.6, 20)), 0.1, "test")
    assert said.startswith("The accuracy on test images fell from 79.1 % about round 2")
    assert "to 62.1 %: try a lower train.lr or fewer local steps." in said


def test_an_accuracy_that_is_still_rising_wants_more_rounds():
    said = remark_on(rows(*np.linspace(0.3, 0.8, 40)), 0.1, "test")
    assert said == (
        "The accuracy was still rising at the end (its last 5 evaluations are 6.4 points above the 5 before): try more rounds."
    )
    assert remark_on(rows(*np.linspace(0.3, 0.8, 40)), 0.1, "test", is_whole=False) == ""
    assert remark_on(rows(*np.linspace(0.3, 0.8, 7)), 0.1, "test") == ""
    flat = 0.8 - 0.5 * np.exp(-np.arange(40) / 5)
    assert remark_on(rows(*flat), 0.1, "test") == ""
    levelled = [*np.linspace(0.3, 0.86, 100), *np.linspace(0.86, 0.94, 70), *[0.94] * 30]
    assert remark_on(rows(*levelled), 0.1, "test") == ""


def test_noise_is_neither_a_rise_nor_a_fall():
    """From one evaluation to the next, the accuracy jumps by .04; a rise of .02 in such a run is luck."""
    for seed in range(20):
        noisy = 0.8 + 0.04 * np.random.default_rng(seed).standard_normal(40)
        assert remark_on(rows(*noisy), 0.1, "test") == ""


def test_only_the_last_phase_is_judged_by_its_course():
    first = rows(*np.linspace(0.2, 0.9, 20))
    second = [dataclasses.replace(row, phase=1) for row in rows(*[0.5] * 20)]
    assert remark_on((*first, *second), 0.1, "test") == ""


def test_at_most_two_findings_are_told_and_a_failure_comes_first():
    bad = rows(*np.linspace(0.9, 0.1, 40), loss=3e5, coverage=0.7, right=0.2)
    said = remark_on(bad, 0.2, "test")
    assert said.startswith("The model diverged")
    assert "The model learned nothing" in said
    assert "pseudo-label" not in said


def test_a_run_in_which_nobody_trained_says_so_however_short_it_is():
    idle = tuple(dataclasses.replace(r, clients_ok=0, clients_inactive=2) for r in rows(0.9, 0.9))
    said = remark_on(idle, 0.1, "test")
    assert said.startswith("No client trained in any of 2 rounds")
    assert "threshold" not in said
    assert "a lower method.threshold" in remark_on(idle, 0.1, "test", room=THRESHOLD)
    assert remark_on((*idle, *rows(0.9)), 0.1, "test") == ""


@given(
    st.lists(st.floats(0.8, 0.81), max_size=40),
    st.floats(0, 49),
    st.sampled_from([NAN, 0.05, 1.0]),
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


def test_a_comparison_says_once_what_is_so_of_several_runs(tmp_path):
    """Of one run it also says the numbers."""
    said = "The clients pull apart (the accuracy jumps by {} points): try fewer local steps."
    other = "No pseudo-label named the class b (2) in the last 10 rounds."
    remarks = {
        ("a", 0): said.format(7),
        ("a", 1): said.format(9),
        ("b", 0): said.format(8),
        ("b", 1): other,
    }
    for (name, seed), remark in remarks.items():
        path = record(tmp_path / f"{name}{seed}", [0.5], name=name, seed=seed)
        summary = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps({**summary, "remark": remark}))
    assert Comparison.of_runs([tmp_path], force=False).notes == (
        "a seeds 0, 1; b seed 0: The clients pull apart: try fewer local steps.",
        f"b seed 1: {other}",
    )
    alone = Comparison.of_runs([tmp_path / "a0"], force=False)
    assert alone.notes == (f"a seed 0: {said.format(7)}",)


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


def labeled(count, has, **more):
    """Return rounds of which some have a client with labels."""
    return tuple(
        dataclasses.replace(row, num_labeled=40 * (i % count < has), **more)
        for i, row in enumerate(rows(*[0.9] * count))
    )


def test_labels_in_too_few_rounds():
    said = remark_on(labeled(40, 9), 0.1, "test")
    assert said.startswith("Clients with labels took part in 9 of 40 rounds")
    assert "federation.sample" in said
    assert remark_on(labeled(40, 20), 0.1, "test") == ""
    # Labels at the server: no client ever has one. An older record does not know.
    assert remark_on(labeled(40, 0), 0.1, "test") == ""
    assert remark_on(rows(*[0.9] * 40), 0.1, "test") == ""


def test_a_class_that_no_pseudo_label_names():
    known = [
        dataclasses.replace(row, classes_unnamed="1" if i != 35 else "")
        for i, row in enumerate(rows(*[0.9] * 40, coverage=0.5, right=0.9))
    ]
    said = remark_on(known, 0.1, "test", class_names=("zero", "one"))
    assert said.startswith("No pseudo-label named the class one in the last 10 rounds")
    assert "freematch" in said
    # Where the class is named in every second round, and where nothing says how classes are called.
    half = [dataclasses.replace(row, classes_unnamed="1" * (i % 2)) for i, row in enumerate(known)]
    assert remark_on(half, 0.1, "test", class_names=("zero", "one")) == ""
    assert remark_on(known, 0.1, "test") == ""


def apart(accuracies, **more):
    """Return rounds whose five clients' changes average to half of their length, which is a mean cosine of (5 / 4 - 1) / 4."""
    found = rows(*accuracies, **more)
    return [dataclasses.replace(row, update_norm=1.0, client_update_norm=2.0) for row in found]


def test_clients_that_pull_apart():
    """The accuracy jumps by 20 points, and the clients' changes are nearly at right angles."""
    jumping = apart([0.8, 0.6] * 20)
    said = remark_on(jumping, 0.1, "test")
    assert said == (
        "The clients pull apart (from one evaluation to the next the accuracy jumps by 20 points, and the changes of two clients "
        "have a mean cosine of 0.06, where 1 is the same direction): try a larger federation.sample, fewer local steps or strategy.kind = fedprox or scaffold."
    )
    together = [dataclasses.replace(row, update_norm=1.9) for row in jumping]
    assert remark_on(together, 0.1, "test") == ""
    steady = [dataclasses.replace(row, server_accuracy=0.8) for row in jumping]
    assert remark_on(steady, 0.1, "test") == ""


@pytest.mark.parametrize("clients", [2, 4, 10])
def test_changes_at_right_angles_pull_apart_however_many_clients_a_round_has(clients):
    """Their mean has 1 / sqrt(m) of their length: .71 of it with two clients. Of one client there is nothing to say."""
    angles = {
        name: [
            dataclasses.replace(row, clients_ok=ok, update_norm=length, client_update_norm=1.0)
            for row in rows(*[0.8, 0.6] * 20)
        ]
        for name, ok, length in (
            ("right", clients, clients**-0.5),
            # Two changes have a cosine of .5, whatever their number.
            ("wide", clients, ((1 + 0.5 * (clients - 1)) / clients) ** 0.5),
            ("one client", 1, 0.3),
        )
    }
    assert "a mean cosine of 0.00" in remark_on(angles["right"], 0.1, "test")
    assert remark_on(angles["wide"], 0.1, "test") == ""
    assert remark_on(angles["one client"], 0.1, "test") == ""


def test_near_chance_the_loss_says_that_clients_pull_apart():
    """A guess among ten classes has a loss of 2.3. These models are more wrong, now by .7 and now by 2.7."""
    near_chance = apart([0.15, 0.25] * 20)
    losses = [3.0, 5.0] * 20
    jumping = [
        dataclasses.replace(row, server_loss=loss)
        for row, loss in zip(near_chance, losses, strict=True)
    ]
    said = remark_on(jumping, 0.1, "test")
    assert said.startswith(
        "The clients pull apart (from one evaluation to the next the loss on test images jumps by 2.0, and"
    )
    steady = [dataclasses.replace(row, server_loss=3.0) for row in near_chance]
    assert remark_on(steady, 0.1, "test") == ""
    better = [dataclasses.replace(row, server_loss=row.server_loss - 2.9) for row in jumping]
    assert remark_on(better, 0.1, "test") == ""
    assert remark_on(jumping, NAN, "test") == remark_on(near_chance, NAN, "test")
    damaged = [dataclasses.replace(jumping[25], server_loss=float("inf"))]
    assert remark_on([*jumping[:25], *damaged, *jumping[26:]], 0.1, "test") == ""


def test_a_moving_average_that_lags_behind_does_not_hide_a_rise():
    """The model gains 12 points from one quarter to the next, and its average 3."""
    model = [0.1] * 15 + [0.25, 0.35] * 3 + [0.4] + [0.4, 0.5] * 4
    average = np.linspace(0.1, 0.25, 30)
    found = [
        dataclasses.replace(row, ema_accuracy=float(own))
        for row, own in zip(apart(model), average, strict=True)
    ]
    assert "was still rising at the end" in remark_on(found, 0.1, "test")


def test_an_accuracy_that_still_rises_is_not_said_to_jump():
    """It jumps by 6 points beside a straight line from 35 to 67 %."""
    line = np.linspace(0.35, 0.67, 20) + 0.03 * (-1) ** np.arange(20)
    said = remark_on(apart(line), 0.1, "test")
    assert said.startswith("The accuracy was still rising at the end")
    assert said.endswith("try more rounds.")
    assert remark_on(apart(line), 0.1, "test", is_whole=False) == ""
    level = 0.5 + 0.03 * (-1) ** np.arange(20)
    # Where the line is level, the same jumps say that the clients pull apart.
    assert "pull apart" in remark_on(apart(level), 0.1, "test")


ADVICE = {
    "a larger federation.sample": ({"federation": {"clients": 3, "sample": 3}}, apart([0.8, 0.6] * 20)),
    "fewer local steps": ({"train": {"local_steps": 1}}, apart([0.8, 0.6] * 20)),
    "strategy.kind": ({"strategy": {"kind": "scaffold"}}, apart([0.8, 0.6] * 20)),
    "a lower method.threshold": ({"method": {"threshold": 0.0}}, rows(*[0.9] * 6, coverage=0.0)),
    "a higher method.threshold": ({"method": {"threshold": 1.0}}, rows(*[0.9] * 40, coverage=0.7, right=0.3)),
    "a first phase": (
        {"rounds": None, "phases": [{"rounds": 1, "method": {"kind": "supervised"}}, {"rounds": 1}]},
        rows(*[0.9] * 40, coverage=0.7, right=0.3),
    ),
    "more rounds": ({}, rows(*[0.9] * 6, coverage=0.0)),
    "a server that trains": (
        {},
        [dataclasses.replace(row, clients_ok=0, clients_inactive=2) for row in rows(0.9, 0.9)],
    ),
}  # fmt: skip
"""What is advised, settings with which nobody can follow it, and rounds after which it is advised with other settings."""


@pytest.mark.parametrize("advice", ADVICE)
def test_what_the_settings_rule_out_is_not_advised(advice):
    settings, found = ADVICE[advice]
    possible = remark_on(found, 0.1, "test", room=THRESHOLD)
    room = room_of(small_experiment(**settings), is_whole=advice != "more rounds")
    said = remark_on(found, 0.1, "test", room=room)
    assert advice in possible
    assert said.split(":")[0] == possible.split(":")[0]
    assert advice not in said
    assert ": try" in said


def test_advice_without_any_room_leaves_the_finding():
    settings = {"federation": {"clients": 3, "sample": 3}, "train": {"local_steps": 1}}
    room = room_of(small_experiment(strategy={"kind": "fedprox"}, **settings), is_whole=True)
    said = remark_on(apart([0.8, 0.6] * 20), 0.1, "test", room=room)
    assert said.startswith("The clients pull apart (")
    assert said.endswith("the same direction).")


def test_clients_that_count_epochs_are_advised_epochs():
    room = room_of(small_experiment(train={"local_steps": None, "local_epochs": 2}), is_whole=True)
    said = remark_on(apart([0.8, 0.6] * 20), 0.1, "test", room=room)
    assert "fewer local epochs" in said
    assert "local steps" not in said


def test_near_chance_an_accuracy_jumps_by_luck():
    """At 20 % of ten classes a model has come a ninth of the way; with two even classes, 60 % is near chance as well."""
    assert remark_on(apart([0.15, 0.25] * 20), 0.1, "test") == ""
    assert remark_on(apart([0.56, 0.64] * 20), 0.5, "test") == ""
    assert "pull apart" in remark_on(apart([0.56, 0.64] * 20), 0.1, "test")
    assert "pull apart" in remark_on(apart([0.56, 0.64] * 20), NAN, "test")


def test_a_steep_rise_is_no_jump():
    assert "pull apart" not in remark_on(apart(np.linspace(0.1, 0.9, 12)), 0.1, "test")


def test_findings_that_disagree_do_not_give_the_advice_on_which_they_do():
    said = remark_on(apart([0.8, 0.6] * 20, coverage=0.0), 0.1, "test", room=THRESHOLD)
    assert (
        "No pseudo-label was used in any of 40 rounds: try a lower method.threshold or more rounds."
        in said
    )
    assert "The clients pull apart" in said
    assert "local steps" not in said


@given(
    st.lists(st.floats(0, 1), min_size=8, max_size=40),
    st.sampled_from([NAN, 0.0, 0.01, 0.7]),
    st.sampled_from([NAN, 0.3, 1.0]),
    st.sampled_from([0.5, 3e5]),
    st.booleans(),
)
def test_no_remark_advises_more_and_less_of_the_same(accuracies, coverage, right, loss, threshold):
    found = apart(accuracies, coverage=coverage, right=right, loss=loss)
    said = remark_on(found, 0.3, "test", room=Room(has_threshold=threshold))
    for more, less in (
        ("more local steps", "fewer local steps"),
        ("a higher method.threshold", "a lower method.threshold"),
    ):
        assert not (more in said and less in said)
    assert "try ." not in said
    assert ".." not in said


def test_a_round_says_what_remarks_need(tmp_path):
    """The mean of the clients' changes and their labels in rounds.csv are those of clients.csv, and classes those of classes.csv."""
    method = {"kind": "fixmatch", "threshold": 0.5, "unlabeled_ratio": 7}
    found = run(
        small_experiment(rounds=3, method=method, train={"local_steps": 4}),
        out=tmp_path / "run",
        progress=False,
    )
    clients, classes = found.clients, found.classes
    for row in found.round_rows:
        own = clients[(clients["round"] == row.round) & (clients.status == "ok")]
        assert row.client_update_norm == pytest.approx(own.update_norm.mean())
        assert row.num_labeled == own.num_labeled.sum()
        of_round = classes[classes["round"] == row.round]
        unnamed = of_round[(of_round.considered >= 10) & (of_round.predicted == 0)].label
        assert row.classes_unnamed == " ".join(map(str, unnamed))
    assert any(row.classes_unnamed for row in found.round_rows)
