"""SAGE: soft pseudo-labels that the received model corrects, by the difference of the confidences."""

import copy
import math

import pytest
import torch

from fedssl.core.errors import InputError
from fedssl.methods import functional as pieces
from fedssl.methods.base import FORWARD, METHODS
from fedssl.methods.sage import SAGE, corrected_labels
from tests.methods.examples import PROGRESS, batch_for, linear, state_of

NUM_CLASSES = 10


def predicting(label, confidence):
    """Return probabilities of NUM_CLASSES classes, (1, C): the confidence for a class, and even shares for the others."""
    rest = (1 - confidence) / (NUM_CLASSES - 1)
    probs = torch.full((1, NUM_CLASSES), rest, dtype=torch.float64)
    probs[0, label] = confidence
    return probs


def corrected(local, received, half_trust=0.05):
    """Return the target and the mask of one image, from a label and a confidence of each model."""
    targets, mask = corrected_labels(predicting(*local), predicting(*received), 0.95, half_trust)
    return targets[0].tolist(), float(mask[0])


def two_classes(first, second, share):
    """Return a target with the share for one class and the rest for another class."""
    target = [0.0] * NUM_CLASSES
    target[first], target[second] = share, target[second] + 1 - share
    return target


@pytest.mark.parametrize(
    ("difference", "share"), [(0, 1), (0.05, 0.5), (0.1, 0.25), (0.2, 1 / 16), (0.6, 2**-12)]
)
def test_the_weight_of_the_own_label_halves_with_each_step_of_the_difference(difference, share):
    """exp(-kappa d) with kappa = ln 2 / .05, whose values are 1, 1/2 and 1/4 at 0, .05 and .1."""
    target, mask = corrected((2, 0.97), (7, 0.97 - difference))
    assert target == pytest.approx(two_classes(2, 7, share), abs=1e-12)
    assert mask == 1
    kappa = math.log(2) / 0.05
    assert kappa == pytest.approx(13.863, abs=1e-3)
    assert target[2] == pytest.approx(math.exp(-kappa * difference))


def test_the_difference_has_no_sign():
    """A received model that is surer by .04 corrects as much as one that is less sure by .04."""
    surer, _ = corrected((2, 0.95), (7, 0.99))
    less_sure, _ = corrected((2, 0.99), (7, 0.95))
    assert surer == pytest.approx(less_sure)
    assert surer[2] == pytest.approx(0.5 ** (0.04 / 0.05))


@pytest.mark.parametrize("received", [0.3, 0.9, 0.96, 1.0])
@pytest.mark.parametrize("own", [0.5, 0.95, 1.0])
def test_models_that_agree_give_one_class_whatever_the_weight(own, received):
    target, _ = corrected((4, own), (4, received))
    assert target == [float(c == 4) for c in range(NUM_CLASSES)]


def test_only_the_received_model_is_confident_so_its_label_stands_alone():
    target, mask = corrected((2, 0.94), (7, 0.96))
    assert target == [float(c == 7) for c in range(NUM_CLASSES)]
    assert mask == 1


def test_nobody_is_confident_so_the_image_does_not_count():
    target, mask = corrected((2, 0.94), (7, 0.94))
    assert target == [float(c == 7) for c in range(NUM_CLASSES)]
    assert mask == 0


def test_the_threshold_lets_through_what_reaches_it():
    reached = torch.full((1, 4), 0.01, dtype=torch.float64)
    reached[0, 1] = 0.97
    below = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert corrected_labels(reached, below, 0.97, 0.05)[1].item() == 1
    assert corrected_labels(below, reached, 0.97, 0.05)[1].item() == 1
    assert corrected_labels(reached, below, 0.98, 0.05)[1].item() == 0


def moved_and_received(seed=1):
    """Return a client's network and the state that holds another network as the received one."""
    return linear(0), state_of(SAGE(), linear(seed))


def test_the_loss_is_a_plain_loop_over_the_images():
    """The mean is over all images; each divergence is that of the target from the strong view's prediction."""
    network, state = moved_and_received()
    given = batch_for(SAGE())
    local = pieces.predict(network, given.unlabeled[0])
    received = pieces.predict(linear(1), given.unlabeled[0])
    threshold = float(local.amax(1).median())
    loss = SAGE(threshold=threshold, unlabeled_weight=2.0).loss(network, given, state, PROGRESS)
    predicted = pieces.predict(network, given.unlabeled[1]).double()
    total, counted = 0.0, []
    for own, other, strong in zip(local.double(), received.double(), predicted, strict=True):
        c, d = float(own.max()), float(other.max())
        share = 2 ** (-abs(c - d) / 0.05) if c >= threshold else 0.0
        target = torch.zeros(NUM_CLASSES, dtype=torch.float64)
        target[own.argmax()] += share
        target[other.argmax()] += 1 - share
        counted.append(c >= threshold or d >= threshold)
        if counted[-1]:
            total += sum(
                float(t) * math.log(float(t) / float(p))
                for t, p in zip(target, strong, strict=True)
                if t > 0
            )
    supervised = pieces.supervised_loss(network, given.labeled[0], given.labels)
    assert 0 < sum(counted) < len(counted)
    assert loss.accepted.tolist() == [float(counts) for counts in counted]
    expected = float(supervised.detach()) + 2 * total / len(counted)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    same = (local.argmax(1) == received.argmax(1)).float().mean()
    assert loss.numbers["agreement"] == same


def test_the_weak_view_and_the_received_weights_get_no_gradient():
    """The gradient is that of a loss whose targets are constants."""
    network, state = moved_and_received()
    given = batch_for(SAGE(), labeled=0)
    SAGE(threshold=0).loss(network, given, state, PROGRESS).total.backward()
    ours = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    local, received = (pieces.predict(n, given.unlabeled[0]) for n in (network, linear(1)))
    targets, _ = corrected_labels(local, received, 0.0, 0.05)
    logs = network(given.unlabeled[1]).log_softmax(1)
    (-(targets * logs).sum(1).mean()).backward()
    for mine, p in zip(ours, network.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, atol=1e-7)


def test_a_client_that_has_not_moved_labels_as_fixmatch_does():
    """Before the first step both models are the same, so the target is the own label with the weight 1."""
    method, network = SAGE(threshold=0), linear()
    given, state = batch_for(method), state_of(method, copy.deepcopy(network))
    loss = method.loss(network, given, state, PROGRESS)
    fixmatch = METHODS.build({"kind": "fixmatch", "threshold": 0.0})
    expected = fixmatch.loss(network, given, {}, PROGRESS)
    assert torch.equal(loss.pseudo_labels, expected.pseudo_labels)
    assert float(loss.total.detach()) == pytest.approx(float(expected.total.detach()), rel=1e-6)
    assert loss.numbers["agreement"] == 1


def test_nobody_is_confident_so_only_the_labels_are_learned():
    method, (network, state) = SAGE(threshold=1), moved_and_received()
    given = batch_for(method)
    loss = method.loss(network, given, state, PROGRESS)
    supervised = pieces.supervised_loss(network, given.labeled[0], given.labels)
    assert torch.equal(loss.total, supervised)
    assert not loss.accepted.any()
    nothing = method.loss(network, batch_for(method, labeled=0), state, PROGRESS).total
    assert nothing == 0
    nothing.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters() if p.grad is not None)


def test_certain_predictions_stay_finite():
    """Probabilities of exactly 0 and 1 are in the targets and in the predictions."""
    network, state = moved_and_received()
    with torch.no_grad():
        network.head.weight.mul_(1e4)
    loss = SAGE().loss(network, batch_for(SAGE()), state, PROGRESS)
    assert loss.accepted.any()
    assert torch.isfinite(loss.total)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_the_work_of_a_step():
    """A strong view with gradients, and a weak view of two models without."""
    assert SAGE().images_per_step(8, 16) == pytest.approx(8 + 16 + 2 * 16 * FORWARD)


@pytest.mark.parametrize(("field", "value"), [("half_trust", 0.0), ("threshold", 1.1)])
def test_settings_out_of_range_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        METHODS.build({"kind": "sage", field: value})
