"""`server.stop_when`: a run that ends early is the beginning of the whole run, says why, and does not go on by accident."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from fedssl.server.stopping import Stopping
from tests.helpers import fedssl, finished, refused, small_experiment, small_toml
from tests.record.test_remarks import rows as rows_of
from tests.resuming import Stop, Stopper, bits, go_on, run

STILL = {"train": {"lr": 1e-12}, "data": {"validation": 0.2}}
"""A run whose accuracy stays as it is: from the first evaluation on, there is no gain."""


def still(rounds=8, evaluate_every=1, **stop_when):
    server = {"stop_when": stop_when, "evaluate_every": evaluate_every}
    return small_experiment(rounds=rounds, server=server, **STILL)


class Models(Observer):
    def __init__(self):
        self.models = []
        self.rows = []

    def round_ended(self, end):
        self.models.append(end.model.arrays)
        self.rows.append(end.row)


def served(experiment):
    models = Models()
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [models])
    return models, outcome


@given(
    st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4, math.nan]), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_a_run_ends_after_the_first_stretch_without_gain(accuracies, no_gain):
    """A naive loop finds the same round."""
    experiment = still(rounds=20, no_gain=no_gain)
    best, waited, expected = -1.0, 0, None
    for number, accuracy in enumerate(accuracies, 1):
        if not math.isnan(accuracy):
            waited = 0 if accuracy > best else waited + 1
            best = max(best, accuracy)
            if waited == no_gain:
                expected = number
                break
    rows = rows_of(*accuracies)
    found = None
    for number in range(1, len(rows) + 1):
        stopping = Stopping(experiment)
        stopping.watch_accuracy(0, rows[:number])
        if stopping.reason:
            found = number
            assert f"after round {number} of 20" in stopping.reason
            break
    assert found == expected


@pytest.mark.parametrize(("evaluate_every", "last"), [(1, 3), (2, 6)])
def test_a_run_without_gain_is_the_beginning_of_the_whole_run(evaluate_every, last):
    short, outcome = served(still(evaluate_every=evaluate_every, no_gain=2))
    whole, full = served(still(evaluate_every=evaluate_every, minutes=1e6))
    assert len(short.rows) == last == len(outcome.rounds)
    assert len(whole.rows) == 8
    assert not full.stopped
    assert f"Stopped after round {last} of 8" in outcome.stopped
    for name, array in short.models[-1].items():
        assert array.tobytes() == whole.models[last - 1][name].tobytes()


def test_the_round_that_uses_up_the_time_is_the_last_one_and_is_evaluated():
    short, outcome = served(still(evaluate_every=5, minutes=1e-9))
    assert len(short.rows) == 1
    assert not math.isnan(short.rows[0].ema_accuracy)
    assert "the time of 1e-09 minutes was over" in outcome.stopped


def test_phases_before_the_last_one_are_whole():
    two = [{"rounds": 5}, {"rounds": 5, "method": {"kind": "supervised"}}]
    server = {"stop_when": {"no_gain": 1}}
    short, _ = served(small_experiment(rounds=None, phases=two, server=server, **STILL))
    assert [row.phase for row in short.rows] == [0] * 5 + [1] * 2
    server = {"stop_when": {"minutes": 1e-9}}
    short, _ = served(small_experiment(rounds=None, phases=two, server=server, **STILL))
    assert [row.phase for row in short.rows] == [0]


def test_a_run_that_is_killed_at_its_stop_ends_there_when_it_is_resumed(tmp_path):
    experiment = still(no_gain=2)
    run(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "killed", Stopper(3))
    assert go_on(experiment, tmp_path / "killed").snapshot.round == 3
    assert bits(tmp_path / "killed") == bits(tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "earlier", Stopper(2))
    go_on(experiment, tmp_path / "earlier")
    assert bits(tmp_path / "earlier") == bits(tmp_path / "whole")


def test_record_screen_and_page_say_it_and_resume_leaves_it(tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=8, server={"stop_when": {"no_gain": 2}}, **STILL)
    arguments = ("run", file, "--out", tmp_path / "o")
    result = fedssl(*arguments)
    finished(result)
    reason = "Stopped after round 3 of 8 (server.stop_when): no gain in 2 evaluations"
    assert reason in result.output.replace("\n", " ")
    summary = json.loads((tmp_path / "o" / "summary.json").read_text())
    assert summary["stopped"].startswith(reason)
    assert summary["rounds"] == 3
    assert reason in (tmp_path / "o" / "report.html").read_text()
    before = bits(tmp_path / "o")
    again = fedssl(*arguments, "--resume")
    finished(again)
    assert "already done" in again.output
    assert bits(tmp_path / "o") == before
    finished(fedssl("report", tmp_path / "o"))
    out = ("--format", "safetensors", "--out", tmp_path / "m.safetensors")
    finished(fedssl("export", tmp_path / "o", *out))


def test_conditions_that_cannot_be_met_are_refused(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    refused(
        fedssl("validate", file, "--set", "server.stop_when.no_gain=3"),
        "needs validation images",
        "data.validation",
    )
    with pytest.raises(InputError, match="names no condition"):
        still()
