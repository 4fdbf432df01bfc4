"""Sharpening, distribution alignment and MixUp: MixMatch and ReMixMatch."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedssl.core.errors import InputError
from fedssl.data.shard import Shard
from fedssl.methods import functional as pieces
from fedssl.methods import remixmatch as module
from fedssl.methods.base import Progress
from fedssl.methods.heads import TwoHeads, quarter_turns
from fedssl.methods.mixmatch import MixMatch
from fedssl.methods.remixmatch import ReMixMatch
from fedssl.models.cnn import CNN
from fedssl.training.network import build_network
from tests.methods.examples import (
    PROGRESS,
    SPEC,
    Watched,
    batch_for,
    learner,
    linear,
    network_of,
    state_of,
    stream,
)


def distributions(count, seed=0, classes=10):
    return torch.randn(count, classes, generator=stream(seed)).softmax(1)


# 4. sharpening


def test_sharpening_at_temperature_one_changes_nothing():
    probs = distributions(5)
    assert torch.allclose(pieces.sharpen(probs, 1.0), probs, atol=1e-7)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_sharpening_divides_logits_by_the_temperature(temperature):
    logits = torch.randn(5, 10, generator=stream())
    expected = (logits / temperature).softmax(1)
    assert torch.allclose(pieces.sharpen(logits.softmax(1), temperature), expected, atol=1e-6)


def test_sharpening_keeps_certainty_finite():
    certain = torch.eye(3)
    assert torch.equal(pieces.sharpen(certain, 0.5), certain)


# 11. distribution alignment


def test_alignment_to_what_is_already_there_is_the_identity():
    probs, prior = distributions(5), distributions(1, seed=1)[0]
    assert torch.allclose(pieces.align_distribution(probs, prior, prior), probs, atol=1e-6)


def test_what_equals_the_marginal_becomes_the_prior():
    marginal, prior = distributions(1)[0], distributions(1, seed=1)[0]
    aligned = pieces.align_distribution(marginal[None], prior, marginal)
    assert torch.allclose(aligned[0], prior, atol=1e-6)


def test_remixmatch_aligns_by_what_was_there_before_the_step():
    """The window starts even and takes each step's mean guess, as it was before alignment."""
    method = ReMixMatch(num_strong=1, alignment_window=4)
    network = network_of(method)
    state = state_of(method, network)
    assert torch.allclose(state["alignment"]["recent"], torch.full((4, 10), 0.1))
    given = batch_for(method)
    guess = pieces.predict(network, given.unlabeled[0])
    for step in range(6):
        state["alignment"] |= method.loss(network, given, state, PROGRESS).updates["alignment"]
        recent = state["alignment"]["recent"]
        filled = min(step + 1, 4)
        assert torch.allclose(recent[4 - filled :], guess.mean(0).expand(filled, -1), atol=1e-6)
        assert torch.allclose(recent[: 4 - filled], torch.full((4 - filled, 10), 0.1))


def alignment_after(method, classes, size, alignment=None):
    """Return the state after a round of ten steps at a client of `size` images with labels of these classes."""
    labels = torch.full((size,), -1)
    labels[: len(classes)] = torch.tensor(classes, dtype=torch.int64)
    own = Shard(torch.zeros(size, 1, 4, 4, dtype=torch.uint8), labels, torch.zeros(size), SPEC)
    network = network_of(method)
    state = {"alignment": alignment or state_of(method, network)["alignment"]}
    method.end(learner(network, state, own))
    return state["alignment"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.lists(st.integers(0, 9), max_size=9), st.integers(9, 200)), min_size=1)
)
def test_every_label_of_a_cohort_counts_the_same(clients):
    """The server's mean, weighed by images, gives the classes' shares of all labels, whoever holds them."""
    method = ReMixMatch(label_decay=0)
    found = [alignment_after(method, classes, size) for classes, size in clients]
    total = sum(size for _, size in clients)
    merged = {
        name: sum(size * own[name] for own, (_, size) in zip(found, clients, strict=True)) / total
        for name in found[0]
    }
    labels = [label for classes, _ in clients for label in classes]
    counts = torch.bincount(torch.tensor(labels, dtype=torch.int64), minlength=10).float()
    expected = counts / len(labels) if labels else torch.full((10,), 0.1)
    assert torch.allclose(method.wanted_distribution(merged), expected, atol=1e-5)


def test_one_label_and_nine_elsewhere_are_a_tenth_and_nine_tenths():
    method = ReMixMatch(label_decay=0)
    one, nine = alignment_after(method, [0], 100), alignment_after(method, [1] * 9, 100)
    merged = {name: (one[name] + nine[name]) / 2 for name in one}
    assert method.wanted_distribution(merged)[:2].tolist() == pytest.approx([0.1, 0.9])


def test_the_wanted_distribution_goes_from_even_classes_to_the_labels():
    """By ``label_decay`` a step, as a running mean of the labels does; no step has moved it at first."""
    method = ReMixMatch()
    start = state_of(method, network_of(method))["alignment"]
    assert torch.allclose(method.wanted_distribution(start), torch.full((10,), 0.1))
    alignment = start
    for round in range(1, 4):
        alignment = alignment_after(method, [0, 0, 3], 50, alignment)
        left = 0.99 ** (10 * round)
        wanted = method.wanted_distribution(alignment)
        assert float(wanted[0]) == pytest.approx(left * 0.1 + (1 - left) * 2 / 3, rel=1e-4)


def test_remixmatch_aligns_guesses_to_the_labels_and_not_the_other_way_round():
    """From uneven state, with alpha = 0 and the mixed terms alone, the loss is a sum that can be written down."""
    method = ReMixMatch(num_strong=1, alpha=0, ramp_up=0, unmixed_weight=0, rotation_weight=0)
    network, given = network_of(method), batch_for(method, labeled=0)
    labels, recent = distributions(1, seed=5)[0], distributions(128, seed=6)
    state = {"alignment": {"labels": 0.3 * labels, "recent": recent}}
    state["alignment"]["steps"] = torch.tensor(1e6)  # nothing is left of the even classes
    weak, strong = given.unlabeled
    guess = network(weak).softmax(1).detach()
    aligned = guess * labels / recent.mean(0)
    target = (aligned / aligned.sum(1, keepdim=True)) ** 2
    target = target / target.sum(1, keepdim=True)
    both = torch.cat([strong, weak])
    expected = 1.5 * F.cross_entropy(network(both), torch.cat([target, target]))
    loss = method.loss(network, given, state, PROGRESS)
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.equal(loss.pseudo_labels, target.argmax(1))
    assert not torch.equal(loss.pseudo_labels, guess.argmax(1))


# 12. MixUp


@pytest.mark.parametrize("mixing", ["example", "batch"])
def test_a_mixed_row_is_closest_to_its_own(mixing):
    weights = pieces.mixing_weights(1000, 0.75, mixing, stream())
    assert weights.min() >= 0.5
    assert weights.max() <= 1
    assert (len(weights.unique()) == 1) == (mixing == "batch")


def test_mixing_weights_follow_the_beta_distribution():
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); folding at 1/2 keeps the distance to it."""
    for alpha in (0.1, 0.75, 4.0):
        weights = pieces.mixing_weights(20_000, alpha, "example", stream()).double()
        variance = float((weights - 0.5).square().mean())
        assert variance == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.03)
    assert (pieces.mixing_weights(5, 0.0, "example", stream()) == 1).all()


def test_mixed_targets_stay_distributions_and_rows_pair_up():
    images, targets = torch.randn(9, 1, 4, 4, generator=stream()), distributions(9)
    weights = pieces.mixing_weights(9, 0.75, "example", stream(1))
    mixed, classes = pieces.mix_with_shuffled(images, targets, weights, stream(2))
    other = torch.randperm(9, generator=stream(2))
    assert torch.allclose(classes.sum(1), torch.ones(9), atol=1e-6)
    for i in range(9):
        w, j = weights[i], other[i]
        assert torch.allclose(mixed[i], w * images[i] + (1 - w) * images[j], atol=1e-6)
        assert torch.allclose(classes[i], w * targets[i] + (1 - w) * targets[j], atol=1e-6)


def test_mixmatch_without_mixing_is_what_the_paper_says():
    """alpha = 0: CE on the labels, and lambda_u MSE of every view to the sharpened mean of their guesses."""
    method = MixMatch(alpha=0, ramp_up=0, unlabeled_weight=7.0)
    network, given = linear(), batch_for(MixMatch())
    loss = method.loss(network, given, {}, PROGRESS)
    guess = torch.stack([network(v).softmax(1) for v in given.unlabeled]).mean(0).detach()
    target = guess**2 / (guess**2).sum(1, keepdim=True)
    squares = [(network(v).softmax(1) - target).square().mean() for v in given.unlabeled]
    expected = F.cross_entropy(network(given.labeled[0]), given.labels) + 7 * sum(squares) / 2
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert torch.equal(loss.pseudo_labels, guess.argmax(1))


def test_mixmatch_mixes_labeled_with_unlabeled_images_labeled_first():
    method, network = MixMatch(), Watched(linear())
    given = batch_for(method)
    method.loss(network, given, {}, PROGRESS)
    *_, labeled, unlabeled = network.seen
    assert [len(labeled), len(unlabeled)] == [4, 24]
    own = torch.cat([*given.labeled, *given.unlabeled])
    mixed = torch.cat([labeled, unlabeled])
    distance = torch.cdist(mixed.flatten(1), own.flatten(1))
    assert (distance.argmin(1) == torch.arange(28)).float().mean() > 0.9
    assert (distance.diagonal() > 1e-4).any()


# 13. the order in ReMixMatch, and its rotations


def test_remixmatch_anchors_k_strong_views_and_leaves_the_first_unmixed(monkeypatch):
    method = ReMixMatch(num_strong=3)
    recorder = Watched(linear())
    network = method.network(lambda: recorder)
    given = batch_for(method)
    order = []
    for name in ("align_distribution", "sharpen", "mix_with_shuffled"):
        original = getattr(module, name)

        def noted(*args, name=name, original=original):
            order.append((name, args))
            return original(*args)

        monkeypatch.setattr(module, name, noted)
    method.loss(network, given, state_of(method, network), PROGRESS)
    assert [name for name, _ in order] == ["align_distribution", "sharpen", "mix_with_shuffled"]
    images, classes = order[-1][1][:2]
    weak, *strong = given.unlabeled
    assert len(images) == 4 + 12 * (3 + 1)
    assert torch.equal(images, torch.cat([*given.labeled, *strong, weak]))
    assert all(torch.equal(classes[4:16], classes[4 + 12 * k : 16 + 12 * k]) for k in range(4))
    assert any(torch.equal(strong[0], seen) for seen in recorder.seen)
    assert not any(torch.equal(strong[1], seen) for seen in recorder.seen)


def test_remixmatchs_terms_weigh_what_they_should():
    """alpha = 0 and two strong views: every term can be written down; at the first step, two of them are off."""
    method = ReMixMatch(num_strong=2, alpha=0)
    network = network_of(method)
    given = batch_for(method)
    state = state_of(method, network)
    weak, strong, other = given.unlabeled
    guess = network(weak).softmax(1).detach()  # aligned to even classes from even classes: itself
    target = guess**2 / (guess**2).sum(1, keepdim=True)
    shown = torch.cat([strong, other, weak])
    turns_stream = stream(1)
    torch.randperm(40, generator=turns_stream)
    turns = torch.randint(4, (12,), generator=turns_stream)
    rotation = F.cross_entropy(network.second_logits(quarter_turns(strong, turns)), turns)
    always = F.cross_entropy(network(given.labeled[0]), given.labels) + 0.5 * rotation
    ramped = 1.5 * F.cross_entropy(network(shown), target.repeat(3, 1))
    ramped = ramped + 0.5 * F.cross_entropy(network(strong), target)
    for progress, expected in ((PROGRESS, always + ramped), (Progress(1, 64, 0, 10), always)):
        fresh = replace(given, generator=stream(1))
        loss = method.loss(network, fresh, state, progress)
        assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_four_quarter_turns_are_the_identity():
    images = torch.randn(4, 3, 5, 5, generator=stream())
    turned = images
    for _ in range(4):
        turned = quarter_turns(turned, torch.ones(4, dtype=torch.int64))
    assert torch.equal(turned, images)
    each = quarter_turns(images, torch.arange(4))
    assert all(torch.equal(each[k], torch.rot90(images[k], k, (1, 2))) for k in range(4))
    oblong = replace(SPEC, shape=(1, 4, 5))
    with pytest.raises(InputError, match=r"method.rotation_weight: is 0.5, .*4x5"):
        build_network(CNN(), ReMixMatch(), oblong, 0)
    assert build_network(CNN(), ReMixMatch(rotation_weight=0), oblong, 0)


def test_a_head_that_cannot_tell_costs_ln_4():
    method = ReMixMatch(num_strong=1)
    network = network_of(method)
    nn.init.zeros_(network.second.weight)
    nn.init.zeros_(network.second.bias)
    images = torch.randn(8, 1, 4, 4, generator=stream())
    loss = method.rotation_loss(network, images, stream())
    assert float(loss.detach()) == pytest.approx(math.log(4), rel=1e-6)


def test_the_second_head_reads_the_features_of_the_first():
    network = TwoHeads(linear(), 4)
    images = torch.randn(6, 1, 4, 4, generator=stream())
    features = network.classifier.features(images)
    assert torch.equal(network.second_logits(images), network.second(features))
    assert torch.equal(network(images), network.classifier(images))
    assert sum(p.numel() for p in network.parameters()) == 16 * 8 + 8 + 8 * 10 + 10 + 8 * 4 + 4


def test_no_rotation_loss_without_its_weight():
    method = ReMixMatch(num_strong=1, rotation_weight=0)
    given = batch_for(method)
    oblong = replace(
        given,
        labeled=tuple(v.reshape(-1, 1, 2, 8) for v in given.labeled),
        unlabeled=tuple(v.reshape(-1, 1, 2, 8) for v in given.unlabeled),
    )
    network = network_of(method)
    assert torch.isfinite(method.loss(network, oblong, state_of(method, network), PROGRESS).total)
