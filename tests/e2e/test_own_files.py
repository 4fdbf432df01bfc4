"""A file of one's own beside the experiment: found from any folder, on every engine, and by every command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fedssl.core.processes import path_for_other_processes
from tests.helpers import command, refused, sha256, small_toml
from tests.helpers import fedssl as in_this_process

SHARP = """
from dataclasses import replace

from fedssl.methods.fixmatch import FixMatch


class Sharp(FixMatch):
    \"\"\"FixMatch whose loss is doubled.\"\"\"

    def loss(self, network, batch, state, progress):
        loss = super().loss(network, batch, state, progress)
        return replace(loss, total=2 * loss.total)
"""

ROOMS = ("clients", "strategies")
"""Our rooms at the top of the repository, whose names are free for folders of the user's."""


def fedssl(folder: Path, *arguments: object) -> str:
    """Run a command in a folder, as a user there does, and return what it says."""
    environment = {**os.environ, "PYTHONPATH": path_for_other_processes()}
    done = subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def with_own_rooms(folder: Path, *, packages: bool) -> None:
    """Put folders into a folder that are called as ours and must never be imported."""
    for room in ROOMS:
        (folder / room).mkdir(parents=True)
        if packages:
            (folder / room / "__init__.py").write_text("raise RuntimeError('the user's own')")


@pytest.fixture
def lab(tmp_path):
    """Return an experiment file with a method beside it, in a folder with rooms of its own, and another such folder."""
    with_own_rooms(tmp_path / "lab", packages=True)
    with_own_rooms(tmp_path / "elsewhere", packages=False)
    file = small_toml(tmp_path / "lab" / "e.toml", rounds=2)
    (tmp_path / "lab" / "sharp.py").write_text(SHARP)
    return file, tmp_path / "elsewhere"


@pytest.mark.timeout(600)
def test_every_engine_finds_the_file_from_another_folder(lab):
    file, elsewhere = lab
    kind = ("--set", "method.kind=./sharp.py:Sharp")
    for engine in ("serial", "ray"):
        fedssl(elsewhere, "run", file, *kind, "--engine", engine, "--workers", 2, "--out", engine)
    # Two runs side by side, each in a process of its own.
    fedssl(elsewhere, "run", file, *kind, "--seeds", 2, "--jobs", 2, "--out", "jobs")
    runs = [elsewhere / name for name in ("serial", "ray", "jobs/small-seed0")]
    assert len({sha256(run / "model.safetensors") for run in runs}) == 1
    assert {next(read_kinds(run)) for run in runs} == {"sharp.py"}


def read_kinds(run: Path):
    for line in (run / "experiment.toml").read_text().splitlines():
        if line.startswith("kind = ") and ".py" in line:
            yield line.split('"')[1]


@pytest.mark.timeout(600)
def test_a_run_goes_on_by_its_folder_and_is_looked_at_from_anywhere(lab):
    """The record says where the module was, and that it has changed since."""
    file, elsewhere = lab
    settings = ("--set", "method.kind=sharp.py", "--set", "server.checkpoint_every=1")
    environment = {**os.environ, "PYTHONPATH": path_for_other_processes()}
    stopped = f"""
import os
from fedssl.record.run_directory import RunDirectory
whole = RunDirectory.round_ended
def stop(self, end):
    whole(self, end)
    if end.row.round == 1:
        os._exit(9)
RunDirectory.round_ended = stop
from fedssl.cli import app
app(["run", {str(file)!r}, *{settings!r}, "--plain", "--out", "killed"])
"""
    done = subprocess.run(
        [sys.executable, "-c", stopped], cwd=elsewhere, env=environment, timeout=300
    )
    assert done.returncode == 9
    fedssl(elsewhere, "run", file, *settings, "--out", "whole")
    # Another current folder than the one in which the run began, and a module with a new comment.
    with (file.parent / "sharp.py").open("a") as module:
        module.write("# a comment\n")
    killed, whole = elsewhere / "killed", elsewhere / "whole"
    said = fedssl(elsewhere.parent, "run", killed, "--resume", "--plain")
    assert "goes on after round 1" in said
    assert "error:" not in said
    assert (
        f"warning: small seed 0: {file.parent / 'sharp.py'} is not as it was when the run began"
        in said
    )
    assert sha256(killed / "model.safetensors") == sha256(whole / "model.safetensors")
    Image.new("L", (8, 8)).save(elsewhere / "image.png")
    refused(in_this_process("predict", killed, elsewhere / "image.png"), "--plugins")
    for arguments in (("predict", killed, "elsewhere/image.png"), ("report", killed)):
        fedssl(elsewhere.parent, *arguments, "--plugins")


def test_a_record_names_no_module_within_itself(tmp_path):
    """A stranger's record may hold a module; it is not searched there."""
    from fedssl.record.own_modules import folders_of_own_modules

    run, beside = tmp_path / "run", tmp_path / "beside"
    for folder in (run / "code", beside):
        folder.mkdir(parents=True)
    named = {"run": run / "code", "gone": tmp_path / "gone", "beside": beside}
    modules = {
        name: {"folder": str(folder), "file": "x.py", "sha256": ""}
        for name, folder in named.items()
    }
    (run / "environment.json").write_text(json.dumps({"own_modules": modules}))
    assert folders_of_own_modules(run) == [beside]
    (run / "environment.json").write_text("{")
    assert folders_of_own_modules(run) == []


@pytest.mark.parametrize("packages", [True, False])
def test_flower_loads_our_apps_beside_folders_of_the_same_names(tmp_path, packages):
    """Flower puts the folder of a submitted app in front of the import path (flwr 1.41)."""
    with_own_rooms(tmp_path / "app", packages=packages)
    code = f"""
from flwr.supercore.object_ref import load_app
for name in ("fedssl.clients.client_app:app", "fedssl.server.app:app"):
    load_app(name, ImportError, {str(tmp_path / "app")!r})
import sys
assert sys.path[0] == {str(tmp_path / "app")!r}
from fedssl.experiment.families import STRATEGIES
print(len(STRATEGIES.names()))
"""
    environment = {**os.environ, "PYTHONPATH": path_for_other_processes()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "app",
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 5
