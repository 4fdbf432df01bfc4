"""The traps others fell into, each as a property that any right implementation satisfies."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedssl.methods import functional as pieces
from fedssl.methods.base import METHODS
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.mean_teacher import MeanTeacher
from fedssl.methods.pi_model import PiModel
from tests.methods.examples import (
    PROGRESS,
    SPEC,
    Watched,
    batch,
    batch_for,
    linear,
    network_of,
    state_of,
    stream,
)

# 1. a consistency loss that compares a tensor with itself


def test_mean_teacher_compares_the_student_with_the_teacher():
    """Loss > 0 and the student's gradient != 0 whenever student != teacher, on the very same view."""
    method, student, teacher = MeanTeacher(ramp_up=0), linear(0), linear(1)
    given = batch(labeled=0)
    same_view = replace(given, unlabeled=(given.unlabeled[0],) * 2)
    state = {"teacher": pieces.snapshot(teacher)}
    loss = method.loss(student, same_view, state, PROGRESS)
    assert loss.total > 0
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    equal = method.loss(student, same_view, {"teacher": pieces.snapshot(student)}, PROGRESS)
    assert equal.total == 0


# 2. targets carry no gradient


def test_no_gradient_into_the_teacher():
    method, student, teacher = MeanTeacher(ramp_up=0), linear(0), linear(1)
    state = {"teacher": {k: v.requires_grad_() for k, v in pieces.snapshot(teacher).items()}}
    method.loss(student, batch(labeled=0), state, PROGRESS).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    assert all(tensor.grad is None for tensor in state["teacher"].values())


def test_the_pi_models_gradient_flows_through_both_passes():
    method, network = PiModel(ramp_up=0), linear()
    given = batch_for(method, labeled=0)
    views = tuple(view.requires_grad_() for view in given.unlabeled)
    method.loss(network, replace(given, unlabeled=views), {}, PROGRESS).total.backward()
    assert all(view.grad.abs().sum() > 0 for view in views)


@pytest.mark.parametrize(
    "kind", ["fixmatch", "uda", "flexmatch", "freematch", "softmatch", "mean_teacher"]
)
def test_no_gradient_into_the_weak_view_that_makes_the_target(kind):
    settings = {"threshold": 0.0} if kind in ("fixmatch", "uda") else {}
    method = METHODS.build({"kind": kind} | settings)
    network = network_of(method)
    given = batch_for(method, labeled=0)
    target = 1 if kind == "mean_teacher" else 0
    views = tuple(view.requires_grad_() for view in given.unlabeled)
    given = replace(given, unlabeled=views)
    method.loss(network, given, state_of(method, linear(1)), PROGRESS).total.backward()
    assert views[target].grad is None
    assert views[1 - target].grad.abs().sum() > 0


def test_no_gradient_through_fixmatchs_weak_view():
    """The gradient equals that of plain cross-entropy on fixed pseudo-labels."""
    network, given = linear(), batch(labeled=0)
    loss = FixMatch(threshold=0).loss(network, given, {}, PROGRESS)
    loss.total.backward()
    ours = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    targets = network(given.unlabeled[0]).detach().argmax(1)
    F.cross_entropy(network(given.unlabeled[1]), targets).backward()
    for mine, p in zip(ours, network.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, atol=1e-7)


# 3. the scale of MSE


def test_probability_mse_is_a_mean_over_classes():
    certain = torch.eye(10) * 1000
    distance = pieces.probability_mse(certain[:1], certain[1:2].softmax(1))
    assert distance == pytest.approx(2 / 10)


# 5. the mask divides by mu B


def test_the_mask_divides_by_every_example():
    logits = torch.randn(6, 10, generator=stream(), requires_grad=True)
    labels, mask = torch.arange(6), torch.tensor([1.0, 0, 1, 1, 0, 1])
    loss = pieces.masked_cross_entropy(logits, labels, mask)
    naive = (
        sum(
            float(m) * float(F.cross_entropy(z[None], y[None]).detach())
            for z, y, m in zip(logits, labels, mask, strict=True)
        )
        / 6
    )
    assert float(loss.detach()) == pytest.approx(naive, rel=1e-5)
    twice = pieces.masked_cross_entropy(
        torch.cat([logits, logits]), torch.cat([labels, labels]), torch.cat([mask, torch.zeros(6)])
    )
    assert float(twice.detach()) == pytest.approx(float(loss.detach()) / 2)
    nothing = pieces.masked_cross_entropy(logits, labels, torch.zeros(6))
    assert nothing == 0
    nothing.backward()
    assert torch.isfinite(logits.grad).all()


def test_the_threshold_lets_through_what_reaches_it():
    network, given = linear(), batch(labeled=0)
    confidence = network(given.unlabeled[0]).softmax(1).max(1).values.detach()
    middle = float(confidence.median())
    loss = FixMatch(threshold=middle).loss(network, given, {}, PROGRESS)
    assert torch.equal(loss.accepted.bool(), confidence >= middle)
    assert 0 < int(loss.accepted.sum()) < len(confidence)
    assert FixMatch(threshold=0).loss(network, given, {}, PROGRESS).accepted.all()


def test_mean_teachers_mask_divides_by_every_example():
    student, teacher = (
        torch.randn(6, 10, generator=stream()),
        torch.randn(6, 10, generator=stream(1)),
    )
    mask = torch.tensor([1.0, 0, 1, 1, 0, 1])
    loss = pieces.probability_mse(student, teacher.softmax(1), mask)
    each = (student.softmax(1) - teacher.softmax(1)).square().sum(1) / 10
    assert float(loss) == pytest.approx(float(each[mask.bool()].sum() / 6), rel=1e-5)


# 6. weak views and teachers run outside the graph

PASSES = {
    "supervised": (0, 0),
    "fixmatch": (12, 12),
    "flexmatch": (12, 12),
    "freematch": (12, 12),
    "softmatch": (12, 12),
    "uda": (12, 12),
    "mean_teacher": (12, 12),
    "pi_model": (24, 0),
    "pseudo_label": (12, 0),
    "temporal_ensembling": (12, 0),
    "vat": (36, 0),  # clean, finding the direction, pushed
    "mixmatch": (24, 24),  # two mixed views; two guesses
    "remixmatch": (12 * (8 + 1 + 2), 12),  # K strong and a weak one mixed, U1, rotations; the guess
}
"""Method -> unlabeled images that pass through the network (with a graph, without), of 12 in a batch."""


@pytest.mark.parametrize("kind", METHODS.names())
def test_what_needs_no_gradient_runs_outside_the_graph(kind):
    method = METHODS.build(kind)
    seen = Watched(linear())
    network = method.network(lambda: seen)
    method.loss(network, batch_for(method, labeled=0), state_of(method, network), PROGRESS)
    assert (seen.images_in_graph, seen.images_outside) == PASSES[kind]


# 7. and 8. the average of weights


def test_warm_up_is_the_plain_mean_of_the_iterates():
    network, teacher = linear(), None
    iterates = []
    for n in range(8):
        with torch.no_grad():
            for p in network.parameters():
                p.copy_(torch.randn(p.shape, generator=stream(n)))
        iterates.append(pieces.snapshot(network))
        teacher = pieces.snapshot(linear(9)) if teacher is None else teacher
        pieces.ema_update(teacher, network, pieces.warm_decay(0.9, n))
    for name, average in teacher.items():
        mean = torch.stack([iterate[name] for iterate in iterates]).mean(0)
        assert torch.allclose(average, mean, atol=1e-6)
    assert pieces.warm_decay(0.9, 9) == pytest.approx(0.9)
    assert pieces.warm_decay(0.9, 500) == 0.9


def test_buffers_are_copied_and_counters_stay_integers():
    network = linear(norm=True).train()
    teacher = pieces.snapshot(linear(1, norm=True))
    for seed in range(3):
        network(torch.randn(8, 1, 4, 4, generator=stream(seed)))
    pieces.ema_update(teacher, network, 0.99)
    for name, buffer in network.named_buffers():
        assert torch.equal(teacher[name], buffer)
    counter = teacher["2.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter == 3


def test_a_teacher_never_shares_memory_with_the_student():
    network = linear()
    teacher = MeanTeacher().init_slot("teacher", network, SPEC, None)
    before = {name: tensor.clone() for name, tensor in teacher.items()}
    with torch.no_grad():
        for p in network.parameters():
            p.add_(1)
    assert all(torch.equal(before[name], teacher[name]) for name in before)


# 9. the ramp


@pytest.mark.parametrize(("t", "value"), [(0, 0.006738), (0.5, 0.286505), (1, 1)])
def test_the_ramp(t, value):
    assert pieces.sigmoid_ramp(t, 1.0) == pytest.approx(value, abs=1e-6)
    assert pieces.sigmoid_ramp(t * 0.4, 0.4) == pytest.approx(value, abs=1e-6)


def test_the_ramps_ends():
    assert pieces.sigmoid_ramp(0.0, 0.0) == 1
    assert pieces.sigmoid_ramp(0.9, 0.4) == 1
    assert math.isclose(pieces.sigmoid_ramp(0.0, 0.5), math.exp(-5))


# every method


@pytest.mark.parametrize("name", METHODS.names())
@pytest.mark.parametrize(("labeled", "unlabeled"), [(0, 12), (4, 12), (1, 1)])
def test_losses_are_finite_and_reach_every_weight(name, labeled, unlabeled):
    """Clients without labels and batches of one among them."""
    method = METHODS.build(name)
    network = network_of(method)
    given = batch_for(method, labeled=labeled, unlabeled=unlabeled)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    assert torch.isfinite(loss.total)
    if loss.total.requires_grad:
        loss.total.backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())
    for slot, tensors in loss.updates.items():
        kept = state_of(method, network)[slot]
        assert tensors.keys() == kept.keys(), slot
        assert all(not t.requires_grad and t.shape == kept[k].shape for k, t in tensors.items())
        assert all(t.dtype == kept[k].dtype for k, t in tensors.items())


@pytest.mark.parametrize("name", METHODS.names())
def test_the_loss_is_pure(name):
    """Same inputs, same loss; weights and state are not written to."""
    method = METHODS.build(name)
    network = network_of(method)
    state = state_of(method, network_of(method, seed=1))
    weights = pieces.snapshot(network)
    kept = {slot: {k: v.clone() for k, v in tensors.items()} for slot, tensors in state.items()}
    first = method.loss(network, batch_for(method), state, PROGRESS).total
    second = method.loss(network, batch_for(method), state, PROGRESS).total
    assert torch.equal(first, second)
    assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    for slot, tensors in kept.items():
        assert all(torch.equal(v, state[slot][k]) for k, v in tensors.items())
