"""The example of docs/data.md: drawn blood cells of four sites, from folders to macro F1 and recall by class."""

import importlib.util
import json
from pathlib import Path

import pytest
from sklearn.metrics import f1_score

from fedssl import Run
from tests.helpers import fedssl, finished

ROOT = Path(__file__).parents[2]
EXPERIMENT = ROOT / "experiments" / "blood_cells.toml"
CLASSES = ["basophil", "eosinophil", "lymphocyte", "neutrophil"]


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Draw a fifth of the example's cells into the folder `cells` of an empty folder."""
    spec = importlib.util.spec_from_file_location("draw_cells", ROOT / "examples" / "draw_cells.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    folder = tmp_path_factory.mktemp("hospital")
    script.draw_folder(folder / "cells", share=0.2)
    return folder


def test_drawn_cells_become_a_federation_with_measures_for_uneven_classes(cells, monkeypatch):
    monkeypatch.chdir(cells)
    cut = ["--set", "rounds=2", "--set", "train.local_steps=1", "--set", "engine.kind=serial"]
    for name in ("supervised", "fixmatch"):
        method = ["--set", f"method.kind={name}", "--set", f"name={name}"]
        finished(fedssl("run", EXPERIMENT, *cut, *method, "--out", f"runs/{name}"))
    run = Run("runs/fixmatch")
    assert run.data["class_names"] == CLASSES
    assert run.data["shape"] == [3, 32, 32]
    partition = run.partition
    sites = partition[~partition.labeled].groupby("client").size()
    assert sites.index.tolist() == [0, 1, 2, 3]
    assert sites.max() > 2 * sites.min()  # sites have uneven numbers of cells
    held_out = run.federation.held_out
    guess = run.predict(held_out.images).argmax(1)
    macro = f1_score(held_out.labels, guess, average="macro")
    assert run.summary["ema_macro_f1"] == pytest.approx(macro)
    look = json.loads((run.path / "evaluation.json").read_text())
    assert len(look["models"]["ema"]["by_class"]["recall"]) == 4
    result = fedssl("compare", "runs", "--measure", "macro_f1", "--out", "comparison")
    finished(result)
    assert f"{macro * 100:.1f}" in result.output
    result = fedssl("predict", "runs/fixmatch", "cells/test/basophil")
    finished(result)
    assert "6 images whose class is known" in result.output
    assert "training images" not in result.output
    result = fedssl("predict", "runs/fixmatch", "cells/train")
    assert "all of these were training images of the run" in result.output


def test_the_experiments_comments_name_settings_that_exist():
    text = EXPERIMENT.read_text(encoding="utf-8")
    lines = [line.removeprefix("# ") for line in text.splitlines()]
    loose = [
        line.split(" = ")[0] for line in lines if line.startswith(("intensities", "validation"))
    ]
    assert loose == ["intensities", "validation"]
    known = fedssl("explain", "data.folder").output
    assert all(name in known for name in loose)
