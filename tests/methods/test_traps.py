"""Known mistakes of other implementations, each as a property that every right implementation has."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedssl.core import rng
from fedssl.core.slots import Slot
from fedssl.methods import functional as pieces
from fedssl.methods.base import METHODS, Fresh, Loss, Progress, SemiSupervised
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.mean_teacher import MeanTeacher
from fedssl.methods.pi_model import PiModel
from tests.methods.examples import (
    FIRST_METHODS,
    PROGRESS,
    SPEC,
    Watched,
    batch,
    batch_for,
    learner,
    linear,
    network_of,
    state_of,
    stream,
)


def sigmoid(share):
    return math.exp(-5 * (1 - share) ** 2)


def linear_growth(share):
    return share


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


def test_no_gradient_into_soft_targets():
    logits = torch.randn(5, 10, generator=stream(), requires_grad=True)
    targets = torch.randn(5, 10, generator=stream(1)).softmax(1).requires_grad_()
    pieces.masked_cross_entropy(logits, targets, torch.ones(5)).backward()
    assert logits.grad.abs().sum() > 0
    assert targets.grad is None
    pieces.kl_divergence(targets, logits).sum().backward()
    assert targets.grad is None


def test_the_pi_models_gradient_flows_through_both_passes():
    method, network = PiModel(ramp_up=0), linear()
    given = batch_for(method, labeled=0)
    views = tuple(view.requires_grad_() for view in given.unlabeled)
    method.loss(network, replace(given, unlabeled=views), {}, PROGRESS).total.backward()
    assert all(view.grad.abs().sum() > 0 for view in views)


@pytest.mark.parametrize(
    "kind", ["fixmatch", "uda", "flexmatch", "freematch", "softmatch", "mean_teacher", "sage"]
)
def test_no_gradient_into_the_weak_view_that_makes_the_target(kind):
    settings = {"threshold": 0.0} if kind in ("fixmatch", "uda", "sage") else {}
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
    "meta_pseudo_labels": (24, 12),  # the strong view of both networks; the teacher's weak view
    "ups": (12, 0),
    "byol": (24, 24),  # both views, and both targets
    "fedema": (24, 24),
    "fedu": (24, 24),
    "moco": (12, 12),  # queries and keys
    "simclr": (24, 0),
    "dividemix": (24, 48),  # two mixed views; two guesses of each network
    "mixmatch": (24, 24),  # two mixed views; two guesses
    "fl2": (24, 0),  # the strong view, at the weights and at perturbed weights
    "cbafed": (12, 0),  # labels are made before the steps
    "fedmatch": (12, 12),  # without helpers, the view that is voted on needs no gradients
    "semifl": (24, 0),  # the strong view and the mixed images
    "sage": (12, 24),  # the weak view of two models
    "fedlabel": (24, 12),  # both views; the received model's weak view
    "proxyfl": (24, 12),  # both views learn; the received model looks at the weak view
    "comatch": (24, 12),  # two strong views; the weak view makes the pseudo-labels
    "remixmatch": (12 * (8 + 1 + 2), 12),  # K strong and a weak one mixed, U1, rotations; the guess
}
"""Method -> unlabeled images that pass through the network (with a graph, without), of 12 in a batch."""


@pytest.mark.parametrize("kind", FIRST_METHODS)
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
    counter = teacher["trunk.2.num_batches_tracked"]
    assert counter.dtype == torch.int64
    assert counter == 3


def test_a_teacher_never_shares_memory_with_the_student():
    network = linear()
    teacher = MeanTeacher().init_slot("teacher", Fresh(network, SPEC, None))
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


RAMPED = {
    "pi_model": sigmoid,
    "mean_teacher": sigmoid,
    "temporal_ensembling": sigmoid,
    "pseudo_label": linear_growth,
    "mixmatch": linear_growth,
}


@pytest.mark.parametrize("kind", RAMPED)
def test_the_unlabeled_weight_grows_over_the_rounds(kind):
    """Round by round, the loss of a client without labels is the last one's times the ramp."""
    settings = {"kind": kind, "ramp_up": 0.5}
    method = METHODS.build(settings | ({"threshold": 0} if kind == "pseudo_label" else {}))
    network = linear()
    given = batch_for(method, labeled=0)
    state = state_of(method, linear(1))
    if kind == "temporal_ensembling":
        state["ensemble"] = method.loss(linear(1), given, state, PROGRESS).updates["ensemble"]

    def total(round):
        again = replace(given, generator=stream())
        progress = Progress(round, 100, 0, 1)
        return float(method.loss(network, again, state, progress).total.detach())

    whole = total(51)
    assert whole > 0
    assert total(101) == pytest.approx(whole)
    for round in (1, 11, 26, 41):
        share = RAMPED[kind]((round - 1) / 50)
        assert total(round) == pytest.approx(share * whole, rel=1e-4, abs=1e-9)


# what every method is shown

VIEWS = {
    "supervised": (("weak",), (), 1),
    "fixmatch": (("weak",), ("weak", "strong"), 7),
    "flexmatch": (("weak",), ("weak", "strong"), 7),
    "freematch": (("weak",), ("weak", "strong"), 7),
    "softmatch": (("weak",), ("weak", "strong"), 7),
    "uda": (("weak",), ("weak", "strong"), 7),
    "mean_teacher": (("weak",), ("weak", "weak"), 3),
    "pi_model": (("weak",), ("weak", "weak"), 3),
    "pseudo_label": (("weak",), ("weak",), 7),
    "temporal_ensembling": (("weak",), ("weak",), 3),
    "vat": (("weak",), ("weak",), 3),
    "mixmatch": (("weak",), ("weak", "weak"), 1),
    "comatch": (("weak",), ("weak", "strong", "strong"), 7),
    "proxyfl": (("weak",), ("weak", "strong"), 7),
    "remixmatch": (("strong",), ("weak", *["strong"] * 8), 1),
    "fl2": ((), ("strong",), 1),
    "semifl": (("weak",), ("weak", "strong"), 1),
    "sage": (("weak",), ("weak", "strong"), 2),
    "fedlabel": (("weak",), ("weak", "strong"), 2),
    "cbafed": (("weak",), ("weak",), 1),
    "fedmatch": (("plain",), ("plain", "strong"), 10),
    "dividemix": (("weak", "weak"), ("weak", "weak"), 1),
    "byol": ((), ("contrast", "contrast"), 1),
    "fedema": ((), ("contrast", "contrast"), 1),
    "fedu": ((), ("contrast", "contrast"), 1),
    "moco": ((), ("contrast", "contrast"), 1),
    "simclr": ((), ("contrast", "contrast"), 1),
    "meta_pseudo_labels": (("weak",), ("weak", "strong"), 7),
    "ups": (("weak",), ("strong",), 7),
    "noisy_student": (("strong",), ("strong",), 5),
    "distill": ((), ("weak",), 7),
    "fine_tune": (("weak",), (), 1),
}
"""Method -> (labeled views, unlabeled views, mu), as it is by default."""


@pytest.mark.parametrize("kind", METHODS.names())
def test_views(kind):
    views = METHODS.build(kind).views()
    assert (views.labeled, views.unlabeled, views.ratio) == VIEWS[kind]


@pytest.mark.parametrize(
    ("settings", "labeled", "unlabeled"),
    [
        ({"kind": "mean_teacher", "student_view": "strong"}, ("weak",), ("strong", "weak")),
        ({"kind": "pi_model", "second_view": "strong"}, ("weak",), ("weak", "strong")),
        ({"kind": "remixmatch", "labeled_view": "weak", "num_strong": 1}, ("weak",), ("weak", "strong")),
        ({"kind": "mixmatch", "num_views": 3}, ("weak",), ("weak",) * 3),
    ],
)  # fmt: skip
def test_settings_change_views(settings, labeled, unlabeled):
    views = METHODS.build(settings | {"unlabeled_ratio": 5}).views()
    assert (views.labeled, views.unlabeled, views.ratio) == (labeled, unlabeled, 5)


def test_the_baseline_can_show_its_labels_strongly():
    views = METHODS.build({"kind": "supervised", "labeled_view": "strong"}).views()
    assert (views.labeled, views.unlabeled) == (("strong",), ())


# Mean Teacher, step by step


def test_the_teacher_sees_its_own_view_and_the_student_its():
    method = MeanTeacher(ramp_up=0, unlabeled_weight=1.0)
    student, teacher = linear(0), linear(1)
    given = batch(labeled=0)
    loss = method.loss(student, given, {"teacher": pieces.snapshot(teacher)}, PROGRESS)
    of_student, of_teacher = given.unlabeled
    distance = (student(of_student).softmax(1) - teacher(of_teacher).softmax(1)).square().mean()
    assert float(loss.total.detach()) == pytest.approx(float(distance.detach()), rel=1e-5)


def test_mean_teachers_threshold_and_temperature():
    student, teacher, given = linear(0), linear(1), batch(labeled=0)
    logits = teacher(given.unlabeled[1]).detach()
    confidence = logits.softmax(1).max(1).values
    middle = float(confidence.median())
    method = MeanTeacher(ramp_up=0, unlabeled_weight=1.0, threshold=middle, temperature=0.5)
    loss = method.loss(student, given, {"teacher": pieces.snapshot(teacher)}, PROGRESS)
    mask = confidence >= middle
    assert torch.equal(loss.accepted.bool(), mask)
    each = (student(given.unlabeled[0]).softmax(1) - (logits / 0.5).softmax(1)).square().mean(1)
    expected = float((each * mask).sum().detach()) / 12
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_teacher_moves_after_each_step_and_warms_up_over_all_rounds():
    """At the first step of all it is the student; at step 10 of them it keeps 10/11 of itself; then the decay."""
    method, student, teacher = MeanTeacher(ema_decay=0.95), linear(0), linear(1)
    for (round, step), kept in {(1, 0): 0.0, (2, 0): 10 / 11, (50, 3): 0.95}.items():
        state = {"teacher": pieces.snapshot(teacher)}
        now = Progress(round, 100, step, 10)
        method.after_step(learner(student, state, progress=now), None, None)
        for name, weight in student.state_dict().items():
            expected = kept * teacher.state_dict()[name] + (1 - kept) * weight
            assert torch.allclose(state["teacher"][name], expected, atol=1e-6)


def test_a_step_writes_what_the_loss_returns():
    method, network = METHODS.build("freematch"), linear()
    state = state_of(method, network)
    expected = method.loss(network, batch_for(method), state, PROGRESS).updates["statistics"]
    training = learner(network, state)
    method.step(training, batch_for(method))
    assert state["statistics"].keys() == expected.keys()
    assert all(torch.equal(state["statistics"][k], v) for k, v in expected.items())
    assert state["statistics"]["steps"] == 1


def test_flexmatch_tells_the_server_how_far_its_client_has_come():
    method, network = METHODS.build("flexmatch"), linear()
    state = state_of(method, network)
    state["confident"]["classes"] = torch.tensor([-1] * 6 + [2] * 3 + [9] * 3)
    method.end(learner(network, state))
    expected = torch.zeros(11)
    expected[[0, 3, 10]] = torch.tensor([0.5, 0.25, 0.25])
    assert torch.equal(state["status"]["shares"], expected)


@pytest.mark.parametrize("kind", ["fixmatch", "uda", "flexmatch", "softmatch"])
def test_the_unlabeled_weight_weighs(kind):
    settings = {"fixmatch": {"threshold": 0}, "uda": {"threshold": 0, "annealing": "none"}}
    table = {"kind": kind} | settings.get(kind, {})
    network = linear()
    totals = []
    for weight in (0.0, 1.0, 3.0):
        method = METHODS.build(table | {"unlabeled_weight": weight})
        loss = method.loss(network, batch_for(method), state_of(method, network), PROGRESS)
        totals.append(float(loss.total.detach()))
    assert totals[1] > totals[0]
    assert totals[2] - totals[0] == pytest.approx(3 * (totals[1] - totals[0]), rel=1e-4)


# every method


@pytest.mark.parametrize("name", FIRST_METHODS)
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
        assert tensors.keys() <= kept.keys(), slot
        assert all(not t.requires_grad and t.shape == kept[k].shape for k, t in tensors.items())
        assert all(t.dtype == kept[k].dtype for k, t in tensors.items())


@pytest.mark.parametrize("name", FIRST_METHODS)
@pytest.mark.parametrize("norm", [False, True])
def test_the_loss_is_pure(name, norm):
    """Same inputs, same loss; neither weights nor state are written to, batch normalization's apart."""
    method = METHODS.build(name)
    network = network_of(method, norm=norm)
    state = state_of(method, network_of(method, seed=1, norm=norm))
    weights = {k: p.detach().clone() for k, p in network.named_parameters()}
    kept = {slot: {k: v.clone() for k, v in tensors.items()} for slot, tensors in state.items()}
    buffers = {k: b.clone() for k, b in network.named_buffers()}
    with rng.seeded_torch(0):  # dropout draws from torch's global stream
        first = method.loss(network, batch_for(method), state, PROGRESS).total
    for name_of_buffer, buffer in network.named_buffers():
        buffer.copy_(buffers[name_of_buffer])
    with rng.seeded_torch(0):
        second = method.loss(network, batch_for(method), state, PROGRESS).total
    assert torch.equal(first, second)
    assert all(torch.equal(weights[k], p) for k, p in network.named_parameters())
    for slot, tensors in kept.items():
        assert all(torch.equal(v, state[slot][k]) for k, v in tensors.items())


# what a new method may get wrong


class Careless(SemiSupervised):
    def slots(self):
        return (Slot("memory", "client"),)

    def init_slot(self, name, fresh):
        return {"seen": torch.zeros(12)}

    def loss(self, network, batch, state, progress):
        return WRONG[0](network(batch.unlabeled[0]))


WRONG = []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda z: (z.mean(), z), "must return a Loss, not tuple"),
        (lambda z: Loss(z.mean(1)), r"Loss.total must be a scalar, not of shape \(12,\)"),
        (lambda z: Loss(z.mean().detach()), "Loss.total has no gradient, so the network does not learn"),
        (lambda z: Loss(z.mean(), z.softmax(1), z[:, 0]), r"Loss.pseudo_labels must have shape \(12,\)"),
        (lambda z: Loss(z.mean(), z.argmax(1), torch.full((12,), 5.0)), "accepted must lie between"),
        (lambda z: Loss(z.mean(), updates={"memry": {}}), "names slot 'memry'; declared are: memory"),
        (lambda z: Loss(z.mean(), updates={"memory": {"sen": z[:, 0]}}), "is not of the name, shape"),
        (lambda z: Loss(z.mean(), updates={"memory": {"seen": z[:3, 0]}}), "is not of the name, shape"),
        (lambda z: Loss(z.mean(), updates={"memory": {"seen": z[:, 0]}}), "carries a gradient"),
    ],
)  # fmt: skip
def test_a_loss_that_is_none_says_what_is_wrong(wrong, message):
    WRONG[:] = [wrong]
    method, network = Careless(), linear()
    first = Progress(round=1, num_rounds=100, step=0, num_steps=10)
    training = learner(network, state_of(method, network), progress=first)
    with pytest.raises((TypeError, ValueError), match=message):
        method.step(training, batch())


def test_a_loss_without_a_gradient_may_update_the_state():
    WRONG[:] = [lambda z: Loss(z.detach().mean(), updates={"memory": {"seen": z.detach()[:, 0]}})]
    method, network = Careless(), linear()
    training = learner(network, state_of(method, network), progress=Progress(1, 100, 0, 10))
    method.step(training, batch())
    assert training.state["memory"]["seen"].any()


def test_a_scope_that_is_none_is_refused():
    with pytest.raises(ValueError, match="has scope 'clinet'; the scopes are: reset, client"):
        Slot("memory", "clinet")
