"""A deployment whose runs are in progress ends only on purpose, and then its runs end in order first."""

import fcntl
from pathlib import Path

import pytest

from fedssl.app.deploy import ending
from fedssl.app.deploy.containers import Containers
from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.opening import Opened
from fedssl.app.deploy.operator import Operator
from fedssl.app.deploy.submissions import Submissions
from fedssl.core.errors import RunFailed
from tests.helpers import fedssl, finished, refused

RECORD = "digits/20261130-105903-seed0"


class Server:
    """A SuperLink with one run that was submitted here, one that was not, and one that has ended."""

    def __init__(self):
        self.statuses = {"101": "running", "7": "pending", "100": "finished:completed"}
        self.stopped, self.answers, self.refuses = [], True, ""

    def runs(self, operator):
        if not self.answers:
            raise RunFailed("the deployment's server does not answer")
        return [{"run-id": int(run_id), "status": said} for run_id, said in self.statuses.items()]

    def stop(self, operator, run_id):
        self.stopped.append(run_id)
        if self.refuses:
            raise RunFailed(self.refuses)


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr(Operator, "runs", lambda self: server.runs(self))
    monkeypatch.setattr(Operator, "stop_run", lambda self, run_id: server.stop(self, run_id))
    monkeypatch.setattr(Opened, "is_served", lambda self: True)
    return server


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "deployment"
    init = ("--clients", 0, "--no-containers")
    finished(fedssl("deploy", "init", "--folder", folder, *init))
    submissions = Submissions(Deployment.open(folder).submissions)
    submissions.add("100", Path("digits/old"))
    for run_id in ("99", "101"):  # the second one went on with the first one
        submissions.add(run_id, Path(RECORD))
    return folder


def down(folder, *options):
    return fedssl("deploy", "down", "--folder", folder, *options)


def test_runs_in_progress_are_named_with_the_way_to_end_them(server, folder):
    done = down(folder)
    refused(done, f"a run is in progress: {RECORD}, 7", f"deploy down --force --folder {folder}")
    assert not server.stopped


def test_on_purpose_they_are_stopped_first_and_their_records_are_released(
    server, folder, monkeypatch
):
    looks = [True, True, False]
    seen = []

    def is_running(directory):
        seen.append(directory)
        return looks.pop(0)

    monkeypatch.setattr(ending, "is_running", is_running)
    monkeypatch.setattr(ending, "POLL_SECONDS", 0.0)
    done = down(folder, "--force")
    finished(done)
    assert server.stopped == ["101", "7"]
    assert set(seen) == {folder / "runs" / RECORD}
    assert not looks
    assert f"stopping {RECORD}" in done.output
    assert done.output.endswith("down\n")


@pytest.mark.parametrize(
    ("why", "said"), [("[code: 18] Run is already finished.", False), ("no answer", True)]
)
def test_a_run_that_cannot_be_stopped_keeps_nothing_running(why, said, server, folder):
    server.refuses = why
    done = down(folder, "--force")
    finished(done)
    assert ("could not be stopped" in done.output) == said


def test_a_server_that_does_not_answer_is_asked_by_its_records(server, folder, monkeypatch):
    server.answers = False
    monkeypatch.setattr(ending, "is_running", lambda directory: directory.name in RECORD)
    refused(down(folder), f"a run is in progress: {RECORD};")


def test_without_a_server_and_without_runs_there_is_nothing_to_refuse(server, folder, monkeypatch):
    server.statuses = {"100": "finished:completed"}
    finished(down(folder))
    server.statuses, server.answers = {"101": "running"}, False
    monkeypatch.setattr(Opened, "is_served", lambda self: False)
    finished(down(folder))
    assert not server.stopped


@pytest.mark.parametrize(
    ("states", "is_served"),
    [
        ([("superlink", "running"), ("gate", "exited")], True),
        ([("superlink", "restarting")], True),
        ([("superlink", "exited"), ("gate", "running")], False),
        ([], False),
    ],
)
def test_in_containers_a_superlink_is_kept_by_the_engine(states, is_served, folder, monkeypatch):
    found = [{"Service": name, "State": state} for name, state in states]
    monkeypatch.setattr(Containers, "states", lambda self: found)
    deployment = Deployment.open(folder)
    operator = Operator(folder, list, print)
    assert Opened(folder, deployment, True, operator, folder).is_served() == is_served


def test_on_this_host_a_superlink_is_kept_by_its_keeper(folder):
    deployment = Deployment.open(folder)
    opened = Opened(folder, deployment, False, Operator(folder, list, print), folder)
    assert not opened.is_served()
    with (deployment.processes / "superlink.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert opened.is_served()
    assert not opened.is_served()
