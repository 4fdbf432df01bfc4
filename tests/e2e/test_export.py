"""The output of `fedssl export`, used as by a stranger: without this package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import nn

from fedssl import Run, RunFailed, run
from fedssl.app.simulation import Engine
from fedssl.record.run_directory import RunDirectory
from fedssl.views import export as exporting
from tests.app.test_library import Stopper
from tests.helpers import fedssl, refused, small_experiment

MODELS = [
    {"kind": "cnn", "widths": [8, 16], "hidden": 16},
    {"kind": "cnn", "widths": [8], "hidden": 0, "norm": "batch", "dropout": 0.5},
    {"kind": "wrn", "depth": 10, "width": 1, "norm": "static"},
    {"kind": "torchvision:shufflenet_v2_x0_5", "resize": 32},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    return run(small_experiment(rounds=1), out=tmp_path_factory.mktemp("e") / "run", progress=False)


def images(count: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(count))


def logits_of(found: Run, given: torch.Tensor, *, average: bool) -> torch.Tensor:
    with torch.no_grad():
        return found.model(average=average)(found.spec.normalize(given))


def check_metadata(said: dict[str, str], found: Run) -> None:
    assert json.loads(said["class_names"]) == found.data["class_names"]
    assert json.loads(said["image_shape"]) == [1, 8, 8]
    assert (json.loads(said["mean"]), json.loads(said["std"])) == ([0.305], [0.376])
    assert said["run"] == "small seed 0"
    assert said["fedssl_version"] == found.environment["versions"]["fedssl"]


@pytest.mark.parametrize("weights", ["ema", "global"])
def test_onnx_computes_the_models_logits_of_any_batch(weights, finished, tmp_path):
    file = tmp_path / "model.onnx"
    result = fedssl("export", finished.path, "--format", "onnx", "--out", file, "--model", weights)
    assert result.exit_code == 0, result.output
    session = onnxruntime.InferenceSession(file)
    for count in (1, 5, 300):
        (found,) = session.run(None, {"images": images(count).numpy()})
        wanted = logits_of(finished, images(count), average=weights == "ema")
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    check_metadata(said, finished)
    assert said["weights"].startswith("moving average" if weights == "ema" else "global")
    onnx.checker.check_model(onnx.load(file), full_check=True)


def test_torchscript_needs_nothing_of_ours(finished, tmp_path):
    file = tmp_path / "model.pt"
    result = fedssl("export", finished.path, "--format", "torchscript", "--out", file)
    assert result.exit_code == 0, result.output
    np.save(tmp_path / "in.npy", images(5).numpy())
    code = f"""
import json, os, sys
import numpy as np, torch
os.chdir({str(tmp_path)!r})
files = {{"metadata.json": ""}}
model = torch.jit.load("model.pt", _extra_files=files)
with torch.no_grad():
    np.save("out.npy", model(torch.from_numpy(np.load("in.npy"))).numpy())
assert not [name for name in sys.modules if name.startswith("fedssl")]
print(json.dumps(json.loads(files["metadata.json"])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    check_metadata(json.loads(done.stdout), finished)
    wanted = logits_of(finished, images(5), average=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-4, atol=1e-5)


def test_safetensors_hold_the_weights_and_say_whose(finished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fedssl("export", finished.path, "--format", "safetensors").exit_code == 0
    with safe_open("small.safetensors", "np") as file:
        check_metadata(file.metadata(), finished)
        assert json.loads(file.metadata()["model"])["widths"] == [8, 16]
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    for name, tensor in finished.model().state_dict().items():
        assert np.array_equal(held.pop(name), tensor.numpy())
    assert not held


@pytest.fixture(
    scope="module", params=MODELS, ids=lambda model: f"{model['kind']}-{model.get('norm')}"
)
def trained(request, tmp_path_factory) -> Run:
    """A run of each kind of network, with random weights and statistics that make a comparison count."""
    experiment = small_experiment(rounds=1)
    experiment = experiment.from_dict(experiment.to_dict() | {"model": request.param})
    return run(experiment, out=tmp_path_factory.mktemp("trained") / "run", progress=False)


@pytest.mark.parametrize("kind", sorted(exporting.FORMATS))
def test_every_kind_of_network_is_written(trained, kind):
    """`export` compares the logits by itself."""
    assert len(exporting.export(trained, kind)) > 1000


class Undone(nn.Module):
    """Computes something else."""

    def forward(self, given):
        return given.sum((1, 2, 3)).unsqueeze(1).expand(-1, 10)


@pytest.mark.parametrize("kind", sorted(exporting.FORMATS))
def test_a_file_that_computes_something_else_is_an_error_and_is_not_written(
    kind, finished, tmp_path, monkeypatch
):
    form = exporting.FORMATS[kind]
    broken = exporting.Format(form.suffix, (), form.write, lambda content, model: Undone())
    monkeypatch.setitem(exporting.FORMATS, kind, broken)
    result = fedssl("export", finished.path, "--format", kind, "--out", tmp_path / "m")
    assert result.exit_code == 1
    assert "computes other logits" in result.output
    assert not list(tmp_path.iterdir())


def test_a_network_that_depends_on_the_batch_is_found_out(finished, monkeypatch):
    class Batchwise(nn.Module):
        def forward(self, given):
            return given.flatten(1)[:, :10] * float(len(given))

    monkeypatch.setattr(exporting, "build_classifier", lambda *given: Batchwise())
    with pytest.raises(RunFailed, match="computes other logits"):
        exporting.export(finished, "torchscript")


def test_what_cannot_be_written_is_refused(finished, tmp_path):
    result = fedssl(
        "export", finished.path, "--format", "safetensors", "--out", tmp_path / "no" / "m"
    )
    refused(result, "--out", "cannot write")
    assert fedssl("export", finished.path, "--format", "pickle").exit_code == 2


def test_a_run_that_is_not_finished_has_its_newest_checkpoints_model_or_none(tmp_path):
    experiment = small_experiment(rounds=3)
    for after in (1, 2):
        out = tmp_path / f"after-{after}"
        with Engine() as engine, pytest.raises(KeyboardInterrupt):
            engine.run(experiment, [RunDirectory(out), Stopper(after)])
    result = fedssl(
        "export", tmp_path / "after-2", "--format", "safetensors", "--out", tmp_path / "m"
    )
    assert result.exit_code == 0, result.output
    assert "not finished" in result.output
    checkpoints = tmp_path / "after-1" / "checkpoint"
    for file in checkpoints.glob("round-*/*"):
        file.unlink()
    refused(fedssl("export", tmp_path / "after-1", "--format", "onnx"), "has no model yet")


def test_what_is_there_and_no_older_export_is_not_written_over(finished, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    for out in (tmp_path / "README.md", finished.path / "model.safetensors", Path("/dev/full")):
        before = out.read_bytes() if out.is_file() else None
        kind = ("--format", "safetensors")
        refused(fedssl("export", finished.path, *kind, "--out", out), "is there already")
        assert before is None or out.read_bytes() == before
    for _ in range(2):
        result = fedssl("export", finished.path, *kind, "--out", tmp_path / "m.safetensors")
        assert result.exit_code == 0, result.output
    rounds = finished.path / "rounds.csv"
    refused(fedssl("predict", finished.path, tmp_path, "--out", rounds), "is there already")
