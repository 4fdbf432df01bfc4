"""Runs in MLflow's file store, read back with MLflow."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fedssl import __version__
from fedssl.experiment.experiment import Experiment
from fedssl.views.run import Run
from fedssl.views.trackers.mlflow import _find_or_create_experiment, client_of
from tests.helpers import command, in_a_process, small_experiment, small_toml
from tests.resuming import Stop, Stopper
from tests.views.trackers import tracked


class Store:
    """What a folder of MLflow's holds of one experiment."""

    def __init__(self, folder):
        self.folder = folder

    @property
    def tracker(self):
        return {"kind": "mlflow", "tracking_uri": str(self.folder)}

    @property
    def client(self):
        return client_of(str(self.folder))

    @property
    def run(self):
        """The only run."""
        experiment = self.client.get_experiment_by_name("small")
        (run,) = self.client.search_runs([experiment.experiment_id])
        return run

    @property
    def steps(self):
        """Every value of every metric by step; one that is there twice is an error."""
        found = {}
        for name in self.run.data.metrics:
            history = self.client.get_metric_history(self.run.info.run_id, name)
            found[name] = {metric.step: metric.value for metric in history}
            assert len(found[name]) == len(history), name
        return found

    @property
    def rounds(self):
        return {name: steps for name, steps in self.steps.items() if "/" not in name}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "mlruns")


def test_a_run_is_in_the_store_as_in_its_record(store, tmp_path):
    phases = [{"rounds": 1}, {"rounds": 2, "method": "supervised"}]
    table = small_experiment(tracker=store.tracker).to_dict()
    del table["rounds"]
    experiment = Experiment.from_dict(table | {"phases": phases})
    (tmp_path / "e.toml").write_text(experiment.to_toml())
    path = tmp_path / "out"
    in_a_process("run", tmp_path / "e.toml", "--plain", "--out", path)
    run = store.run
    assert run.info.status == "FINISHED"
    assert store.rounds == tracked.recorded(path)
    params = run.data.params
    assert params["method.threshold"] == "0.3"
    assert params["phases.1.rounds"] == "2"
    assert params["model.widths"] == "[8, 16]"
    assert run.data.tags["seed"] == "0"
    assert run.data.tags["fedssl"] == __version__
    assert run.data.tags["run_directory"] == str(path)
    summary = Run(path).summary
    assert run.data.metrics["summary/ema_accuracy"] == pytest.approx(summary["ema_accuracy"])
    artifacts = {file.path for file in store.client.list_artifacts(run.info.run_id)}
    there = {"experiment.toml", "summary.json", "rounds.csv"}
    assert there <= artifacts <= there | {"report.html"}


@pytest.mark.parametrize(("error", "status"), [(Stop(), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_one_that_stops_is_marked_and_goes_on_as_the_same_run(store, tmp_path, error, status):
    experiment = small_experiment(rounds=5, tracker=store.tracker)
    with pytest.raises(type(error)):
        tracked.run(experiment, tmp_path / "run", Stopper(3, error))
    assert store.run.info.status == status
    assert store.run.data.metrics.keys() == store.rounds.keys()
    tracked.go_on(experiment, tmp_path / "run")
    assert store.run.info.status == "FINISHED"
    assert store.rounds == tracked.recorded(tmp_path / "run")


def test_killed_amid_the_rounds_none_is_there_twice(store, tmp_path):
    """Rounds after the checkpoint run again, and the store has them already; `seconds` stays that of the first time."""
    file = small_toml(
        tmp_path / "e.toml", rounds=25, tracker=store.tracker, server={"checkpoint_every": 5}
    )
    arguments = ("run", file, "--plain", "--out", tmp_path / "run")
    process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
    rounds, deadline = tmp_path / "run" / "rounds.csv", time.monotonic() + 120
    while not rounds.exists() or rounds.read_text().count("\n") < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = store.rounds
    in_a_process(*arguments, "--resume")
    found, recorded = store.rounds, tracked.recorded(tmp_path / "run")
    assert found.pop("seconds").keys() == recorded.pop("seconds").keys()
    assert found == recorded
    assert 5 < len(before["loss"]) < 25, "it was to be killed after a checkpoint"
    assert store.run.info.status == "FINISHED"


def test_a_tracker_that_is_new_to_a_run_has_all_its_rounds(store, tmp_path):
    with pytest.raises(Stop):
        tracked.run(small_experiment(rounds=4), tmp_path / "run", Stopper(2))
    tracked.go_on(small_experiment(rounds=4, tracker=store.tracker), tmp_path / "run")
    assert store.rounds == tracked.recorded(tmp_path / "run")


def test_a_round_of_which_a_part_is_there_is_completed(store, tmp_path):
    experiment = small_experiment(rounds=3, tracker=store.tracker)
    with pytest.raises(Stop):
        tracked.run(experiment, tmp_path / "run", Stopper(1))
    store.client.log_metric(store.run.info.run_id, "phase", 0.0, step=2)
    tracked.go_on(experiment, tmp_path / "run")
    assert store.rounds == tracked.recorded(tmp_path / "run")


def test_experiments_of_mlflows_hold_runs_of_several(store, tmp_path):
    tracker = store.tracker | {"experiment": "mine"}
    for name in ("a", "b"):
        tracked.run(small_experiment(name=name, tracker=tracker), tmp_path / name)
    experiment = store.client.get_experiment_by_name("mine")
    runs = store.client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"a seed 0", "b seed 0"}


def test_runs_that_begin_together_share_one_experiment(tmp_path):
    """As those of a sweep do: in a folder, MLflow itself would make two of one name."""
    client = client_of(str(tmp_path / "mlruns"))
    begun = threading.Barrier(8)

    def begin(_: int) -> str:
        begun.wait()
        return _find_or_create_experiment(client, "sweep")

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(begin, range(8)))) == 1
    assert [found.name for found in client.search_experiments()].count("sweep") == 1
