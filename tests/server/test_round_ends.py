"""A round's end runs beside the next round's start: numbers do not change, and each round is reported exactly once."""

import dataclasses

import pytest
from flwr.app import ConfigRecord

from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.core.errors import RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.families import STRATEGIES
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.server import round_ends
from fedssl.server.app import serve
from fedssl.strategies.by_sums import SumStrategy
from tests.helpers import small_experiment


class Events(Observer):
    """What happened, in order."""

    def __init__(self):
        self.list = []
        self.rows = []

    def round_ended(self, end):
        self.list.append(f"recorded {end.row.round}")
        self.rows.append(end.row)

    def ended(self, outcome):
        self.list.append("ended")

    def failed(self, reason):
        self.list.append("failed")


@pytest.fixture
def events(monkeypatch):
    """Of every run of this test, evaluations and the sending of requests included."""
    seen = Events()
    evaluate, reduce = round_ends.evaluate_models, SerialGrid.reduce

    def watched(*args):
        seen.list.append("evaluated")
        return evaluate(*args)

    def sent(self, messages, *args, **kwargs):
        seen.list.append("sent")
        return reduce(self, messages, *args, **kwargs)

    monkeypatch.setattr(round_ends, "evaluate_models", watched)
    monkeypatch.setattr(SerialGrid, "reduce", sent)
    return seen


def run(experiment, events):
    serve(experiment, SerialGrid(Apps(app, train_together), 6), [events])
    return events.list


def test_a_round_is_evaluated_and_recorded_once_the_next_one_is_at_work(events):
    experiment = small_experiment(rounds=3, server={"evaluate_every": 2})
    assert run(experiment, events) == [
        "sent", "sent", "recorded 1", "sent", "evaluated", "recorded 2", "evaluated", "recorded 3", "ended"
    ]  # fmt: skip


def test_where_workers_share_the_evaluation_it_is_not_put_off(events, monkeypatch):
    monkeypatch.setattr(round_ends, "are_shared", lambda workers, num_images: True)
    expected = ["sent", "evaluated", "recorded 1", "sent", "evaluated", "recorded 2", "ended"]
    assert run(small_experiment(), events) == expected


def test_it_changes_no_number(events, monkeypatch):
    experiment = small_experiment(
        rounds=None, phases=[{"rounds": 2}, {"rounds": 2, "method": {"kind": "supervised"}}]
    )
    run(experiment, events)
    at_once = Events()
    monkeypatch.setattr(round_ends, "are_shared", lambda workers, num_images: True)
    run(experiment, at_once)
    assert len(events.rows) == 4
    for first, second in zip(events.rows, at_once.rows, strict=True):
        assert first.evaluated
        assert repr(dataclasses.replace(first, seconds=0.0)) == repr(
            dataclasses.replace(second, seconds=0.0)
        )


class Refuses(SumStrategy):
    """Fails in its third round."""

    def configure_train(self, server_round, arrays, config: ConfigRecord, grid):
        if server_round == 3:
            raise RunFailed("no third round")
        return super().configure_train(server_round, arrays, config, grid)


def test_a_round_that_is_over_is_recorded_whatever_comes_after_it(events, monkeypatch):
    monkeypatch.setattr(type(STRATEGIES.build({})), "build", lambda self, cohorts: Refuses(cohorts))
    with pytest.raises(RunFailed, match="no third round"):
        run(small_experiment(rounds=5), events)
    assert events.list[-4:] == ["recorded 1", "evaluated", "recorded 2", "failed"]


def test_an_observer_that_raises_ends_the_run_and_is_not_asked_again(events):
    class Full(Observer):
        asked = 0

        def round_ended(self, end):
            self.asked += 1
            raise OSError("no space left")

    full = Full()
    with pytest.raises(OSError, match="no space"):
        serve(small_experiment(), SerialGrid(Apps(app), 6), [events, full])
    assert full.asked == 1
    assert events.list.count("recorded 1") == 1


def test_ctrl_c_amid_an_evaluation_keeps_the_round(tmp_path, monkeypatch):
    """It was over, but not recorded yet: without it there would be no checkpoint that goes with what clients keep."""
    evaluate, calls = round_ends.evaluate_models, []

    def interrupted(*arguments):
        calls.append(len(calls) + 1)
        if calls[-1] == 3:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(round_ends, "evaluate_models", interrupted)
    experiment = small_experiment(rounds=9, method={"kind": "temporal_ensembling"})
    directory = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        serve(experiment, SerialGrid(Apps(app), 6), [directory])
    found = RunDirectory(tmp_path / "run", resume=True).load().snapshot
    assert found is not None
    assert found.round == 3
    assert [row.round for row in found.rounds] == [1, 2, 3]
