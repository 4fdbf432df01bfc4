"""What a deployment remembers: how its processes run, and which run is recorded where; and what `status` shows of it."""

from pathlib import Path

import pytest

from fedssl.app.deploy.deployment import Deployment
from fedssl.app.deploy.operator import Operator
from fedssl.app.deploy.roster import Registered, Roster
from fedssl.app.deploy.submissions import Submissions
from fedssl.core.errors import InputError, RunFailed
from tests.helpers import fedssl, finished, refused, small_toml

TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1\n    y()\nValueError: why'

IDS = ("18257214721397635331", "5", "77")


@pytest.fixture
def deployment(tmp_path):
    folder = tmp_path / "deployment"
    finished(fedssl("deploy", "init", "--folder", folder, "--clients", 0))
    return Deployment.open(folder)


@pytest.fixture
def no_docker(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # nothing is there


def test_the_way_to_run_is_remembered_and_the_file_stays_as_it_was(deployment):
    text = deployment.file.read_text()
    assert deployment.settings.containers
    deployment.remember(containers=False)
    assert deployment.file.read_text() == text.replace("containers = true", "containers = false")
    assert not Deployment.open(deployment.folder).settings.containers
    deployment.remember(containers=True)
    assert deployment.file.read_text() == text


def test_a_deployment_of_an_earlier_version_remembers_too(deployment):
    text = deployment.file.read_text().replace("containers = true\n", "# mine\n")
    deployment.file.write_text(text)
    assert Deployment.open(deployment.folder).settings.containers
    deployment.remember(containers=False)
    assert deployment.file.read_text() == f"containers = false\n{text}"
    assert not Deployment.open(deployment.folder).settings.containers


def test_init_tells_every_later_command(tmp_path, no_docker):
    folder = tmp_path / "deployment"
    finished(fedssl("deploy", "init", "--folder", folder, "--clients", 0, "--no-containers"))
    finished(fedssl("deploy", "down", "--folder", folder))
    refused(fedssl("deploy", "down", "--folder", folder, "--containers"), "--no-containers")


@pytest.mark.parametrize("command", ["up", "status", "down", "register", "run"])
def test_every_command_names_the_way_out_where_there_is_no_docker(
    command, deployment, no_docker, tmp_path
):
    key = deployment.folder / "mine"
    finished(fedssl("deploy", "join", "x:1", "--number", 0, "--key", key, "--ca", "ca.crt"))
    file = small_toml(tmp_path / "e.toml")
    more = {"register": [f"{key}.pub"], "run": [file]}.get(command, [])
    done = fedssl("deploy", command, *more, "--folder", deployment.folder)
    refused(done, "containers need Docker", "--no-containers")


def test_a_run_before_up_is_told_how_to_start(deployment, tmp_path):
    where = ("--folder", deployment.folder, "--no-containers")
    done = fedssl("deploy", "run", small_toml(tmp_path / "e.toml"), *where)
    assert done.exit_code == 1
    assert done.output.count("error:") == 1
    said = done.output.replace("\n", " ")
    assert "the deployment's server does not answer; start it: fedssl deploy up --folder" in said
    assert "--no-containers" in said
    assert "recorded in" not in said


def test_submissions_know_the_last_run_of_a_directory(deployment):
    submissions = Submissions(deployment.submissions)
    assert submissions.read() == {}
    for run_id, record in zip(IDS, ("a/1", "a/2", "a/1"), strict=True):
        submissions.add(run_id, Path(record))
    assert submissions.read() == dict(zip(IDS, ("a/1", "a/2", "a/1"), strict=True))
    assert submissions.last_of(Path("a/1")) == "77"
    assert submissions.last_of(deployment.folder) is None
    deployment.submissions.write_text("[1]")
    with pytest.raises(InputError, match="cannot be read"):
        submissions.read()


def test_status_shows_numbers_names_and_run_directories_under_a_head_each(deployment, monkeypatch):
    roster = Roster(deployment.roster)
    roster.add("east", Registered("900", 1))
    roster.add("west", Registered("901", 0))
    roster.add("spare", Registered("902", None))
    online = {"status": "online", "online-at": "12:00"}
    nodes = [{"node-id": id, **online} for id in ("900", "901", "902", "903")]
    nodes.append({"node-id": "904", "status": "unregistered", "online-at": "11:00"})
    runs = [
        {"run-id": IDS[0], "status": "running", "status-details": "N/A"},
        {"run-id": IDS[1], "status": "finished:failed", "status-details": "no heartbeat " * 9},
        {"run-id": IDS[2], "status": "finished:failed", "status-details": TRACEBACK},
    ]
    record = "stopped/20261130-082721-seed0"
    Submissions(deployment.submissions).add(IDS[0], Path(record))
    monkeypatch.setattr(Operator, "nodes", lambda self: nodes)
    monkeypatch.setattr(Operator, "runs", lambda self: runs)
    done = fedssl("deploy", "status", "--folder", deployment.folder, "--no-containers")
    finished(done)
    rows = [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in done.output.splitlines()]  # fmt: skip
    clients = rows.index(["number", "client", "status", "since"])
    assert "904" not in done.output
    assert rows[clients + 2 : clients + 6] == [
        ["0", "west", "online", "12:00"],
        ["1", "east", "online", "12:00"],
        ["any", "node 903", "online", "12:00"],
        ["any", "spare", "online", "12:00"],
    ]
    recorded = rows.index(["run", "status", "id"])
    assert rows[recorded + 2 : recorded + 4] == [
        [record, "running", IDS[0]],
        ["?", "finished:failed: no", IDS[1]],
    ]
    assert "ValueError: why" in done.output
    assert "Traceback" not in done.output


def test_what_does_not_answer_is_said_once_with_its_remedy(tmp_path):
    (tmp_path / "flwr").write_text("#!/bin/sh\necho Connection to the SuperLink is unavailable\n")
    (tmp_path / "flwr").chmod(0o755)
    operator = Operator(tmp_path, lambda command: [str(tmp_path / "flwr")], print, "do this")
    with pytest.raises(RunFailed, match=r"^the deployment's server does not answer; do this$"):
        operator.nodes()
