"""What a process must not import: each of these costs every start a tenth of a second to a second."""

import json
import subprocess
import sys

import pytest
from flwr.app import RecordDict

from fedssl import protocol
from fedssl.engine.local_grid import Apps
from fedssl.engine.plan import Wish
from fedssl.engine.ray_grid import RayGrid
from strategies.server_app import serve
from tests.helpers import federation_of, small_experiment, small_toml
from tests.plugins import nosy

NEVER = {"IPython", "datasets", "matplotlib", "pandas", "sklearn", "sympy", "torchvision"}
NEVER |= {"scipy", "torch._dynamo", "torch._inductor", "torch.onnx"}
"""Nothing that a small experiment on prepared data needs before its first round, in no process."""

after = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
"""


def modules_after(code: str) -> set[str]:
    """Return what a fresh process has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", after + code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("command", ["--help", "--version", "run --help"])
def test_help_waits_for_nobody(command):
    found = modules_after(f"from fedssl.cli import app; app({command.split()})")
    assert found & (NEVER | {"flwr", "numpy", "pyarrow", "pydantic", "ray", "torch"}) == set()


def test_a_check_imports_what_it_needs_only(tmp_path):
    federation_of(small_experiment())  # prepares the data, which takes scikit-learn
    file = small_toml(tmp_path / "e.toml")
    found = modules_after(f"from fedssl.cli import app; app(['validate', {str(file)!r}])")
    assert "torch" in found
    assert found & (NEVER | {"pyarrow", "ray"}) == set()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_serial_run_imports_what_it_needs_only(tmp_path, optimizer):
    federation_of(small_experiment())
    file = small_toml(tmp_path / "e.toml", train={"optimizer": optimizer})
    arguments = ["run", str(file), "--plain", "--out", str(tmp_path / "out")]
    found = modules_after(f"from fedssl.cli import app; app({arguments})")
    assert "strategies.server_app" in found
    assert found & (NEVER | {"ray"}) == set()


def test_a_worker_imports_what_it_needs_only():
    """A round is trained first: the worker has then imported all that it ever will."""
    experiment = small_experiment(rounds=1)
    federation_of(experiment)
    grid = RayGrid(Apps(nosy.app), 6, Wish(1))
    try:
        serve(experiment, grid, [])
        message = protocol.new_message("query", protocol.node_of(0), RecordDict())
        (reply,) = grid.send_and_receive([message])
    finally:
        grid.close()
    found = set(reply.content["config"]["modules"])
    assert {"clients.client_app", "torch"} <= found
    servers = {"fedssl.cli", "fedssl.record.run_directory", "strategies.server_app"}
    assert found & (NEVER | servers) == set()
