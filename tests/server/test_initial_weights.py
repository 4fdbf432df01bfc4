"""A run that begins with the weights of a file: the first model is exactly that, or the file is refused."""

import hashlib
import json

import numpy as np
import pytest
import tomli_w
import torch
from safetensors.numpy import load_file, save_file

from fedssl.app.simulation import check_experiment
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.models.weights_file import torchvision_names
from fedssl.server.app import serve
from fedssl.server.initial_weights import load_initial_weights
from tests.helpers import federation_of, fedssl, finished, small_experiment, small_toml
from tests.resuming import Stop, Stopper, bits, go_on, run

SPEC = federation_of(small_experiment()).data.spec


def arrays_of(module):
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.fixture
def weights(tmp_path):
    """Return a file of weights of the small experiment's classifier, drawn with another seed, and the weights."""
    other = small_experiment(seed=7)
    arrays = arrays_of(other.build_network(SPEC))
    file = tmp_path / "w.safetensors"
    save_file(arrays, file)
    return file, arrays


def first_requests(experiment):
    """Return the arrays and the text of the settings that the clients of round 1 get."""
    seen = []

    def spy(message, context):
        seen.append(
            (
                protocol.arrays_of(message.content, protocol.ARRAYS),
                protocol.read_request(message).experiment,
            )
        )
        return app(message, context)

    serve(experiment, SerialGrid(Apps(spy), 6), [])
    return seen[: experiment.federation.sample]


def same(found, expected):
    assert set(found) == set(expected)
    return all(np.array_equal(found[name], expected[name]) for name in expected)


def test_the_first_model_is_the_files_and_clients_do_not_learn_of_the_file(weights):
    file, arrays = weights
    plain = first_requests(small_experiment(rounds=1))
    begun = first_requests(small_experiment(rounds=1, model={"weights": str(file)}))
    assert all(same(got, arrays) for got, _ in begun)
    assert not any(same(got, arrays) for got, _ in plain)
    assert [text for _, text in begun] == [text for _, text in plain]


def test_the_record_names_the_file_and_a_run_is_a_file_too(weights, tmp_path):
    file, _ = weights
    toml = small_toml(tmp_path / "e.toml", rounds=1, model={"weights": str(file)})
    finished(fedssl("run", toml, "--out", tmp_path / "first"))
    recorded = json.loads((tmp_path / "first" / "environment.json").read_text())["initial_weights"]
    assert recorded == {
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    again = small_experiment(rounds=1, model={"weights": str(tmp_path / "first")})
    expected = load_file(tmp_path / "first" / "ema.safetensors")
    assert all(same(got, expected) for got, _ in first_requests(again))


def test_a_run_that_goes_on_does_not_begin_again(weights, tmp_path):
    file, _ = weights
    experiment = small_experiment(model={"weights": str(file)})
    run(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "stopped", Stopper(1))
    file.unlink()
    assert go_on(experiment, tmp_path / "stopped").snapshot.round == 1
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")


def test_the_classifier_within_a_methods_network_begins_with_the_weights(weights, tmp_path):
    """SimCLR trains a trunk and a projection head; the run's weights are found by the names of its classifier."""
    file, arrays = weights
    pretraining = {"method": {"kind": "simclr", "projection": [12, 6]}}
    settings = small_experiment(model={"weights": str(file), "new_head": True}, **pretraining)
    network = settings.build_network(SPEC)
    before = arrays_of(network)
    load_initial_weights(settings.plans[0], network)
    trunk = arrays_of(settings.method.classifier(network).trunk)
    assert same(trunk, {k.removeprefix("trunk."): a for k, a in arrays.items() if "trunk" in k})
    after = arrays_of(network)
    projection = [name for name in after if "projection" in name]
    assert projection
    assert all(np.array_equal(before[name], after[name]) for name in projection)
    toml = small_toml(tmp_path / "e.toml", rounds=1, **pretraining)
    finished(fedssl("run", toml, "--out", tmp_path / "pre"))
    supervised = small_experiment(
        method={"kind": "supervised"}, model={"weights": str(tmp_path / "pre"), "new_head": True}
    )
    network = supervised.build_network(SPEC)
    load_initial_weights(supervised.plans[0], network)
    recorded = load_file(tmp_path / "pre" / "ema.safetensors")
    names = {name for name in arrays_of(network) if name.startswith("trunk.")}
    assert names
    for name in names:
        (source,) = (array for key, array in recorded.items() if key.endswith(name))
        assert np.array_equal(network.state_dict()[name].numpy(), source)


def write_record(folder, arrays, **kinds):
    """Write what a finished run of a user's own method or model leaves of its network."""
    folder.mkdir()
    table = small_experiment().to_dict()
    for section, kind in kinds.items():
        table[section] = {"kind": kind}
    (folder / "experiment.toml").write_text(tomli_w.dumps(table), encoding="utf-8")
    facts = {"shape": SPEC.shape, "num_classes": SPEC.num_classes, "mean": SPEC.mean, "std": SPEC.std, "flips": SPEC.flips}  # fmt: skip
    (folder / "data.json").write_text(json.dumps(facts))
    (folder / "summary.json").write_text("{}")
    save_file(arrays, folder / "ema.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("place", "kinds"),
    [
        ("", {"method": "mylab.none"}),
        ("student.", {"method": "none_of_mine.py"}),
        ("", {"model": "mylab.none"}),
        ("inner.student.", {"method": "mylab.none", "model": "mylab.none"}),
    ],
)
def test_the_weights_of_a_run_with_ones_own_code_are_taken_by_their_names(
    weights, tmp_path, place, kinds
):
    _, arrays = weights
    network = {place + name: array for name, array in arrays.items()}
    other = {} if "model" in kinds else {"projection.0.weight": np.ones((2, 2), np.float32)}
    run = write_record(tmp_path / "own", network | other, **kinds)
    settings = small_experiment(model={"weights": run})
    begun = settings.build_network(SPEC)
    load_initial_weights(settings.plans[0], begun)
    assert same(arrays_of(begun), arrays)


def test_two_classifiers_in_a_run_of_ones_own_method_are_not_guessed_between(weights, tmp_path):
    _, arrays = weights
    both = {f"{place}.{name}": a for place in ("student", "teacher") for name, a in arrays.items()}
    run = write_record(tmp_path / "own", both, method="mylab.none")
    settings = small_experiment(model={"weights": run})
    with pytest.raises(InputError, match=r"only mylab\.none knows.*fedssl export .* --plugins"):
        load_initial_weights(settings.plans[0], settings.build_network(SPEC))


def test_a_head_of_other_classes_is_left_out_only_if_that_is_said(weights):
    file, arrays = weights
    wide = {name: np.concatenate([a, a]) if "head" in name else a for name, a in arrays.items()}
    save_file(wide, file)
    with pytest.raises(InputError, match=r"head.*\(20.*\(10.*set model.new_head = true"):
        check_experiment(small_experiment(model={"weights": str(file)}))
    settings = small_experiment(model={"weights": str(file), "new_head": True})
    network = settings.build_network(SPEC)
    drawn = arrays_of(network.head)
    load_initial_weights(settings.plans[0], network)
    assert same(arrays_of(network.head), drawn)
    assert same(
        arrays_of(network.trunk),
        {k.removeprefix("trunk."): a for k, a in arrays.items() if k.startswith("trunk.")},
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: {n: v for n, v in a.items() if n != min(a)}, "is not in them"),
        (lambda a: {**a, "more": np.zeros(2)}, "more is not in the model"),
        (lambda a: {n: v * np.float32("nan") for n, v in a.items()}, "is not finite"),
        (lambda a: {n: v[:1] for n, v in a.items()}, r"in the model.*\(and .* more\)"),
    ],
    ids=["missing", "more", "not finite", "other shapes"],
)
def test_weights_that_do_not_fit_are_refused_before_the_run(weights, change, said):
    file, arrays = weights
    save_file(change(arrays), file)
    with pytest.raises(InputError, match=f"model.weights: .*does not fit the model: .*{said}"):
        check_experiment(small_experiment(model={"weights": str(file)}))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.safetensors", "there is no file /.*nowhere.safetensors"),
        ("damaged.safetensors", "cannot be read"),
        ("model.pth", "is no .safetensors file"),
        ("folder", "is a folder without ema.safetensors"),
        ("torchvision:DEFAULT", "but the model is 'cnn'"),
    ],
)
def test_a_file_that_cannot_be_taken_is_one_message(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    for file in ("damaged.safetensors", "model.pth"):
        (tmp_path / file).write_text("no weights")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=f"model.weights: .*{said}"):
        check_experiment(small_experiment(model={"weights": name}))


def test_a_new_head_without_weights_and_weights_of_a_later_phase_are_refused(weights):
    with pytest.raises(InputError, match="is true, but there are no weights"):
        check_experiment(small_experiment(model={"new_head": True}))
    later = [{"rounds": 1}, {"rounds": 1, "model": {"weights": str(weights[0])}}]
    with pytest.raises(InputError, match=r"phases\[1\].model.weights: a phase after the first"):
        small_experiment(rounds=None, phases=later)
    both = [{"rounds": 1}, {"rounds": 1, "method": {"kind": "supervised"}}]
    check_experiment(small_experiment(rounds=None, phases=both, model={"weights": str(weights[0])}))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "squeezenet1_1"])
def test_torchvisions_weights_are_taken_where_they_are_at_hand(tmp_path, monkeypatch, name):
    """The file here is drawn, in the place and with the names of the one that torch would have downloaded."""
    from torchvision import models

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    section = {"kind": f"torchvision:{name}", "resize": 32, "weights": "torchvision:DEFAULT"}
    with pytest.raises(InputError, match=f"are not on this machine, .*{tmp_path}/checkpoints"):
        check_experiment(small_experiment(model=section))
    known = models.get_model_weights(name)
    file = tmp_path / "checkpoints" / known["DEFAULT"].url.rpartition("/")[2]
    file.parent.mkdir()
    backbone = models.get_model(name, weights=None)
    torch.save(backbone.state_dict(), file)
    with pytest.raises(InputError, match="to leave their head out"):
        check_experiment(small_experiment(model=section))
    settings = small_experiment(model={**section, "new_head": True})
    network = settings.build_network(SPEC)
    load_initial_weights(settings.plans[0], network)
    names = torchvision_names(settings.model.kind)
    state = network.state_dict()
    assert set(names.values()) == set(state)
    for theirs, tensor in backbone.state_dict().items():
        if not names[theirs].startswith("head."):
            assert torch.equal(state[names[theirs]], tensor)
    with pytest.raises(InputError, match="has no weights 'IMAGENET9'"):
        check_experiment(small_experiment(model={**section, "weights": "torchvision:IMAGENET9"}))
