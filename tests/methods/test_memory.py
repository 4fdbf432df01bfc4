"""Memory by example: Temporal Ensembling."""

from dataclasses import replace

import pytest
import torch

from fedssl.methods import functional as pieces
from fedssl.methods.temporal_ensembling import TemporalEnsembling
from tests.methods.examples import PROGRESS, batch_for, linear, state_of, stream


def test_the_target_is_the_bias_corrected_average_of_earlier_visits():
    """After visits z1, z2, z3: Z / (1 - a^3) is their weighted mean, the latest weighing most."""
    method = TemporalEnsembling(ramp_up=0, unlabeled_weight=1.0)
    given = batch_for(method, labeled=0)
    state = state_of(method, linear())
    visits = []
    for seed in range(3):
        network = linear(seed)
        visits.append(network(given.unlabeled[0]).softmax(1).detach())
        state["ensemble"] = method.loss(network, given, state, PROGRESS).updates["ensemble"]
    weights = torch.tensor([0.36, 0.6, 1.0])
    weights = weights / weights.sum()
    expected = sum(w * z for w, z in zip(weights, visits, strict=True))
    last = linear(9)
    loss = method.loss(last, given, state, PROGRESS)
    distance = (last(given.unlabeled[0]).softmax(1) - expected).square().mean()
    assert float(loss.total.detach()) == pytest.approx(float(distance.detach()), rel=1e-4)
    assert (state["ensemble"]["visits"] == 3).all()


def test_an_image_that_was_never_visited_does_not_count():
    method, network = TemporalEnsembling(ramp_up=0), linear()
    given = batch_for(method, labeled=0)
    first = method.loss(network, given, state_of(method, network), PROGRESS)
    assert first.total == 0
    assert not first.accepted.any()
    half = replace(
        given, unlabeled=(given.unlabeled[0][:6],), unlabeled_ids=given.unlabeled_ids[:6]
    )
    state = {
        "ensemble": method.loss(network, half, state_of(method, network), PROGRESS).updates[
            "ensemble"
        ]
    }
    assert state["ensemble"]["visits"].tolist() == [1] * 6 + [0] * 6
    second = method.loss(network, given, state, PROGRESS)
    assert second.accepted.tolist() == [1] * 6 + [0] * 6


def test_the_target_carries_no_gradient_and_the_loss_is_not_zero_by_itself():
    method, network = TemporalEnsembling(ramp_up=0), linear()
    given = batch_for(method, labeled=0)
    state = state_of(method, network)
    state["ensemble"] = method.loss(linear(1), given, state, PROGRESS).updates["ensemble"]
    average = state["ensemble"]["average"].requires_grad_()
    loss = method.loss(network, given, state, PROGRESS)
    assert loss.total > 0
    loss.total.backward()
    assert all(p.grad.abs().sum() > 0 for p in network.parameters())
    assert average.grad is None


def test_two_visits_in_one_step_are_averaged():
    values = torch.randn(5, 3, generator=stream())
    means, shown = pieces.mean_by_example(values, torch.tensor([2, 0, 2, 2, 1]), 4)
    assert torch.allclose(means[2], values[[0, 2, 3]].mean(0), atol=1e-6)
    assert torch.equal(means[0], values[1])
    assert shown.tolist() == [True, True, True, False]
    assert not means[3].any()
