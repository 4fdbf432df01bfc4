"""Runs of Weights & Biases in its offline mode; the tests read its files back."""

import json
import os
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from fedssl import __version__
from tests.helpers import command, small_experiment, small_toml
from tests.resuming import Stop, Stopper
from tests.views.trackers import tracked

OFFLINE = {"kind": "wandb", "mode": "offline"}
BLOCK, HEADER = 32768, 7


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    yield
    wandb.teardown()


def records(path):
    """Yield what a file holds: protobuf messages in LevelDB's log format, cut at blocks, after a header."""
    content, at, whole = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(content):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        length, part = struct.unpack_from("<HB", content, at + 4)
        whole += content[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if part in (1, 4):  # the only one, the last one
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


class Folder:
    """What one process wrote of one run."""

    def __init__(self, path):
        (file,) = path.glob("*.wandb")
        found = {}
        for record in records(file):
            kind = record.WhichOneof("record_type")
            found.setdefault(kind, []).append(getattr(record, kind))
        self.run = found["run"][0]
        self.config = {i.key: json.loads(i.value_json) for i in self.run.config.update}
        self.exit_code = found["exit"][0].exit_code
        self.artifacts = found.get("artifact", [])
        updates = [item for summary in found["summary"] for item in summary.update]
        self.summary = {item.key: json.loads(item.value_json) for item in updates}
        self.rounds = {}
        for row in found["history"]:
            for item in row.item:
                steps = self.rounds.setdefault("/".join(item.nested_key) or item.key, {})
                assert row.step.num not in steps
                steps[row.step.num] = json.loads(item.value_json)
        self.rounds = {k: steps for k, steps in self.rounds.items() if not k.startswith("_")}


def folders(path):
    """What is there of a run, oldest first."""
    wandb.teardown()  # until then it may be on its way to the file
    return [Folder(folder) for folder in sorted((path / "wandb").glob("offline-run-*"))]


class Proxy:
    """Counts who wants to reach the network, and lets nobody."""

    def __enter__(self):
        self.asked = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self._refuse)
        self.thread.start()
        return self

    def _refuse(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.asked += 1
            connection.close()

    def __exit__(self, *details):
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


def processes_of(pid):
    """Return the commands that run on behalf of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue  # it has just ended
        if "--pid" in line and str(pid) in line:
            found.append(line)
    return found


def test_a_run_is_in_the_files_as_in_its_record_and_nobody_else_is_told(tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=3, tracker=OFFLINE)
    path = tmp_path / "run"
    with Proxy() as proxy:
        proxies = {"HTTP_PROXY": proxy.url, "HTTPS_PROXY": proxy.url}
        process = subprocess.Popen(
            command("run", file, "--plain", "--out", path), env=os.environ | proxies
        )
        assert process.wait(300) == 0
        assert processes_of(process.pid) == []
        assert proxy.asked == 0
    (found,) = folders(path)
    assert found.rounds == tracked.recorded(path)
    assert found.exit_code == 0
    assert (found.run.project, found.run.run_group) == ("fedssl", "small")
    assert set(found.run.tags) == {"seed 0", f"fedssl {__version__}"}
    assert found.config["method"]["threshold"] == 0.3
    assert found.config["run_directory"] == str(path)
    assert found.summary["summary/rounds"] == 3
    (artifact,) = found.artifacts
    names = {entry.path for entry in artifact.manifest.contents}
    there = {"experiment.toml", "summary.json", "rounds.csv"}
    assert there <= names <= there | {"report.html"}


@pytest.mark.parametrize(("error", "code"), [(Stop(), 1), (KeyboardInterrupt(), 255)])
def test_one_that_stops_is_marked_and_goes_on_under_the_same_id(tmp_path, error, code):
    """Offline, what goes on is a folder of its own that has every round, for the service to take in place of the first."""
    experiment = small_experiment(rounds=4, tracker=OFFLINE)
    path = tmp_path / "run"
    with pytest.raises(type(error)):
        tracked.run(experiment, path, Stopper(2, error))
    (stopped,) = folders(path)
    assert stopped.exit_code == code
    assert stopped.artifacts == []
    tracked.go_on(experiment, path)
    first, second = folders(path)
    assert first.run.run_id == second.run.run_id
    assert second.rounds == tracked.recorded(path)
    assert second.exit_code == 0
