"""Modules that a process must not import, because each of them costs every start .1 to 1 s."""

import json
import subprocess
import sys

import pytest
from flwr.app import RecordDict

from fedssl.engine.local_grid import Apps
from fedssl.engine.plan import Wish
from fedssl.engine.ray.grid import RayGrid
from fedssl.exchange import protocol
from fedssl.server.app import serve
from tests.helpers import federation_of, small_experiment, small_toml
from tests.plugins import nosy

NEVER = {"IPython", "datasets", "matplotlib", "pandas", "sklearn", "sympy", "torchvision"}
NEVER |= {"scipy", "torch._dynamo", "torch._inductor", "torch.onnx"}
NEVER |= {"mlflow", "tensorboard", "wandb"}
"""Nothing that a small experiment on prepared data needs before its first round, in no process."""

EXTRA = {
    "IPython",
    "datasets",
    "flwr_datasets",
    "matplotlib",
    "pandas",
    "pyarrow",
    "ray",
    "sklearn",
}
EXTRA |= {"torchvision", "mlflow", "tensorboard", "wandb"}
"""What a deployed client or server does not have."""

after = """
import atexit, json, sys
atexit.register(lambda: print("\\n" + json.dumps(sorted(sys.modules))))
"""


without = """
import sys
from importlib.machinery import PathFinder

class Without(PathFinder):
    def find_spec(name, path=None, target=None):
        found = name.partition(".")[0] not in ABSENT
        return PathFinder.find_spec(name, path, target) if found else None

sys.meta_path = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""


def only_base(code: str, absent: set[str] = EXTRA) -> str:
    """Return code that runs as if some libraries were not installed."""
    return f"ABSENT = {absent!r}{without}{code}"


def modules_after(code: str) -> set[str]:
    """Return what a fresh process has imported when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", after + code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "command",
    [
        "--help",
        "--version",
        *(
            f"{name} --help"
            for name in ("run", "compare", "sweep", "report", "export", "predict", "runs")
        ),
    ],
)
def test_help_waits_for_nobody(command):
    found = modules_after(f"from fedssl.cli import app; app({command.split()})")
    assert found & (NEVER | {"flwr", "numpy", "pyarrow", "pydantic", "ray", "torch"}) == set()


def test_a_check_imports_what_it_needs_only(tmp_path):
    federation_of(small_experiment())  # prepares the data
    file = small_toml(tmp_path / "e.toml")
    found = modules_after(f"from fedssl.cli import app; app(['validate', {str(file)!r}])")
    assert "torch" in found
    assert found & (NEVER | {"pyarrow", "ray"}) == set()


@pytest.mark.parametrize(
    "sections",
    [
        *({"train": {"optimizer": kind}} for kind in ("sgd", "adam", "adamw", "lars")),
        *({"server": {"evaluator": kind}} for kind in ("knn", "linear_probe")),
    ],
    ids=lambda sections: str(sections).translate(str.maketrans("", "", "{}' ")),
)
def test_a_serial_run_imports_what_it_needs_only(tmp_path, sections):
    federation_of(small_experiment())
    file = small_toml(tmp_path / "e.toml", **sections)
    arguments = ["run", str(file), "--plain", "--out", str(tmp_path / "out")]
    found = modules_after(f"from fedssl.cli import app; app({arguments})")
    assert "fedssl.server.app" in found
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
    assert {"fedssl.clients.client_app", "torch"} <= found
    servers = {"fedssl.cli", "fedssl.record.run_directory", "fedssl.server.app"}
    assert found & (NEVER | servers) == set()


def test_the_base_install_trains_a_client_and_serves_rounds(tmp_path):
    """On a machine that has never seen the data: the client reads it, trains, and a server records two rounds."""
    file = small_toml(tmp_path / "e.toml", rounds=2)
    code = f"""
import os
from pathlib import Path
os.environ["FEDSSL_CACHE"] = {str(tmp_path / "cache")!r}
from flwr.app import Context, RecordDict
import fedssl.clients.client_app, fedssl.server.app
from fedssl.clients.local_data import simulated_federation
from fedssl.exchange import protocol
from fedssl.experiment.experiment import Experiment
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.training.network import build_network
from fedssl.record.run_directory import RunDirectory

experiment = Experiment.load(Path({str(file)!r}))
spec = simulated_federation(experiment).data.spec
network = build_network(experiment.model, experiment.method, spec, experiment.seed)
protocol.claim_identity(1)
config = protocol.request_config(experiment.to_client_json(), 0, 1, 2)
config[protocol.ROUND] = 1
arrays = protocol.to_record(network.state_dict())
content = RecordDict({{protocol.CONFIG: config, protocol.ARRAYS: arrays}})
context = Context(1, 2, {{"partition-id": 3}}, RecordDict(), {{}})
reply = fedssl.clients.client_app.app(protocol.new_message("train", protocol.node_of(0), content), context)
assert not reply.has_error(), reply.error
assert protocol.metrics_of(reply)["client"] == 3

directory = RunDirectory(Path({str(tmp_path / "run")!r}))
grid = SerialGrid(Apps(fedssl.clients.client_app.app), 6)
outcome = fedssl.server.app.serve(experiment, grid, [directory])
assert [row.clients_ok for row in outcome.rounds] == [3, 3]
"""
    assert modules_after(only_base(code)) & EXTRA == set()
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "partition.csv").exists()


INSTALL = "pip install 'fedssl[simulation]'"

REFUSED = {
    "--engine=ray": "error: engine.kind: 'ray' needs ray, which is not installed",
    "--engine=flower": "error: engine.kind: 'flower' needs ray, which is not installed",
    "--seeds=2": "error: run: the comparison of several runs needs pandas, which is not installed",
    "--set=data.source=mnist": "error: data.source: 'mnist' needs torchvision, which is not installed",
    "--set=model.kind=torchvision:resnet18": (
        "error: model.kind: 'torchvision:resnet18' needs torchvision, which is not installed"
    ),
}


def test_what_needs_an_extra_says_which_one(tmp_path):
    """One process for all, as each takes seconds to start; every one is refused with one line and exit 2."""
    file = small_toml(tmp_path / "e.toml")
    commands = [["run", str(file), option, "--plain"] for option in REFUSED]
    commands += [["validate", str(file), "--set", "engine.kind=ray"], ["show", str(file)]]
    commands += [["compare", str(tmp_path)]]
    code = f"""
import json
from tests.helpers import fedssl
results = [fedssl(*command) for command in {commands}]
print(json.dumps([[result.exit_code, result.output] for result in results]))
"""
    done = subprocess.run(
        [sys.executable, "-c", only_base(code)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    expected = [*REFUSED.values(), REFUSED["--engine=ray"]]
    expected.append("error: show: the picture needs matplotlib, which is not installed")
    expected.append("error: compare: the table needs pandas, which is not installed")
    results = json.loads(done.stdout.splitlines()[-1])
    # What is said of settings of a section that gets another kind, and of data before they are read.
    said = ("kept: ", "left out: ", "preparing ")
    lines = [
        [code, [line for line in output.splitlines() if not line.startswith(said)]]
        for code, output in results
    ]
    assert lines == [[2, [f"{text}; {INSTALL}"]] for text in expected]


def test_without_matplotlib_there_is_a_table_and_no_picture(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    arguments = ["run", str(file), "--seeds", "2", "--plain", "--out", str(tmp_path / "out")]
    code = f"from fedssl.cli import app; app({arguments})"
    done = subprocess.run(
        [sys.executable, "-c", only_base(code, {"matplotlib"})],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"picture: none without matplotlib ({INSTALL})" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*")) == [
        "comparison.csv",
        "comparison.html",
        "comparison_curves.csv",
    ]


def test_without_vega_there_is_a_record_and_no_page(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    code = f"""
from fedssl.cli import app
app(["run", {str(file)!r}, "--plain", "--out", {str(tmp_path / "out")!r}], standalone_mode=False)
app(["report", {str(tmp_path / "out")!r}])
"""
    done = subprocess.run(
        [sys.executable, "-c", only_base(code, {"vl_convert"})],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert f"there will be no report.html without vl-convert: {INSTALL}" in done.stderr
    assert (tmp_path / "out" / "summary.json").exists()
    assert not (tmp_path / "out" / "report.html").exists()
    assert done.returncode == 2, done.stdout + done.stderr
    assert "the report needs vl_convert, which is not installed" in done.stderr
