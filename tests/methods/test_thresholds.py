"""Adaptive thresholds: FlexMatch, FreeMatch and SoftMatch; annealing in UDA; the threshold of Pseudo-Label."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedssl.methods.base import Progress
from fedssl.methods.flexmatch import UNUSED, FlexMatch, class_status, flexible_share
from fedssl.methods.freematch import FreeMatch, fairness_loss
from fedssl.methods.pseudo_label import PseudoLabel
from fedssl.methods.softmatch import SoftMatch, _moments, gaussian_weight
from fedssl.methods.uda import UDA, annealing_threshold
from tests.methods.examples import PROGRESS, batch_for, linear, state_of, stream

# 10. FlexMatch

CLIENT = FlexMatch(threshold=0.2, status_scope="client")


def classes(*counts, unused):
    learned = [torch.full((n,), c) for c, n in enumerate(counts)]
    return torch.cat([*learned, torch.full((unused,), UNUSED)])


@pytest.mark.parametrize(
    ("counts", "unused", "thresholds"),
    [
        ((10, 5), 85, (0.0594, 0.0288)),
        ((60, 30), 10, (0.95, 0.3167)),
        ((0, 0), 100, (0.0, 0.0)),
    ],
)
def test_flexible_thresholds(counts, unused, thresholds):
    found = 0.95 * flexible_share(class_status(classes(*counts, unused=unused), 2))
    assert found.tolist() == pytest.approx(thresholds, abs=5e-5)


def test_flexmatch_remembers_the_last_confident_class():
    """By tau itself and not by the class's threshold; what is not confident keeps what it had."""
    method = FlexMatch(threshold=0.15, status_scope="client")
    network, given = linear(), batch_for(FlexMatch())
    state = state_of(method, network)
    assert (state["confident"]["classes"] == UNUSED).all()
    state["confident"]["classes"] = torch.full((12,), 7)
    confidence, guess = network(given.unlabeled[0]).softmax(1).max(1)
    sure = confidence >= 0.15
    assert 0 < int(sure.sum()) < 12
    loss = method.loss(network, given, state, PROGRESS)
    expected = torch.where(sure, guess, 7)
    assert torch.equal(loss.updates["confident"]["classes"], expected)
    thresholds = 0.15 * flexible_share(class_status(state["confident"]["classes"], 10))
    assert torch.equal(loss.accepted.bool(), confidence >= thresholds[guess])


def test_flexmatch_can_judge_classes_by_the_cohort():
    """A class that this client holds no image of is not one that nobody learns."""
    method, network = FlexMatch(threshold=0.2, status_scope="server"), linear()
    given = batch_for(method)
    state = state_of(method, network)
    assert torch.equal(state["status"]["shares"], torch.eye(11)[0])
    state["status"]["shares"] = torch.full((11,), 1 / 11)
    loss = method.loss(network, given, state, PROGRESS)
    confidence = network(given.unlabeled[0]).softmax(1).max(1).values
    assert torch.equal(loss.accepted.bool(), confidence >= 0.2)
    own = CLIENT.loss(network, given, state_of(CLIENT, network), PROGRESS)
    assert own.accepted.all()


def test_of_two_visits_in_a_step_the_last_confident_one_counts():
    method, network = FlexMatch(threshold=0.0), linear()
    given = replace(batch_for(method), unlabeled_ids=torch.tensor([3] * 6 + [5] * 6))
    guess = network(given.unlabeled[0]).argmax(1)
    found = method.loss(network, given, state_of(method, network), PROGRESS).updates["confident"]
    expected = torch.full((12,), UNUSED)
    expected[3], expected[5] = guess[5], guess[11]
    assert torch.equal(found["classes"], expected)


# FreeMatch


def test_freematchs_statistics_are_running_averages_of_this_and_earlier_steps():
    method, network = FreeMatch(ema_decay=0.9), linear()
    given = batch_for(method)
    state = state_of(method, network)
    probs = network(given.unlabeled[0]).softmax(1).detach()
    shares = F.one_hot(probs.argmax(1), 10).float().mean(0)
    now = {"confidence": probs.max(1).values.mean(), "probs": probs.mean(0), "shares": shares}
    # After no step what they start from does not count; after one it weighs a half; after many, the decay.
    for steps, kept in ((0, 0.0), (1, 0.5), (1000, 0.9)):
        state["statistics"]["steps"] = torch.tensor(float(steps))
        found = method.loss(network, given, state, PROGRESS).updates["statistics"]
        assert found["steps"] == steps + 1
        for name, value in now.items():
            assert torch.allclose(found[name], kept * 0.1 + (1 - kept) * value, atol=1e-6), name


def test_freematchs_loss_is_the_sum_of_its_terms():
    method = FreeMatch(unlabeled_weight=2.0, fairness_weight=0.5)
    network, given = linear(), batch_for(method)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    logits = network(given.unlabeled[1])
    each = F.cross_entropy(logits, loss.pseudo_labels, reduction="none")
    fairness = fairness_loss(logits, loss.accepted, loss.updates["statistics"])
    assert fairness < 0
    expected = (
        F.cross_entropy(network(given.labeled[0]), given.labels)
        + 2 * (each * loss.accepted).mean()
        + 2 * 0.5 * fairness
    )
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_freematch_holds_the_likeliest_class_to_the_global_threshold():
    method, network = FreeMatch(ema_decay=0.0), linear()
    given = batch_for(method)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    probs = network(given.unlabeled[0]).softmax(1).detach()
    confidence, guess = probs.max(1)
    thresholds = confidence.mean() * probs.mean(0) / probs.mean(0).max()
    assert torch.equal(loss.accepted.bool(), confidence >= thresholds[guess])
    assert 0 < int(loss.accepted.sum()) < 12


def test_fairness_equals_its_formula_and_vanishes_where_nothing_counts():
    logits = torch.randn(8, 3, generator=stream(), requires_grad=True)
    mask = torch.tensor([1.0, 0, 1, 1, 1, 0, 1, 1])
    statistics = {"probs": torch.tensor([0.5, 0.3, 0.2]), "shares": torch.tensor([0.6, 0.4, 0.0])}
    probs = logits.detach().softmax(1)[mask.bool()]
    shares = F.one_hot(probs.argmax(1), 3).double().mean(0)
    assert (shares > 0).all()
    found = probs.double().mean(0) / shares
    wanted = torch.tensor([0.5 / 0.6, 0.3 / 0.4, 0.0]).double()
    wanted, found = wanted / wanted.sum(), found / found.sum()
    loss = fairness_loss(logits, mask, statistics)
    assert float(loss.detach()) == pytest.approx(float((wanted * found.log()).sum()), rel=1e-4)
    nothing = fairness_loss(logits, torch.zeros(8), statistics)
    assert nothing == 0
    nothing.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("method", [FreeMatch(), SoftMatch()])
def test_statistics_forget_within_a_federation(method):
    """After 300 steps under other predictions, a 20th of the statistics at most is left of the 1,000 before."""
    network, given = linear(), batch_for(method)
    start = state_of(method, network)["statistics"] | {"steps": torch.tensor(1000.0)}
    moved = start
    for _ in range(300):
        moved = method.loss(network, given, {"statistics": moved}, PROGRESS).updates["statistics"]
    now = network(given.unlabeled[0]).softmax(1).detach().mean(0)
    left = (moved["probs"] - now).norm() / (start["probs"] - now).norm()
    assert float(left) < 0.05


# SoftMatch


def test_the_weight_is_one_from_the_mean_on_and_a_gaussian_below():
    mean, variance = torch.tensor(0.6), torch.tensor(0.04)
    weights = gaussian_weight(torch.tensor([0.2, 0.4, 0.6, 0.9]), mean, variance)
    expected = [math.exp(-0.16 / 0.08), math.exp(-0.04 / 0.08), 1, 1]
    assert weights.tolist() == pytest.approx(expected, rel=1e-5)


def test_softmatch_weighs_by_its_running_mean_and_variance():
    method, network = SoftMatch(ema_decay=0.0, uniform_alignment=False), linear()
    given = batch_for(method)
    state = state_of(method, network)
    spread = state["statistics"]["doubt_square"] - state["statistics"]["doubt"] ** 2
    assert float(spread) == pytest.approx(1)
    loss = method.loss(network, given, state, PROGRESS)
    confidence = network(given.unlabeled[0]).softmax(1).detach().max(1).values
    expected = gaussian_weight(confidence, confidence.mean(), confidence.var() / 4)
    assert torch.allclose(loss.accepted, expected, atol=1e-4)
    assert 0 < float(loss.accepted.min()) < 1


def test_softmatchs_statistics_move_by_the_decay():
    method, network = SoftMatch(ema_decay=0.75, uniform_alignment=False), linear()
    given = batch_for(method)
    state = state_of(method, network)
    state["statistics"]["steps"] = torch.tensor(1000.0)
    found = method.loss(network, given, state, PROGRESS).updates["statistics"]
    probs = network(given.unlabeled[0]).softmax(1).detach()
    doubt = 1 - probs.max(1).values
    now = {
        "doubt": doubt.mean(),
        "doubt_square": doubt.var() + doubt.mean() ** 2,
        "probs": probs.mean(0),
    }
    for name, value in now.items():
        expected = 0.75 * state["statistics"][name] + 0.25 * value
        assert torch.allclose(found[name], expected, atol=1e-6), name


def test_softmatch_tells_degrees_of_certainty_apart():
    """A thousandth of a percent from certain, where squares of the confidence itself have no digits left."""
    doubt = torch.tensor([1e-5, 2e-5, 3e-5, 4e-5])
    moments = _moments(doubt)
    variance = moments["doubt_square"] - moments["doubt"].square()
    assert float(variance) == pytest.approx(float(doubt.double().var()), rel=1e-3)


def test_softmatch_aligns_to_even_classes():
    """Weights are those of q / p~, normalized, with this step's marginal in p~."""
    method, network = SoftMatch(ema_decay=0.0), linear()
    given = batch_for(method)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    probs = network(given.unlabeled[0]).softmax(1).detach()
    aligned = probs / probs.mean(0)
    confidence = (aligned / aligned.sum(1, keepdim=True)).max(1).values
    expected = gaussian_weight(confidence, confidence.mean(), confidence.var() / 4)
    assert torch.allclose(loss.accepted, expected, atol=1e-4)


def test_uniform_alignment_weighs_but_does_not_relabel():
    network, given = linear(), batch_for(SoftMatch())
    pair = [SoftMatch(ema_decay=0.0, uniform_alignment=on) for on in (True, False)]
    on, off = (m.loss(network, given, state_of(m, network), PROGRESS) for m in pair)
    assert torch.equal(on.pseudo_labels, off.pseudo_labels)
    assert torch.equal(on.pseudo_labels, network(given.unlabeled[0]).argmax(1))
    assert not torch.allclose(on.accepted, off.accepted)


# UDA


@pytest.mark.parametrize(
    ("schedule", "half"),
    [("linear", 0.5), ("log", 1 - math.exp(-2.5)), ("exp", math.exp(-2.5)), ("none", 1.0)],
)
def test_annealing_goes_from_chance_to_certainty(schedule, half):
    assert annealing_threshold(schedule, 0.5, 10) == pytest.approx(half * 0.9 + 0.1)
    assert annealing_threshold(schedule, 1.0, 10) == pytest.approx(1, abs=0.01)
    if schedule in ("linear", "log"):
        assert annealing_threshold(schedule, 0.0, 10) == pytest.approx(0.1)


def test_annealing_leaves_out_what_is_already_right_and_divides_by_what_stays():
    network, given = linear(), batch_for(UDA())
    right = network(given.labeled[0]).softmax(1)[torch.arange(4), given.labels].detach()
    fraction = float((right.sort().values[1:3].mean() - 0.1) / 0.9)
    kept = right < right.sort().values[1:3].mean()
    assert int(kept.sum()) == 2
    method = UDA(annealing="linear")
    loss = method.annealed_loss(network, given.labeled[0], given.labels, fraction)
    expected = F.cross_entropy(network(given.labeled[0][kept]), given.labels[kept])
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert method.annealed_loss(network, given.labeled[0], given.labels, -1.0) == 0


def test_uda_does_not_anneal_unless_it_is_told_to():
    """As in the authors' scripts for CIFAR-10 and SVHN: every labeled image counts from the first step on."""
    method = UDA(unlabeled_weight=0)
    network, given = linear(), batch_for(UDA())
    first = method.loss(network, given, {}, Progress(1, 5, 0, 1)).total
    everything = F.cross_entropy(network(given.labeled[0]), given.labels)
    assert float(first.detach()) == pytest.approx(float(everything.detach()), rel=1e-6)


def test_udas_targets_are_sharpened_and_its_mask_is_not():
    method = UDA(threshold=0.16, temperature=0.4, annealing="none")
    network, given = linear(), batch_for(UDA(), labeled=0)
    loss = method.loss(network, given, {}, PROGRESS)
    logits = network(given.unlabeled[0]).detach()
    mask = logits.softmax(1).max(1).values >= 0.16
    assert 0 < int(mask.sum()) < 12
    assert torch.equal(loss.accepted.bool(), mask)
    each = F.cross_entropy(network(given.unlabeled[1]), (logits / 0.4).softmax(1), reduction="none")
    expected = (each * mask).sum() / 12
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_uda_anneals_by_the_rounds_that_are_over():
    """At the start only what is worse than chance counts; at the end everything."""
    method = UDA(annealing="linear", unlabeled_weight=0)
    network, given = linear(), batch_for(UDA())
    first, last = (
        float(method.loss(network, given, {}, progress).total.detach())
        for progress in (Progress(1, 5, 0, 1), Progress(6, 5, 0, 1))
    )
    everything = F.cross_entropy(network(given.labeled[0]), given.labels)
    assert last == pytest.approx(float(everything.detach()), rel=1e-5)
    right = network(given.labeled[0]).softmax(1)[torch.arange(4), given.labels]
    assert 0 < int((right < 0.1).sum()) < 4
    assert first != pytest.approx(last, rel=1e-3)


# Pseudo-Label


def test_pseudo_labels_below_the_threshold_do_not_count():
    method, network = PseudoLabel(threshold=0.16), linear()
    given = batch_for(method, labeled=0)
    loss = method.loss(network, given, {}, PROGRESS)
    confidence = network(given.unlabeled[0]).softmax(1).max(1).values
    assert torch.equal(loss.accepted.bool(), confidence >= 0.16)
    assert 0 < int(loss.accepted.sum()) < 12


def test_pseudo_labels_weight_grows_over_forty_percent():
    method, network = PseudoLabel(threshold=0), linear()
    given = batch_for(method, labeled=0)

    def total(round):
        return float(method.loss(network, given, {}, Progress(round, 100, 0, 1)).total.detach())

    assert total(1) == 0
    assert total(21) == pytest.approx(total(41) / 2)
    assert total(41) == pytest.approx(total(100))
    logits = network(given.unlabeled[0])
    assert total(100) == pytest.approx(float(F.cross_entropy(logits, logits.argmax(1)).detach()))
