"""Rules for every tracker: no run depends on a tracker, and no failure of a tracker harms a run."""

import json
import subprocess
import sys

import pytest
import wandb

from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.record.resume import directory_to_resume
from fedssl.views.run import Run
from fedssl.views.trackers.base import tracker_of
from fedssl.views.trackers.tracking import tracking
from tests import resuming
from tests.helpers import fedssl, refused, small_experiment, small_toml
from tests.resuming import bits
from tests.test_imports import only_base
from tests.views.trackers import tracked

TRACKERS = {
    "tensorboard": {},
    "mlflow": {"tracking_uri": "{folder}/mlruns"},
    "wandb": {"mode": "offline"},
}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield
    wandb.teardown()


@pytest.mark.parametrize("kind", TRACKERS)
def test_the_bits_are_those_of_a_run_without(kind, tmp_path):
    settings = {key: value.format(folder=tmp_path) for key, value in TRACKERS[kind].items()}
    experiment = small_experiment(tracker={"kind": kind, **settings})
    tracked.run(experiment, tmp_path / "tracked")
    resuming.run(small_experiment(), tmp_path / "plain")
    assert bits(tmp_path / "tracked") == bits(tmp_path / "plain")
    assert json.loads((tmp_path / "tracked" / "tracker.json").read_text())["run"]


@pytest.mark.parametrize("at", ["open", "log", "end"])
def test_a_tracker_that_fails_is_told_of_once_and_the_run_goes_on(at, tmp_path):
    settings = {"kind": "tests.plugins.broken_tracker", "at": at}
    file = small_toml(tmp_path / "e.toml", rounds=4, tracker=settings)
    done = fedssl("run", file, "--plain", "--out", tmp_path / "broken")
    assert done.exit_code == 0, done.output
    said = "the run is no longer tracked by tests.plugins.broken_tracker: Gone: nobody is there"
    assert done.output.count(said) == 1
    resuming.run(small_experiment(rounds=4), tmp_path / "plain")
    assert bits(tmp_path / "broken") == bits(tmp_path / "plain")
    events = [json.loads(line) for line in (tmp_path / "broken" / "events.jsonl").open()]
    noted = [(event["round"], event["what"]) for event in events if event["event"] == "incident"]
    rounds = {"open": [0], "log": [2], "end": []}[at]  # the record is closed when it ends
    assert noted == [(round, said) for round in rounds]


def test_an_interrupt_within_a_tracker_ends_the_run(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tests.plugins.broken_tracker._Run.log", interrupted)
    settings = {"kind": "tests.plugins.broken_tracker", "at": "log"}
    with pytest.raises(KeyboardInterrupt):
        tracked.run(small_experiment(tracker=settings), tmp_path / "run")
    assert not Run(tmp_path / "run").is_finished


def test_a_tracker_is_no_other_experiment(tmp_path):
    plain = small_experiment()
    with pytest.raises(resuming.Stop):
        resuming.run(plain, tmp_path / "run", resuming.Stopper(1))
    experiment = small_experiment(tracker="tensorboard")
    assert experiment.to_json() == plain.to_json()
    directory_to_resume(experiment, tmp_path / "run").close()


def test_without_one_nobody_is_told():
    with tracking(small_experiment(), None, None) as trackers:
        assert trackers == []


def test_what_is_no_tracker_is_refused():
    with pytest.raises(InputError, match=r"there is no tracker .*cnn defines no tracker"):
        small_experiment(tracker="fedssl.models.cnn")


def test_a_deployment_is_refused_one(tmp_path):
    folder = tmp_path / "deployment"
    assert fedssl("deploy", "init", "--folder", folder, "--clients", 1).exit_code == 0
    file = small_toml(tmp_path / "e.toml", tracker="mlflow")
    refused(fedssl("deploy", "run", file, "--folder", folder), "tracker", "--set tracker=unset")


def test_its_settings_round_trip_and_are_listed(tmp_path):
    settings = {"kind": "wandb", "project": "p", "mode": "offline"}
    file = small_toml(tmp_path / "e.toml", tracker=settings)
    experiment = Experiment.load(file)
    assert tracker_of(experiment).to_dict() == settings
    assert tracker_of(Experiment.load(file, ["tracker=mlflow"])).tracking_uri == "mlruns"
    assert Experiment.load(file, ["tracker=unset"]).tracker is None
    listed = fedssl("list", "trackers").output
    assert all(kind in listed for kind in TRACKERS)


def test_a_tracker_that_is_not_installed_says_how_to_install_it(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    code = f"""
import json
from tests.helpers import fedssl
results = [fedssl("run", {str(file)!r}, "--plain", "--set", f"tracker={{kind}}") for kind in {list(TRACKERS)}]
print(json.dumps([[result.exit_code, result.output] for result in results]))
"""
    done = subprocess.run(
        [sys.executable, "-c", only_base(code, set(TRACKERS))],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    said = "error: tracker.kind: '{kind}' needs {kind}, which is not installed; pip install 'fedssl[{kind}]'\n"
    assert json.loads(done.stdout.splitlines()[-1]) == [
        [2, said.format(kind=kind)] for kind in TRACKERS
    ]


def test_who_is_not_logged_in_is_told_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    file = small_toml(tmp_path / "e.toml", tracker="wandb")
    done = fedssl("run", file, "--plain", "--out", tmp_path / "run")
    refused(done, "tracker.mode: is 'online', and nobody is logged in", "tracker.mode=offline")
    assert not (tmp_path / "run").exists()
