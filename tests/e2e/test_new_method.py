"""A new method is one file: the test writes it into an empty folder, and runs it end to end."""

import sys

import pytest
from PIL import Image

from tests.helpers import fedssl, finished, in_a_process, refused, sha256, small_toml

METHOD = '''
"""Entropy minimization (Grandvalet & Bengio, NeurIPS 2004), with a memory of how often each image was shown."""

import torch
from pydantic import Field

from fedssl.methods import Loss, SemiSupervised, Views
from fedssl.methods.functional import entropy, supervised_loss
from fedssl.core.slots import Slot


class EntropyMinimization(SemiSupervised):
    """Make predictions on unlabeled images confident."""

    floor: float = Field(0.0, ge=0, description="entropy below which an image does not count, nats")

    def views(self):
        return Views(("weak",), ("strong",), self.unlabeled_ratio)

    def slots(self):
        return (Slot("shown", "client"),)

    def init_slot(self, name, fresh):
        return {"times": torch.zeros(len(fresh.shard))}

    def loss(self, network, batch, state, progress):
        supervised = supervised_loss(network, batch.labeled[0], batch.labels)
        logits = network(batch.unlabeled[0])
        each = entropy(logits)
        mask = (each > self.floor).float()
        total = supervised + self.unlabeled_weight * (each * mask).mean()
        times = state["shown"]["times"].index_add(0, batch.unlabeled_ids, mask)
        return Loss(total, logits.argmax(1), mask, {"shown": {"times": times}})
'''


@pytest.mark.timeout(300)
def test_one_file_is_a_method_on_every_engine(tmp_path, monkeypatch):
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "entropy_minimization.py").write_text(METHOD, encoding="utf-8")
    file = small_toml(tmp_path / "e.toml")
    settings = ["--set", "method.kind=mylab.entropy_minimization", "--set", "method.floor=0.1"]
    sums = set()
    monkeypatch.setattr(sys, "path", [*sys.path])
    for i, (engine, workers) in enumerate((("serial", 1), ("ray", 2), ("flower", 1))):
        out = tmp_path / f"run{i}"
        arguments = ("run", file, *settings, "--engine", engine, "--workers", workers, "--out", out)
        finished(fedssl(*arguments)) if engine == "serial" else in_a_process(*arguments)
        sums.add(sha256(out / "model.safetensors"))
        assert "entropy_minimization" in (out / "rounds.csv").read_text()
    assert len(sums) == 1
    sys.modules.pop("mylab.entropy_minimization", None)  # what is imported already is used
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Image.new("L", (8, 8)).save("image.png")
    for arguments in (("export", "run0", "--format", "safetensors"), ("predict", "run0", "image.png")):  # fmt: skip
        refused(fedssl(*arguments), "--plugins")
        result = fedssl(*arguments, "--plugins")
        sys.modules.pop("mylab.entropy_minimization", None)  # what is imported already is used
        assert result.exit_code == 0, result.output
    wrong = [*settings[:3], "method.flor=0.1"]
    refused(fedssl("validate", file, *wrong), "floor")
