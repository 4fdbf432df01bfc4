"""Runs that a judge of features judged, afterwards: the model predicts as it was judged, and is exported with its probe."""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from fedssl import Run, run
from fedssl.core.errors import InputError
from fedssl.views.export import export
from fedssl.views.reports.material import read_material
from fedssl.views.reports.run_report import report_page
from tests.helpers import fedssl, refused, small_experiment, small_toml

METHOD = {"kind": "tests.plugins.contrasting"}


def judged(folder, evaluator) -> Run:
    experiment = small_experiment(
        rounds=1, method=METHOD, model={"norm": "batch"}, server={"evaluator": evaluator}
    )
    done = run(experiment, out=folder / "run", progress=False)
    return Run(done.path, plugins=True)


@pytest.fixture(scope="module")
def probed(tmp_path_factory) -> Run:
    return judged(tmp_path_factory.mktemp("probe"), "linear_probe")


@pytest.fixture(scope="module")
def by_neighbors(tmp_path_factory) -> Run:
    return judged(tmp_path_factory.mktemp("knn"), {"kind": "knn", "layers": ["projection"]})


@pytest.mark.parametrize("name", ["probed", "by_neighbors"])
@pytest.mark.parametrize("average", [True, False])
def test_the_model_predicts_as_it_was_judged(name, average, request):
    found = request.getfixturevalue(name)
    held_out = found.federation.held_out
    probs = found.predict(held_out.images, average=average)
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    column = "ema_accuracy" if average else "server_accuracy"
    assert (probs.argmax(1) == held_out.labels).mean() == found.rounds[column].iloc[-1]
    again = found.predict(held_out.images, average=average)
    assert np.array_equal(probs, again)  # the judge learns the same anew


def test_the_closer_look_is_the_judges(probed):
    looked = json.loads((probed.path / "evaluation.json").read_text())
    confusion = np.array(looked["models"]["ema"]["confusion"])
    assert np.trace(confusion) / confusion.sum() == probed.rounds.ema_accuracy.iloc[-1]


def test_predict_names_the_judge(probed, tmp_path):
    held_out = probed.federation.held_out
    np.savez(tmp_path / "d.npz", images=held_out.images[:, 0], labels=held_out.labels)
    result = fedssl("predict", probed.path, tmp_path / "d.npz", "--plugins")
    assert result.exit_code == 0, result.output
    share = probed.rounds.ema_accuracy.iloc[-1]
    assert f"accuracy (linear probe, 40 labels) {share * 100:.1f} %" in result.output


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "onnx"])
def test_a_probe_is_exported_as_trunk_and_linear_layer(kind, probed, tmp_path):
    content = export(probed, kind)  # which checks that the file computes the same logits
    (tmp_path / "model").write_bytes(content)
    if kind == "safetensors":
        weights = load_file(tmp_path / "model")
        assert weights["head.weight"].shape == (10, 16)
        assert all(name.startswith(("trunk.", "head.")) for name in weights)


def test_neighbors_cannot_be_exported(by_neighbors, tmp_path):
    with pytest.raises(InputError, match=r"server\.evaluator: is 'knn'.*fedssl predict"):
        export(by_neighbors, "safetensors")
    command = ("export", by_neighbors.path, "--format", "safetensors", "--plugins")
    refused(fedssl(*command, "--out", tmp_path / "m.safetensors"), "server.evaluator")


def test_the_report_and_the_card_name_the_judge(probed):
    page = report_page(read_material(probed, None))
    assert "(linear probe, 40 labels)" in page.figures[0].remark
    accuracy = next(chart for chart in page.charts if chart.name == "accuracy")
    assert "Judged by: linear probe, 40 labels (phase 1)." in accuracy.note
    assert "accuracy (linear probe, 40 labels)" in probed._repr_html_()


@pytest.mark.parametrize(("method", "gives"), [("fixmatch", True), ("supervised", False)])
def test_only_methods_that_give_pseudo_labels_have_words_about_them(method, gives, tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=1, method=method)
    done = fedssl("run", file, "--plain", "--out", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert ("pseudo-labels" in done.output) is gives
    assert ("pseudo-labels" in Run(tmp_path / "run")._repr_html_()) is gives
