"""Submitting a run, going on with one, and following one, over a server that this process stands in for."""

import contextlib
import tomllib
from pathlib import Path

import pytest

from fedssl.app.deploy import follow, running
from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.submissions import Submissions
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError, RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange.census import NO_ROUND
from fedssl.experiment.experiment import Experiment
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from tests.data.own_images import colors, save
from tests.helpers import fedssl, finished, small_experiment, small_toml
from tests.resuming import Stopper, bits

CLIENTS = 2
SETTINGS = {"rounds": 3, "federation": {"clients": CLIENTS, "sample": CLIENTS}}


class Server:
    """Runs what is submitted at once, in this process, and stops it after a round if it is told to.

    Args:
        folder: The deployment's folder.
    """

    def __init__(self, folder):
        self.folder = folder
        self.configs, self.statuses, self.stopped = [], {}, []
        self.connected, self.stop_after, self.cannot_stop = CLIENTS, None, False

    def nodes(self):
        return [{"status": "online"}] * self.connected

    def start_run(self, app_folder, settings):
        config = tomllib.loads(Path(settings).read_text())
        self.configs.append(config)
        run_id = str(100 + len(self.configs))
        directory = RunDirectory(self.folder / config["run-directory"], resume=config["resume"])
        stop = [] if self.stop_after is None else [Stopper(self.stop_after, KeyboardInterrupt())]
        experiment = Experiment.from_json(config["experiment-json"])
        self.statuses[run_id] = "finished:stopped"
        with contextlib.suppress(KeyboardInterrupt):
            grid = SerialGrid(Apps(app), CLIENTS)
            serve(experiment, grid, [directory, *stop], directory.load().snapshot)
            self.statuses[run_id] = "finished:completed"
        return run_id

    def run_status(self, run_id):
        return self.statuses[run_id], ""

    def stop_run(self, run_id):
        self.stopped.append(run_id)
        if self.cannot_stop:
            raise RunFailed("the server does not answer")


@pytest.fixture
def opened(tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)
    folder = tmp_path / "deployment"
    finished(fedssl("deploy", "init", "--folder", folder, "--clients", 0))
    deployment = Deployment.open(folder)
    return Opened(folder, deployment, False, Server(folder), deployment.folder)


def run(opened, file, *settings, resume=False):
    experiment = running.load_experiment(file, list(settings), opened.deployment, resume=resume)
    named = file if file.is_dir() else None
    running.run_over(opened, experiment, named, resume=resume, plain=True)


@pytest.fixture
def file(tmp_path):
    return small_toml(tmp_path / "e.toml", **SETTINGS)


def only_run(opened):
    (path,) = (opened.deployment.runs / "small").iterdir()
    return path


def test_a_stopped_run_goes_on_in_its_directory_to_the_same_bits(opened, file, tmp_path, capsys):
    opened.operator.stop_after = 2
    with pytest.raises(RunFailed, match=r"ended as finished:stopped: .*the same command with --resume"):  # fmt: skip
        run(opened, file)
    opened.operator.stop_after = None
    capsys.readouterr()
    run(opened, file, resume=True)
    said = capsys.readouterr().out
    path = only_run(opened)
    assert "round 3/3" in said
    assert "round 2/3 " not in said
    assert "the run goes on after round 2" in said
    assert f"recorded in {path}" in said.replace("\n", "")
    first, second = opened.operator.configs
    assert (first["resume"], second["resume"]) == (False, True)
    assert first["run-directory"] == second["run-directory"] == f"runs/small/{path.name}"
    record = path.relative_to(opened.deployment.runs).as_posix()
    assert Submissions(opened.deployment.submissions).read() == {"101": record, "102": record}
    whole = tmp_path / "whole"
    serve(small_experiment(**SETTINGS), SerialGrid(Apps(app), CLIENTS), [RunDirectory(whole)])
    assert bits(path) == bits(whole)
    run(opened, file, resume=True)
    assert f"already done, in {path}" in capsys.readouterr().out.replace("\n", "")
    assert len(opened.operator.configs) == 2


def test_a_run_is_named_by_its_directory_and_others_are_refused(opened, file, tmp_path):
    opened.operator.stop_after = 1
    with pytest.raises(RunFailed):
        run(opened, file)
    path = only_run(opened)
    with pytest.raises(InputError, match="is the folder of a run; to go on with it, add --resume"):
        run(opened, path)
    with pytest.raises(InputError, match=r"train.lr was .* and is 0\.5"):
        run(opened, file, "train.lr=0.5", resume=True)
    with pytest.raises(InputError, match="is a folder that holds no run"):
        run(opened, tmp_path, resume=True)
    elsewhere = tmp_path / "elsewhere"
    serve(small_experiment(**SETTINGS), SerialGrid(Apps(app), CLIENTS), [RunDirectory(elsewhere)])
    with pytest.raises(InputError, match="is no run of this deployment"):
        run(opened, elsewhere, resume=True)
    opened.operator.stop_after = None
    run(opened, path, resume=True)
    assert RunDirectory(path, resume=True).is_finished


def test_a_run_that_still_goes_on_is_followed_and_not_submitted_again(opened, file, capsys):
    opened.operator.stop_after = 1
    with pytest.raises(RunFailed):
        run(opened, file)
    path, operator = only_run(opened), opened.operator
    asked = []

    def status(run_id):
        asked.append(run_id)
        if len(asked) == 2:  # the run goes on meanwhile
            directory = RunDirectory(path, resume=True)
            grid = SerialGrid(Apps(app), CLIENTS)
            serve(small_experiment(**SETTINGS), grid, [directory], directory.load().snapshot)
        return ("running" if len(asked) < 2 else "finished:completed"), ""

    operator.run_status = status
    run(opened, file, resume=True)
    said = capsys.readouterr().out
    assert "run 101 still goes on; it is followed from here" in said
    assert "round 3/3" in said
    assert len(operator.configs) == 1


def test_there_may_be_nothing_to_go_on_with(opened, file, capsys):
    run(opened, file, resume=True)
    assert "there is no run to go on with; a new one begins" in capsys.readouterr().out
    assert not opened.operator.configs[0]["resume"]


def test_ctrl_c_stops_the_run_even_if_the_server_is_away(opened, file, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "follow", interrupted)
    opened.operator.cannot_stop = True
    with pytest.raises(KeyboardInterrupt) as error:
        run(opened, file)
    assert opened.operator.stopped == ["101"]
    assert error.value.__notes__ == [
        "run 101 could not be stopped: the server does not answer",
        "to go on, run the same command again with --resume",
    ]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (follow.GONE, "was ended while run 101 was in progress; to go on: fedssl deploy up"),
        (follow.SILENT, "has not answered for 300 s, so run 101 is not followed any longer"),
    ],
)
def test_a_run_whose_server_says_no_more_ends_with_one_line_and_the_way_on(
    status, words, opened, file, monkeypatch
):
    monkeypatch.setattr(running, "follow", lambda *arguments, **options: status)
    with pytest.raises(RunFailed, match=words) as error:
        run(opened, file)
    assert str(error.value).endswith("the same command with --resume")
    assert "\n" not in str(error.value)


def test_a_run_that_a_floor_refused_is_not_said_to_go_on(opened, file, monkeypatch):
    opened.operator.stop_after = 1
    said = f"finished:failed: {NO_ROUND}:\nclient 0: privacy-clipping-norm: is set"
    monkeypatch.setattr(running, "follow", lambda *arguments, **options: said)
    with pytest.raises(RunFailed, match="change the experiment as the reason says") as error:
        run(opened, file)
    assert "--resume" not in str(error.value)


def test_too_few_clients_are_refused_before_anything_is_submitted(opened, file):
    opened.operator.connected = 1
    with pytest.raises(InputError, match=r"federation.clients: is 2, but only 1 clients"):
        run(opened, file)
    assert not opened.operator.configs
    assert not list(opened.deployment.runs.iterdir())


def test_paths_are_sent_as_absolute_ones(opened, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    file = small_toml(
        tmp_path / "e.toml", data={"source": "mnist", "root": "data", "train_size": 9}
    )
    assert (
        running.load_experiment(file, [], opened.deployment, resume=False).data.root
        == tmp_path / "data"
    )


def test_a_sites_bad_images_that_its_client_lacks_or_may_lack_are_said(opened, tmp_path, capsys):
    for place in ("server", "bern", "lyon", "oslo"):
        for name in ("a", "b"):
            save(tmp_path / place / name / "0.png", colors(1)[0])
    sites = {
        "bern": {"source": f"folder:{tmp_path / 'bern'}", "bad_images": "skip"},
        "lyon": f"folder:{tmp_path / 'lyon'}",
        "oslo": {"source": f"folder:{tmp_path / 'oslo'}", "bad_images": "skip"},
    }
    file = small_toml(
        tmp_path / "sites.toml",
        data={"source": f"folder:{tmp_path / 'server'}"},
        federation={"clients": None, "sample": None, "sites": sites},
    )

    def said(**settings):
        changed = opened.deployment.settings.model_copy(update=settings)
        deployment = Deployment(opened.folder, changed)
        assert running.load_experiment(file, [], deployment, resume=False).federation.private
        return capsys.readouterr().out.replace("\n", " ")

    elsewhere = said(clients=0)
    for name, number in (("bern", 0), ("oslo", 2)):
        assert f"site {name}: the file says bad_images = 'skip', but only client {number} itself can say so: fedssl deploy join ... --bad-images skip" in elsewhere  # fmt: skip
    assert "site lyon" not in elsewhere
    here = said(clients=2, bad_images="refuse")
    assert "site bern: the file says bad_images = 'skip', but client 0 has 'refuse'" in here
    assert "set bad_images in" in here
    assert "site lyon" not in here
    skipping = said(clients=2, bad_images="skip")
    assert "site lyon: the file says bad_images = 'refuse', but client 1 has 'skip'" in skipping
    assert "site bern" not in skipping
