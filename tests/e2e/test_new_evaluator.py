"""A new evaluator is one file: the test writes it into an empty folder, and runs it end to end."""

import json
import sys

import pandas as pd
import pytest
from PIL import Image

from tests.helpers import fedssl, finished, in_a_process, refused, sha256, small_toml

EVALUATOR = '''
"""The nearest class mean of features (Snell et al., NeurIPS 2017)."""

import torch
from pydantic import Field

from fedssl.metrics.evaluators.base import FeatureEvaluator


class NearestMean(FeatureEvaluator):
    """Name the class whose mean is nearest."""

    sharpness: float = Field(1.0, gt=0, description="how fast scores fall with the distance")

    def learn_layer(self, features, labels, num_classes):
        return {"means": torch.stack([features[labels == c].mean(0) for c in range(num_classes)])}

    def score_layer(self, learned, features):
        return -self.sharpness * torch.cdist(features, learned["means"])
'''


@pytest.mark.timeout(300)
def test_one_file_is_an_evaluator_on_every_engine(tmp_path, monkeypatch):
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "nearest_mean.py").write_text(EVALUATOR, encoding="utf-8")
    file = small_toml(tmp_path / "e.toml")
    settings = ["--set", "server.evaluator.kind=mylab.nearest_mean"]
    settings += ["--set", "server.evaluator.sharpness=2.0"]
    tables = set()
    monkeypatch.setattr(sys, "path", [*sys.path])
    for i, engine in enumerate(("serial", "ray")):
        out = tmp_path / f"run{i}"
        arguments = ("run", file, *settings, "--engine", engine, "--workers", 2, "--out", out)
        finished(fedssl(*arguments)) if engine == "serial" else in_a_process(*arguments)
        facts = json.loads((out / "data.json").read_text())
        assert facts["judged_by"] == ["nearest mean, 40 labels, sharpness = 2.0"]
        rounds = pd.read_csv(out / "rounds.csv")
        tables.add(rounds[["server_accuracy", "server_loss", "ema_accuracy"]].to_csv())
        tables.add(sha256(out / "numbers.csv"))
    assert len(tables) == 2
    sys.modules.pop("mylab.nearest_mean", None)  # what is imported already is used
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Image.new("L", (8, 8)).save("image.png")
    refused(fedssl("predict", "run0", "image.png"), "--plugins")
    assert fedssl("predict", "run0", "image.png", "--plugins").exit_code == 0
    refused(fedssl("export", "run0", "--format", "safetensors", "--plugins"), "linear layer")
    sys.modules.pop("mylab.nearest_mean", None)
    refused(fedssl("validate", file, *settings[:3], "server.evaluator.sharpnes=1"), "sharpness")
