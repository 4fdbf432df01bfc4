"""FedEMA and FedU: what a client takes from its own last weights, and what from the received model."""

import numpy as np
import pytest
import torch

from fedssl.clients.client_app import app
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.methods.base import METHODS, Fresh, Progress
from fedssl.methods.byol import BYOL
from fedssl.methods.divergence import change, distance, encoder_parameters, predictor_parameters
from fedssl.methods.fedema import FedEMA
from fedssl.methods.fedu import FedU
from fedssl.methods.functional import snapshot
from fedssl.methods.projection import Encoder
from fedssl.server.app import serve
from tests.helpers import kept_states, small_experiment
from tests.methods.examples import (
    PROGRESS,
    SPEC,
    batch_for,
    learner,
    network_of,
    shard,
    state_of,
)

KINDS = ["fedema", "fedu"]
HEAD = "classifier.head."


def filled(network, value):
    """Set every parameter of a network to a value, and every statistic to the value's negative."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
        for buffer in network.buffers():
            buffer.fill_(-value)
    return network


def in_round(network, state, round=2):
    return learner(network, state, progress=Progress(round, 100, 0, 1))


def trained_last(method, own):
    """Return the state of a client whose first round ended with these weights."""
    state = state_of(method, own)
    training = in_round(own, state, round=1)
    method.begin(training)
    method.end(training)
    return state


def moved_encoder(network, by):
    """Move the encoder of a network to an Euclidean distance."""
    parameters = encoder_parameters(network).values()
    size = sum(p.numel() for p in parameters)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(by / size**0.5)
    return network


def begun(method, own, received, round=2):
    """Return the share of its own weights with which a client begins, after a round that ended with `own`."""
    state = trained_last(method, own)
    method.begin(in_round(received, state, round))
    return float(state["last"]["own_share"])


# The divergence


def test_the_distance_is_euclidean_over_all_tensors():
    first = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])}
    zero = {"a": torch.zeros(2), "b": torch.zeros(1, 1), "predictor": torch.ones(3)}
    assert float(distance(first, zero)) == pytest.approx(5)


def test_the_change_is_a_mean_over_kernels():
    """Kernels that move by 3 and by 1 have the mean 2; no other tensor counts, unless there is no kernel."""
    before = {"conv": torch.zeros(1, 1, 3, 3), "late": torch.zeros(1, 1, 1, 1), "bias": torch.zeros(4)}  # fmt: skip
    after = {"conv": torch.ones(1, 1, 3, 3), "late": torch.ones(1, 1, 1, 1), "bias": torch.ones(4)}
    assert float(change(before, after)) == pytest.approx(2)
    bias = {"bias": before["bias"]}
    assert float(change(bias, {"bias": after["bias"]})) == pytest.approx(2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_predictor_does_not_count_as_distance(kind):
    method = METHODS.build({"kind": kind, "divergence": "received"})
    network = network_of(method)
    state = trained_last(method, network)
    with torch.no_grad():
        for parameter in predictor_parameters(network).values():
            parameter.add_(1.0)
    method.begin(in_round(network, state))
    assert state["last"]["divergence"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_change_of_a_round_is_the_next_rounds_divergence(kind):
    method = METHODS.build({"kind": kind, "divergence": "training"})
    network = network_of(method)
    state = state_of(method, network)
    training = in_round(network, state, round=1)
    method.begin(training)
    assert state["last"]["divergence"] == 0
    with torch.no_grad():
        for parameter in encoder_parameters(network).values():
            parameter.add_(2 / parameter.numel() ** 0.5)
    method.end(training)
    method.begin(in_round(network_of(method, seed=5), state))
    assert float(state["last"]["divergence"]) == pytest.approx(2, rel=1e-5)


# FedEMA


def test_the_first_mixture_fixes_lambda():
    """tau .7 and a first d of 3.5 give lambda .2; a next d of 1 gives mu .2, and a d of 10 gives mu 1."""
    method = FedEMA(first_share=0.7)
    own = network_of(method)
    state = trained_last(method, own)
    for round, (apart, share) in enumerate([(3.5, 0.7), (1.0, 0.2), (10.0, 1.0)], start=2):
        received = network_of(method)
        received.load_state_dict(own.state_dict())
        moved_encoder(received, apart)
        training = in_round(received, state, round)
        method.begin(training)
        assert float(state["last"]["divergence"]) == pytest.approx(apart, rel=1e-4)
        assert float(state["scale"]["lambda"]) == pytest.approx(0.2, rel=1e-4)
        assert float(state["last"]["own_share"]) == pytest.approx(share, rel=1e-4)
        own.load_state_dict(received.state_dict())
        method.end(training)


@pytest.mark.parametrize(("mu", "mixed"), [(0.25, 0.5), (0.75, 1.5)])
def test_the_mixture_is_of_encoder_and_predictor_and_statistics_are_received(mu, mixed):
    """W_k = 2, W_g = 0 and mu = .25 give .5; buffers and the classes' head are those of the global model.

    The official code takes the predictor's statistics from the client if mu > 1/2.
    """
    own, received = (filled(network_of(FedEMA(), norm=True), value) for value in (2.0, 0.0))
    d = distance(encoder_parameters(own), encoder_parameters(received)).detach()
    method = FedEMA(scale=mu / float(d))
    with torch.no_grad():
        received.classifier.head.weight.fill_(9.0)
    buffers = {name: buffer.clone() for name, buffer in received.named_buffers()}
    assert begun(method, own, received) == pytest.approx(mu)
    assert torch.all(received.classifier.head.weight == 9)
    for name, parameter in received.named_parameters():
        if not name.startswith(HEAD):
            assert torch.allclose(parameter, torch.full_like(parameter, mixed)), name
    assert any(name.startswith("predictor.") for name in buffers)
    for name, buffer in received.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_mu_of_one_is_the_clients_own_model_to_the_bit_and_mu_of_nothing_the_received_one():
    for scale, taken in ((1e9, 0), (0.0, 1)):
        method = FedEMA(scale=scale)
        models = network_of(method, seed=1), network_of(method, seed=2)
        expected = snapshot(models[taken])
        begun(method, *models)
        for key, parameter in method.own_parameters(models[1]).items():
            assert torch.equal(parameter, expected[key]), key


@pytest.mark.parametrize("divergence", ["received", "training"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_clients_first_round_begins_with_the_received_model(kind, divergence):
    """Its own weights are the received ones, so d is 0: nothing is divided by it, and lambda waits."""
    method = METHODS.build({"kind": kind, "divergence": divergence})
    network = network_of(method)
    state, before = state_of(method, network), snapshot(network)
    method.begin(in_round(network, state, round=5))
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot(network).items())
    assert state["last"]["own_share"] == 0
    if kind == "fedema":
        assert state["scale"]["lambda"] == 0


@pytest.mark.parametrize("selective", [True, False])
def test_after_an_absence_a_client_begins_anew_or_mixes(selective):
    method = FedEMA(selective=selective)
    own, received = network_of(method, seed=1), network_of(method, seed=2)
    state, before = trained_last(method, own), snapshot(received)
    state["scale"]["lambda"].fill_(1e9)
    method.begin(in_round(received, state, round=3))
    expected = before if selective else snapshot(own)
    for key, parameter in method.own_parameters(received).items():
        assert torch.equal(parameter, expected[key]), key
    follows = snapshot(Encoder(received if selective else own))
    assert all(torch.equal(state["target"][key], tensor) for key, tensor in follows.items())
    assert state["scale"]["lambda"] == 1e9


# FedU


@pytest.mark.parametrize(("change", "share"), [(0.399, 0), (0.4, 1), (0.401, 1)])
def test_fedu_takes_the_received_predictor_below_the_threshold(change, share):
    method = FedU()
    own, received = filled(network_of(method), 2.0), filled(network_of(method), 0.0)
    state = trained_last(method, own)
    state["last"]["change"].fill_(change)
    buffers = {name: buffer.clone() for name, buffer in received.named_buffers()}
    method.begin(in_round(received, state))
    assert state["last"]["own_share"] == share
    for name, parameter in received.named_parameters():
        wanted = 2.0 * share if name.startswith("predictor.") else 0.0
        assert torch.all(parameter == wanted), name
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in received.named_buffers())


def test_fedu_keeps_an_encoder_only_to_compare_it():
    network = network_of(FedU())
    kept = [set(FedU(divergence=d).own_parameters(network)) for d in ("training", "received")]
    assert kept[0] == set(predictor_parameters(network))
    assert kept[1] == kept[0] | set(encoder_parameters(network))


@pytest.mark.parametrize(("apart", "share"), [(0.3, 0), (0.5, 1)])
def test_fedu_may_compare_encoders(apart, share):
    method = FedU(divergence="received")
    own, received = network_of(method), moved_encoder(network_of(method), apart)
    assert begun(method, own, received) == share


# Both


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_first_round_the_target_is_not_the_encoder(kind):
    """In the official code, both are the same tensors there, so the target moves as fast as the encoder."""
    method = METHODS.build(kind)
    network = network_of(method)
    state, before = state_of(method, network), snapshot(Encoder(network))
    method.begin(in_round(network, state, round=1))
    filled(network, 5.0)
    assert all(torch.equal(before[key], tensor) for key, tensor in state["target"].items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_shares_no_memory_with_the_network(kind):
    """Another client trains the same network next."""
    method = METHODS.build(kind)
    network = network_of(method)
    state = trained_last(method, network)
    before = {key: tensor.clone() for key, tensor in state["own"].items()}
    filled(network, 5.0)
    assert all(torch.equal(before[key], tensor) for key, tensor in state["own"].items())
    fresh = method.init_slot("own", Fresh(network, SPEC, shard()))
    filled(network, 6.0)
    assert all((tensor == 5).all() for tensor in fresh.values())


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_byols_and_records_what_the_client_took(kind):
    method = METHODS.build(kind)
    network, given = network_of(method), batch_for(method)
    state = trained_last(method, network)
    state["last"]["own_share"].fill_(0.25)
    ours = method.loss(network, given, state, PROGRESS)
    theirs = BYOL().loss(network, given, {"target": state["target"]}, PROGRESS)
    assert torch.equal(ours.total, theirs.total)
    assert set(ours.numbers) == {"spread", "divergence", "own_share"}
    assert ours.numbers["own_share"] == 0.25


@pytest.mark.parametrize(("rises", "expected"), [(True, 0.05), (False, 0.1)])
def test_the_decay_of_the_target_may_stay(rises, expected):
    """theta 1 and target 0, halfway through the phase: 1 - tau is .05 if tau rises from .9 to 1, and .1 if it stays."""
    method = FedU(target_decay=0.9, decay_rises=rises)
    network = filled(network_of(method), 1.0)
    state = state_of(method, network)
    state["target"] = {name: torch.zeros_like(t) for name, t in state["target"].items()}
    method.after_step(learner(network, state, progress=Progress(3, 4, 0, 10)), None, None)
    for name, _ in Encoder(network).named_parameters():
        assert torch.allclose(state["target"][name], torch.tensor(expected)), name


TINY = {"data": {"train_size": 120}, "train": {"local_steps": 1, "batch_size": 4}, "rounds": 3}


def run(method, **overrides):
    grid = SerialGrid(Apps(app), 6)
    heads = {"projection": [8, 4], "predictor": [8]}
    experiment = small_experiment(method=method | heads, **TINY, **overrides)
    return serve(experiment, grid, []), kept_states(grid)


def test_without_own_weights_fedema_is_byol_bit_for_bit():
    """Four of six clients take part in a round, so some come back after an absence."""
    byol = {"kind": "byol", "target_scope": "client", "decay_rises": False}
    fedema = {"kind": "fedema", "first_share": 0.0, "selective": False}
    sample = {"federation": {"sample": 4}}
    (ours, mine), (theirs, others) = run(fedema, **sample), run(byol, **sample)
    for name, array in theirs.model.arrays.items():
        assert ours.model.arrays[name].tobytes() == array.tobytes(), name
    for client, kept in others.items():
        target = kept.array_records["phase-0.target"]
        same = mine[client].array_records["phase-0.target"]
        assert {k: v.data for k, v in target.items()} == {k: v.data for k, v in same.items()}


def test_with_own_weights_alone_no_client_learns_from_another():
    """Another strategy at the server makes another global model, and changes nothing that a client keeps."""
    everyone = {"federation": {"sample": 6}}
    method = {"kind": "fedema", "scale": 1e9}
    first, second = (
        run(method, strategy=strategy, **everyone)
        for strategy in ("fedavg", {"kind": "fedavgm", "server_lr": 0.3})
    )
    arrays = [outcome.model.arrays for outcome, _ in (first, second)]
    assert any(not np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[0])
    for client, kept in first[1].items():
        own, same = (k.array_records["phase-0.own"] for k in (kept, second[1][client]))
        assert {k: v.data for k, v in own.items()} == {k: v.data for k, v in same.items()}
