"""BYOL."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedssl.core.errors import InputError
from fedssl.methods.base import METHODS, Progress
from fedssl.methods.byol import BYOL, rising_decay
from fedssl.methods.functional import call_with, snapshot
from fedssl.methods.projection import Encoder
from tests.methods.examples import PROGRESS, batch_for, learner, network_of, state_of


def targets_of(network, seed=3):
    """Return a target with other weights than the network's."""
    other = network_of(BYOL(), seed=seed)
    assert not torch.equal(other.projection[0][0].weight, network.projection[0][0].weight)
    return snapshot(Encoder(other))


def value(tensor):
    return float(tensor.detach())


def test_the_loss_is_the_squared_distance_of_unit_vectors_both_ways():
    """2 - 2 cos = |p - z|^2 for unit vectors; each view is predicted from the other."""
    method = BYOL()
    network, given = network_of(method), batch_for(method)
    state = {"target": targets_of(network)}
    first, second = given.unlabeled
    expected = 0.0
    for own, other in ((first, second), (second, first)):
        projected = network.projection(network.classifier.features(own))
        prediction = F.normalize(network.predictor(projected), dim=1)
        target = call_with(Encoder(network), state["target"], other)
        expected += value((prediction - target).square().sum(1).mean())
    loss = method.loss(network, given, state, PROGRESS)
    assert value(loss.total) == pytest.approx(expected, rel=1e-5)
    assert 0 < expected <= 8


def test_the_views_may_change_places():
    method = BYOL(projection_norm="none")
    network, given = network_of(method), batch_for(method)
    state = {"target": snapshot(Encoder(network_of(method, seed=3)))}
    swapped = replace(given, unlabeled=given.unlabeled[::-1])
    first, second = (method.loss(network, g, state, PROGRESS).total for g in (given, swapped))
    assert value(first) == pytest.approx(value(second), rel=1e-6)


def test_no_gradient_reaches_the_target_and_the_predictor_gets_one():
    method = BYOL()
    network, given = network_of(method), batch_for(method)
    state = {"target": targets_of(network)}
    for tensor in state["target"].values():
        if tensor.is_floating_point():
            tensor.requires_grad_()
    method.loss(network, given, state, PROGRESS).total.backward()
    assert all(tensor.grad is None for tensor in state["target"].values())
    moved = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    names = {n for n, _ in network.named_parameters()}
    assert moved == {n for n in names if not n.startswith("classifier.head.")}


@pytest.mark.parametrize(("round", "expected"), [(1, 0.1), (3, 0.05)])
def test_the_target_follows_the_network_after_the_step(round, expected):
    """theta 1 and target 0: the target becomes 1 - tau, without a predictor or a head for classes.

    Halfway through the phase, tau has risen from .9 to .95.
    """
    method = BYOL(target_decay=0.9)
    network = network_of(method)
    state = state_of(method, network)
    assert set(state["target"]) == set(Encoder(network).state_dict())
    start = Progress(round=round, num_rounds=4, step=0, num_steps=10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    state["target"] = {name: torch.zeros_like(t) for name, t in state["target"].items()}
    method.after_step(learner(network, state, progress=start), None, None)
    for name, _ in Encoder(network).named_parameters():
        moved = state["target"][name]
        assert torch.allclose(moved, torch.full_like(moved, expected)), name


@pytest.mark.parametrize(("fraction", "expected"), [(0, 0.96), (0.5, 0.98), (1, 1.0)])
def test_the_decay_rises_to_one_along_a_cosine(fraction, expected):
    assert rising_decay(0.96, fraction) == pytest.approx(expected)
    assert rising_decay(0.96, 0.25) == pytest.approx(1 - 0.04 * (1 + math.sqrt(0.5)) / 2)


def test_a_network_that_maps_all_images_to_one_point_shows_it():
    """The loss of such a network may be 0, so only the spread tells."""
    method = BYOL(projection_norm="none")
    network, given = network_of(method), batch_for(method)
    state = state_of(method, network)
    before = value(method.loss(network, given, state, PROGRESS).numbers["spread"])
    with torch.no_grad():
        state["target"]["projection.1.0.weight"].zero_()
        state["target"]["projection.1.0.bias"].fill_(1.0)
    after = value(method.loss(network, given, state, PROGRESS).numbers["spread"])
    assert before > 0.1
    assert after == pytest.approx(0, abs=1e-5)


def test_widths_of_the_predictor_are_positive():
    with pytest.raises(
        InputError, match=r"method\.predictor: is \[0\]: widths must be positive, not 0"
    ):
        METHODS.build({"kind": "byol", "predictor": [0]})
    assert len(network_of(BYOL(predictor=())).predictor) == 1
