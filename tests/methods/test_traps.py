"""The traps others fell into, each as a property that any right implementation satisfies."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.methods import functional as pieces
from fedssl.methods.base import METHODS, Batch, Progress
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.mean_teacher import MeanTeacher

PROGRESS = Progress(round=5, num_rounds=5, step=9, num_steps=10)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(seed=0, classes=10, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, classes)]
        if norm:
            layers.insert(2, nn.BatchNorm1d(8))
        return nn.Sequential(*layers)


def batch(labeled=4, unlabeled=12, seed=0):
    def draw(n):
        return torch.randn(n, 1, 4, 4, generator=generator)

    generator = stream(seed)
    return Batch(
        labeled=(draw(labeled),),
        labels=torch.arange(labeled) % 10,
        labeled_ids=torch.arange(labeled),
        unlabeled=(draw(unlabeled), draw(unlabeled)),
        unlabeled_ids=torch.arange(unlabeled),
    )


def state_of(method, network):
    return {slot.name: method.init_slot(slot.name, network, None) for slot in method.slots()}


# 1. a consistency loss that compares a tensor with itself


def test_mean_teacher_compares_the_student_with_the_teacher():
    """Loss > 0 and the student's gradient != 0 whenever student != teacher, on the very same view."""
    method, student, teacher = MeanTeacher(ramp_up=0), linear(0), linear(1)
    given = batch(labeled=0)
    same_view = Batch(
        given.labeled,
        given.labels,
        given.labeled_ids,
        (given.unlabeled[0],) * 2,
        given.unlabeled_ids,
    )
    state = {"teacher": pieces.snapshot(teacher)}
    loss = method.loss(student, same_view, state, PROGRESS)
    assert loss.total > 0
    loss.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    equal = method.loss(student, same_view, {"teacher": pieces.snapshot(student)}, PROGRESS)
    assert equal.total == 0


# 2. targets carry no gradient


def test_no_gradient_into_the_teacher():
    student = torch.randn(5, 10, generator=stream(), requires_grad=True)
    teacher = torch.randn(5, 10, generator=stream(1), requires_grad=True)
    pieces.masked_probability_mse(student, teacher, torch.ones(5)).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


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
    distance = pieces.masked_probability_mse(certain[:1], certain[1:2], torch.ones(1))
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
    loss = pieces.masked_probability_mse(student, teacher, mask)
    each = (student.softmax(1) - teacher.softmax(1)).square().sum(1) / 10
    assert float(loss) == pytest.approx(float(each[mask.bool()].sum() / 6), rel=1e-5)


# 6. weak views and teachers run outside the graph


@pytest.mark.parametrize("method", [FixMatch(threshold=0), MeanTeacher(ramp_up=0)])
def test_targets_are_made_outside_the_graph(method):
    """Of the forward passes over unlabeled views, exactly one builds a graph."""
    graphs = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, x):
            out = self.inner(x)
            graphs.append(out.requires_grad)
            return out

    network = Watched()
    method.loss(network, batch(labeled=0), state_of(method, network), PROGRESS)
    assert sorted(graphs) == [False, True]


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
    teacher = MeanTeacher().init_slot("teacher", network, None)
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
def test_a_client_without_labels_gives_a_finite_loss(name):
    method, network = METHODS.build(name), linear()
    loss = method.loss(network, batch(labeled=0), state_of(method, network), PROGRESS)
    assert torch.isfinite(loss.total)


@pytest.mark.parametrize("name", METHODS.names())
def test_the_loss_is_pure(name):
    """Same inputs, same loss; weights and state are not written to."""
    method, network = METHODS.build(name), linear()
    state = state_of(method, linear(1))
    weights = pieces.snapshot(network)
    kept = {slot: {k: v.clone() for k, v in tensors.items()} for slot, tensors in state.items()}
    first = method.loss(network, batch(), state, PROGRESS).total
    second = method.loss(network, batch(), state, PROGRESS).total
    assert torch.equal(first, second)
    assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
    for slot, tensors in kept.items():
        assert all(torch.equal(v, state[slot][k]) for k, v in tensors.items())
