"""DivideMix: a mixture divides the losses, each network trains with the other one's judgment, labels are refined."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core.slots import Merge
from fedssl.data.shard import Shard
from fedssl.methods import functional as pieces
from fedssl.methods.base import Fresh, Pools, Progress
from fedssl.methods.dividemix import (
    DivideMix,
    class_distribution,
    count_labels,
    mixed_loss,
    prior_penalty,
    refine_labels,
    warm_up_loss,
)
from fedssl.methods.mixture import (
    judge_labels,
    posterior_of_lower,
    scale_to_unit,
    split_by_two_means,
)
from fedssl.methods.two_networks import TwoNetworks
from fedssl.training.learn import learn
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from tests.methods.examples import SPEC, batch_for, linear, network_of, state_of, stream

AFTER = Progress(round=5, num_rounds=5, step=0, num_steps=2)
DURING = Progress(round=1, num_rounds=5, step=0, num_steps=2)


def logits_of(*probs):
    return torch.tensor(probs).log()


# the mixture


def test_two_heaps_of_losses_are_told_apart():
    losses = scale_to_unit(torch.tensor([[0.1, 0.1]] * 50 + [[2.0, 2.0]] * 50).double())
    probs = judge_labels(losses[:, 0], 0.5)
    assert torch.allclose(probs[:50], torch.ones(50).double(), atol=1e-6)
    assert torch.allclose(probs[50:], torch.zeros(50).double(), atol=1e-6)


def test_equal_losses_make_every_label_clean():
    losses = scale_to_unit(torch.full((7, 2), 1.3).double())
    assert not losses.any()
    assert torch.equal(judge_labels(losses[:, 0], 0.5), torch.ones(7).double())
    assert torch.equal(judge_labels(torch.zeros(1).double(), 0.5), torch.ones(1).double())


def test_a_judgment_that_leaves_nothing_is_not_used():
    losses = torch.linspace(0, 1, 40).double()
    probs = posterior_of_lower(losses)
    highest = float(probs.max())
    assert torch.equal(judge_labels(losses, highest - 1e-9), probs)
    assert torch.equal(judge_labels(losses, highest), torch.ones(40).double())


def test_losses_are_scaled_for_each_network_by_itself():
    scaled = scale_to_unit(torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 50.0]]).double())
    assert scaled.tolist() == [[0, 0], [0.5, 0.25], [1, 1]]


def test_the_first_split_is_the_best_of_all():
    """No threshold leaves a smaller sum of squares within the clusters."""
    values = torch.rand(40, generator=stream()).double() ** 3

    def within(high):
        return sum(
            float((values[side] - values[side].mean()).square().sum()) for side in (high, ~high)
        )

    best = min(within(values >= threshold) for threshold in values.sort().values[1:])
    assert within(split_by_two_means(values)) == pytest.approx(best)


def test_the_mixture_finds_the_gaussians_that_made_the_losses():
    draws = stream()
    clean = 0.2 + 0.05 * torch.randn(600, generator=draws).double()
    noisy = 0.7 + 0.1 * torch.randn(400, generator=draws).double()
    probs = posterior_of_lower(torch.cat([clean, noisy]))
    assert float((probs[:600] > 0.5).double().mean()) > 0.99
    assert float((probs[600:] > 0.5).double().mean()) < 0.01
    assert ((probs >= 0) & (probs <= 1)).all()


# labels, losses and the penalty


def test_a_label_is_refined_and_sharpened():
    """w = .8: .8 [1, 0] + .2 [.5, .5] = [.9, .1]; squares over their sum: [.9878, .0122]."""
    refined = refine_labels(torch.tensor([0]), torch.tensor([0.8]), torch.tensor([[0.5, 0.5]]))
    assert torch.allclose(refined, torch.tensor([[0.9, 0.1]]))
    assert pieces.sharpen(refined, 0.5)[0].tolist() == pytest.approx([0.9878, 0.0122], abs=1e-4)
    guess = pieces.sharpen(torch.tensor([[0.6, 0.4]]), 0.5)
    assert guess[0].tolist() == pytest.approx([0.6923, 0.3077], abs=1e-4)


def test_a_trusted_label_stays_and_a_distrusted_one_goes():
    probs = torch.tensor([[0.3, 0.7], [0.3, 0.7]])
    refined = refine_labels(torch.tensor([0, 0]), torch.tensor([1.0, 0.0]), probs)
    assert torch.allclose(refined, torch.tensor([[1.0, 0.0], [0.3, 0.7]]))


@pytest.mark.parametrize(
    ("prior", "expected"),
    [([0.5, 0.5], 0.5108), ([0.9, 0.1], 0.0), ([1.0, 0.0], math.log(1 / 0.9))],
)
def test_the_penalty_measures_the_distance_to_the_prior(prior, expected):
    """KL to a mean prediction of [.9, .1]; a class that the prior does not have costs nothing by itself."""
    logits = logits_of([0.98, 0.02], [0.82, 0.18])
    assert float(prior_penalty(logits, torch.tensor(prior))) == pytest.approx(expected, abs=1e-4)


def test_the_penalty_is_finite_for_certain_predictions():
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    penalty = prior_penalty(logits, torch.tensor([0.5, 0.5]))
    penalty.backward()
    assert penalty.isfinite()
    assert logits.grad.isfinite().all()


def test_the_mixed_loss_by_hand():
    """Row one: CE with its target, ln 2. Row two: mean over classes of (.9 - .5)^2, weighed by 25."""
    logits, targets = logits_of([0.5, 0.5], [0.9, 0.1]), torch.tensor([[0.3, 0.7], [0.5, 0.5]])
    assert float(mixed_loss(logits, targets, 1, 25.0)) == pytest.approx(math.log(2) + 25 * 0.16)
    assert float(mixed_loss(logits[:1], targets[:1], 1, 25.0)) == pytest.approx(math.log(2))
    assert float(mixed_loss(logits[1:], targets[1:], 0, 25.0)) == pytest.approx(25 * 0.16)
    assert float(mixed_loss(logits[:0], targets[:0], 0, 25.0)) == 0


def test_the_warm_up_may_reward_doubt():
    """CE of [.5, .5] is ln 2 and so is its entropy: a weight of 1 leaves nothing."""
    logits, labels = logits_of([0.5, 0.5]), torch.tensor([1])
    assert float(warm_up_loss(logits, labels, 0.0)) == pytest.approx(math.log(2))
    assert float(warm_up_loss(logits, labels, 1.0)) == pytest.approx(0, abs=1e-6)


def test_half_of_the_ramp_gives_half_of_the_weight():
    """Sixteen of a hundred rounds after a warm-up of ten: at round 18 and a half of them, 12.5 of 25."""
    method = DivideMix(warm_up=0.1, ramp_up=0.16)
    weights = [method.weight_at(Progress(1 + round, 100, 0, 10)) for round in (0, 10, 18, 26, 60)]
    assert weights == pytest.approx([0, 0, 12.5, 25, 25])
    assert [method.is_warming_up(Progress(r, 100, 0, 10)) for r in (1, 10, 11)] == [
        True,
        True,
        False,
    ]


def test_the_prior_is_of_the_given_labels():
    counts = count_labels(torch.tensor([0, 0, 2]), 3)
    assert counts.tolist() == [2, 0, 1]
    assert class_distribution(counts).tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert class_distribution(torch.zeros(4)).tolist() == [0.25] * 4


def test_the_federations_prior_is_the_only_state_that_travels():
    (_, prior) = DivideMix().slots()
    assert (prior.scope, prior.merge) == ("server", Merge("uniform", over="cohort"))
    for kind in ("client", "uniform"):
        assert all(slot.scope == "reset" for slot in DivideMix(prior=kind).slots())
    assert [slot.scope for slot in DivideMix(history=5).slots()][-1] == "client"


# two networks


def learned(method, labels, rounds=1, truth=None):
    """Train one client for some rounds of two steps; return the weights before and after, and the reports."""
    generator = stream(3)
    images = torch.randint(0, 256, (len(labels), 1, 4, 4), generator=generator, dtype=torch.uint8)
    shard = Shard(images, labels, labels if truth is None else truth, SPEC)
    network = network_of(method)
    before = pieces.snapshot(network)
    recipe = Recipe(method, Train(local_steps=2, batch_size=4, lr=0.05), Augment())
    kept, reports = {}, []
    for round in range(1, rounds + 1):
        report, state = learn(
            network, shard, recipe, kept,
            seed=0, server_round=round, client=0, phase_round=round, phase_rounds=rounds,
        )  # fmt: skip
        kept = {name: {k: t.numpy() for k, t in tensors.items()} for name, tensors in state.items()}
        reports.append(report)
    return before, pieces.snapshot(network), reports


@pytest.mark.parametrize(
    "labels", [[1] * 12, [-1] * 12, [0, 1, 2, 3] * 3, [5, *[-1] * 11], [5]], ids=len
)
def test_any_division_trains(labels):
    """All labels equal, none at all, all clean, a single one, a single image: no part may be empty and crash."""
    before, after, reports = learned(DivideMix(warm_up=0.0), torch.tensor(labels), rounds=2)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert reports[0].num_steps == 2


def test_a_client_without_labels_sits_the_warm_up_out():
    _, _, reports = learned(DivideMix(warm_up=0.5), torch.full((12,), -1), rounds=2)
    assert [report.is_inactive for report in reports] == [True, False]


@pytest.mark.parametrize("progress", [DURING, AFTER], ids=["warm-up", "later"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_networks_loss_moves_no_weight_of_the_other(place, progress):
    method = DivideMix()
    network = network_of(method)
    loss = method.loss_of(place, network, batch_for(method), state_of(method, network), progress)
    loss.total.backward()
    own, other = network.both()[place], network.both()[1 - place]
    assert all(p.grad is not None for p in own.parameters())
    assert all(p.grad is None for p in other.parameters())


def test_each_network_trains_with_the_judgment_of_the_other():
    """The second judges labels 0 and 1 clean, the first all but them: the pools of each are the other one's."""
    method = DivideMix(warm_up=0.0)

    probs = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.9, 0.1], [0.7, 0.5]])
    learner = SimpleNamespace(progress=AFTER, state={"clean": {"probs": probs}})
    first, second = (method._pools_of(place, learner) for place in (0, 1))
    assert isinstance(first, Pools)
    assert first.labeled.tolist() == [0, 1]
    assert first.unlabeled.tolist() == [2, 3]
    assert second.labeled.tolist() == [2, 3]
    assert second.unlabeled.tolist() == [0, 1]


@pytest.mark.parametrize("place", [0, 1])
def test_labels_are_refined_by_the_other_networks_trust(place):
    """Only if the other network trusts the labels are they the targets, whatever the network itself thinks of them."""
    method = DivideMix(alpha=0.0, prior="client")
    network = TwoNetworks(linear(0), linear(1))
    batch = batch_for(method, unlabeled=0)
    state = state_of(method, network)
    even = torch.full((10,), 0.1)
    state["prior"]["counts"] = even
    logits = network.both()[place](torch.cat(batch.labeled))
    given = nn.functional.cross_entropy(logits, batch.labels.repeat(2)) + prior_penalty(
        logits, even
    )
    for trusting in (0, 1):
        state["clean"]["probs"] = torch.zeros(12, 2)
        state["clean"]["probs"][:, trusting] = 1
        loss = method.loss_of(place, network, batch, state, AFTER).total
        is_given = torch.allclose(loss, given, atol=1e-5)
        assert is_given == (trusting == 1 - place)


def test_targets_carry_no_gradient():
    """The partner and the guesses are outside the graph: the loss's gradient reaches one network only, once a view."""
    method = DivideMix(alpha=0.0)
    network = network_of(method)
    calls = []
    network.second.register_forward_hook(
        lambda module, inputs, out: calls.append(out.requires_grad)
    )
    method.loss(network, batch_for(method), state_of(method, network), AFTER)
    assert calls == [False]


def test_the_same_bits_twice_and_other_bits_by_round():
    labels = torch.tensor([0, 1, 2, 3] * 3)
    first, second = (learned(DivideMix(warm_up=0.0), labels)[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(
        torch.equal(first[n], learned(DivideMix(warm_up=0.5), labels)[1][n]) for n in first
    )


def test_evaluation_adds_the_logits():
    network = TwoNetworks(linear(0), linear(1))
    images = torch.randn(3, 1, 4, 4, generator=stream())
    assert torch.equal(network(images), network.first(images) + network.second(images))
    assert DivideMix().classifier(network) is network


def test_the_history_is_the_mean_of_the_last_rounds():
    """Three rounds of one image's loss, .2, .4 and .9, under a history of two."""
    method = DivideMix(history=2)
    labels = torch.tensor([0, -1])
    shard = Shard(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), labels, labels, SPEC)
    kept = method.init_slot("losses", Fresh(network_of(method), SPEC, shard))
    found = [
        method._mean_with_earlier(kept, torch.tensor([[loss, 0.0]]), torch.tensor([0]))[0, 0]
        for loss in (0.2, 0.4, 0.9)
    ]
    assert [float(mean) for mean in found] == pytest.approx([0.2, 0.3, 0.65])


def test_the_share_of_clean_labels_is_recorded():
    _, _, reports = learned(DivideMix(warm_up=0.5), torch.tensor([0, 1, 2, 3] * 3), rounds=2)
    assert reports[0].numbers["clean_share"] == 1
    assert 0 < reports[1].numbers["clean_share"] <= 1


def test_the_penalty_uses_the_prior_that_the_state_holds():
    """Two priors: the losses differ by the difference of the divergences, and by nothing else."""
    method = DivideMix(alpha=0.0, unlabeled_weight=0.0)
    network, batch = network_of(method), batch_for(method)
    state = state_of(method, network)
    logits = network.first(torch.cat([*batch.labeled, *batch.unlabeled]))
    even, skewed = torch.full((10,), 0.1), torch.tensor([0.55, *[0.05] * 9])
    losses = []
    for prior in (even, skewed):
        state["prior"]["counts"] = 40 * prior
        losses.append(method.loss(network, batch, state, AFTER).total)
    expected = prior_penalty(logits, skewed) - prior_penalty(logits, even)
    assert torch.allclose(losses[1] - losses[0], expected, atol=1e-5)
    assert abs(float(expected.detach())) > 0.01
