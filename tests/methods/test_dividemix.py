"""DivideMix: two networks judge given labels for each other, refine and guess labels, and learn by MixMatch."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core.slots import Merge, Slot
from fedssl.data.shard import Shard
from fedssl.methods import dividemix as module
from fedssl.methods import functional as pieces
from fedssl.methods.base import Fresh, Progress
from fedssl.methods.dividemix import (
    DivideMix,
    class_distribution,
    count_labels,
    mixed_loss,
    prior_penalty,
    refine_labels,
    warm_up_loss,
)
from fedssl.methods.two_networks import TwoNetworks, mean_prediction
from fedssl.models.cnn import CNN
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Descent, Train
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.recipe import Recipe
from tests.methods.examples import (
    PROGRESS,
    SPEC,
    batch_for,
    learner,
    network_of,
    state_of,
    stream,
)

FIRST_ROUND = Progress(round=1, num_rounds=10, step=0, num_steps=2)
FOURTH_ROUND = Progress(round=4, num_rounds=10, step=0, num_steps=2)


def of(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def shard_of(labels):
    """A client whose images are all different; -1 stands for no label."""
    images = torch.randint(256, (len(labels), 1, 4, 4), generator=stream(), dtype=torch.uint8)
    given = torch.tensor(labels, dtype=torch.int64)
    return Shard(images, given, torch.full_like(given, -1), SPEC)


def learner_of(method, network, own, progress=FOURTH_ROUND):
    """A learner that shows images as they are, and whose further batches are the pools that were asked for."""
    fresh = Fresh(network, SPEC, own)
    state = {slot.name: method.init_slot(slot.name, fresh) for slot in method.slots()}

    def show(view, ids=None, *, name):
        assert view == "plain"
        for chunk in ids.split(3):
            yield chunk, SPEC.normalize(own.images[chunk].float() / 255)

    def batches(pools, views, *, name):
        return iter([pools])

    return replace(learner(network, state, own, progress), show=show, batches=batches)


class Certain(nn.Module):
    """Call every image the same class."""

    def __init__(self, favorite):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(10).index_fill(0, torch.tensor([favorite]), 3.0))

    def forward(self, images):
        return self.logits.expand(len(images), -1)


# the pieces, by hand


def test_a_doubted_label_is_refined_by_the_prediction():
    refined = refine_labels(torch.tensor([0]), torch.tensor([0.8]), of([0.5, 0.5]))
    assert torch.allclose(refined, of([0.9, 0.1]))
    assert torch.allclose(pieces.sharpen(refined, 0.5), of([0.9878, 0.0122]), atol=5e-5)
    assert torch.allclose(pieces.sharpen(of([0.6, 0.4]), 0.5), of([0.6923, 0.3077]), atol=5e-5)


def test_a_trusted_label_stays_and_a_rejected_one_is_gone():
    probs, labels = of([0.3, 0.7], [0.3, 0.7]), torch.tensor([0, 0])
    refined = refine_labels(labels, torch.tensor([1.0, 0.0]), probs)
    assert torch.equal(refined, of([1.0, 0.0], [0.3, 0.7]))


def test_the_mean_prediction_is_over_views():
    told = iter([of([0.9, 0.1], [0.5, 0.5]), of([0.7, 0.3], [0.1, 0.9])])
    found = mean_prediction(lambda images: next(told).log(), [torch.zeros(2, 1)] * 2, 2)
    assert torch.allclose(found, of([0.8, 0.2], [0.3, 0.7]))
    assert mean_prediction(lambda images: 1 / 0, [torch.zeros(0, 1)] * 2, 5).shape == (0, 5)


@pytest.mark.parametrize(
    ("prior", "value"), [([0.5, 0.5], 0.5108), ([0.9, 0.1], 0.0), ([1.0, 0.0], -math.log(0.9))]
)
def test_the_penalty_compares_the_mean_prediction_with_the_prior(prior, value):
    """Two rows whose mean is .9 and .1; a class of prior 0 costs nothing."""
    logits = of([0.98, 0.02], [0.82, 0.18]).log()
    assert float(prior_penalty(logits, torch.tensor(prior))) == pytest.approx(value, abs=5e-5)


def test_the_penalty_of_a_class_that_nobody_predicts_is_finite():
    logits = of([0.0, -500.0]).requires_grad_()
    penalty = prior_penalty(logits, torch.tensor([0.5, 0.5]))
    assert float(penalty.detach()) == pytest.approx(250 - math.log(2), rel=1e-5)
    penalty.backward()
    assert torch.isfinite(logits.grad).all()


def test_labeled_rows_cost_cross_entropy_and_the_rest_squared_errors():
    logits, targets = of([0.5, 0.5], [0.75, 0.25]).log(), of([1.0, 0.0], [0.25, 0.75])
    supervised, squared = math.log(2), 0.25
    for num_labeled, expected in ((1, supervised + 8 * squared), (0, 8 * (0.25 + 0.25) / 2)):
        loss = float(mixed_loss(logits, targets, num_labeled, weight=8.0))
        assert loss == pytest.approx(expected, rel=1e-5)
    alone = float(mixed_loss(logits[:1], targets[:1], 1, weight=8.0))
    assert alone == pytest.approx(supervised, rel=1e-5)


def test_the_warm_up_may_reward_entropy():
    logits = of([0.8, 0.2]).log()
    cost, doubt = -math.log(0.8), -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    for weight in (0.0, 1.0, 0.5):
        loss = float(warm_up_loss(logits, torch.tensor([0]), weight))
        assert loss == pytest.approx(cost - weight * doubt, rel=1e-5)


def test_counts_give_the_prior():
    counts = count_labels(torch.tensor([0, 2, 2, 2]), 4)
    assert counts.tolist() == [1, 0, 3, 0]
    assert class_distribution(counts).tolist() == [0.25, 0, 0.75, 0]
    assert class_distribution(torch.zeros(4)).tolist() == [0.25] * 4


def test_the_prior_is_the_cohorts_and_not_the_mean_of_the_clients():
    """Nine labels of class 0 at one client and one of class 1 at another are .9 and .1."""
    method = DivideMix()
    assert Slot("prior", "server", Merge("uniform", "cohort")) in method.slots()
    sent = []
    for labels in ([0] * 9, [1] + [-1] * 20):
        ready = learner_of(method, network_of(method), shard_of(labels))
        method.end(ready)
        sent.append(ready.state["prior"]["counts"])
    assert class_distribution(sum(sent) / 2)[:2].tolist() == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("prior", ["client", "uniform"])
def test_other_priors_travel_nowhere(prior):
    method, own = DivideMix(prior=prior), shard_of([0, 0, 0, 1, -1])
    assert all(slot.scope == "reset" for slot in method.slots())
    ready = learner_of(method, network_of(method), own)
    method.end(ready)
    shares = class_distribution(ready.state["prior"]["counts"])
    expected = [0.75, 0.25] + [0] * 8 if prior == "client" else [0.1] * 10
    assert shares.tolist() == pytest.approx(expected)


def test_the_first_cohort_starts_from_even_classes():
    method = DivideMix()
    content = method.init_slot("prior", Fresh(network_of(method), SPEC, None))
    assert torch.allclose(class_distribution(content["counts"]), torch.full((10,), 0.1))


# the schedule


def test_the_warm_up_is_a_share_of_the_rounds():
    method = DivideMix(warm_up=0.3)
    rounds = range(1, 11)
    assert [method.is_warming_up(Progress(r, 10, 0, 1)) for r in rounds] == [True] * 3 + [False] * 7


@pytest.mark.parametrize("half", [39, 51])
def test_the_unlabeled_weight_grows_after_the_warm_up(half):
    """Half-way up the ramp, 12.5 of 25."""
    method = DivideMix(warm_up=0.25, ramp_up=2 * (half - 26) / 100)
    at = {r: method.weight_at(Progress(r, 100, 0, 1)) for r in (1, 26, half, 76, 100)}
    assert at == pytest.approx({1: 0, 26: 0, half: 12.5, 76: 25, 100: 25})


# the two networks


def test_the_sum_of_both_networks_logits_classifies():
    method = DivideMix()
    network = network_of(method)
    images = torch.randn(5, 1, 4, 4, generator=stream())
    assert method.classifier(network) is network
    assert torch.equal(network(images), network.first(images) + network.second(images))


def test_the_networks_start_apart():
    network = build_network(CNN(widths=(4,), hidden=4), DivideMix(), SPEC, seed=0)
    first, second = network.first.state_dict(), network.second.state_dict()
    drawn = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert len(drawn) > 1
    assert not any(torch.equal(first[name], second[name]) for name in drawn)


@pytest.mark.parametrize("progress", [FIRST_ROUND, PROGRESS])
def test_a_networks_step_moves_that_network_alone(progress):
    method = DivideMix()
    network = network_of(method)
    state = state_of(method, network)
    optimizers = OptimizerSet(method.optimizers(network, Train().make_optimizer))
    descent = Descent(optimizers, Train(), torch.device("cpu"))
    moved = {}

    def descend(total, name):
        before = pieces.snapshot(network)
        descent(total, name)
        after = network.state_dict()
        moved[name] = {key for key in before if not torch.equal(before[key], after[key])}

    ready = replace(learner(network, state, progress=progress), descend=descend)
    ready.scratch.update(second=iter([batch_for(method, seed=5)]), clean_share=torch.tensor(1.0))
    method.step(ready, batch_for(method))
    keys = set(network.state_dict())
    assert moved["main"] == {key for key in keys if key.startswith("first.")}
    assert moved["second"] == {key for key in keys if key.startswith("second.")}


def test_the_second_network_learns_from_its_own_batch_and_the_updated_first_network():
    method = DivideMix()
    network = network_of(method)
    state = state_of(method, network)
    own = batch_for(method, seed=5)
    totals = {}

    def descend(total, name):
        totals[name] = float(total.detach())
        with torch.no_grad():  # a step that can be told
            for parameter in network.first.parameters():
                parameter.add_(0.1)

    ready = replace(learner(network, state), descend=descend)
    ready.scratch.update(second=iter([own]), clean_share=torch.tensor(0.25))
    untouched = network_of(method)
    loss = method.step(ready, batch_for(method))
    with torch.no_grad():
        for parameter in untouched.first.parameters():
            parameter.add_(0.1)
    again = batch_for(method, seed=5)
    expected = method.loss_of(1, untouched, again, state, PROGRESS).total
    assert totals["second"] == pytest.approx(float(expected.detach()), rel=1e-6)
    assert float(loss.total.detach()) == pytest.approx((totals["main"] + totals["second"]) / 2)
    assert float(loss.numbers["clean_share"]) == 0.25
    assert loss.pseudo_labels.shape == own.unlabeled_ids.shape


# who judges whom


def test_a_network_trains_with_the_labels_that_the_other_one_judges_clean():
    """The first network believes in class 0, the second in class 1; two images have no label."""
    method = DivideMix()
    network = TwoNetworks(Certain(0), Certain(1))
    ready = learner_of(method, network, shard_of([0, 0, 0, 1, 1, -1, -1]))
    method.begin(ready)
    first = method.pools(ready)
    second = next(ready.scratch["second"])
    assert first.labeled.tolist() == [3, 4]
    assert first.unlabeled.tolist() == [0, 1, 2, 5, 6]
    assert second.labeled.tolist() == [0, 1, 2]
    assert second.unlabeled.tolist() == [3, 4, 5, 6]
    assert first.targets is None
    assert float(ready.scratch["clean_share"]) == pytest.approx(5 / 10)
    assert network.training


def test_labels_are_judged_without_moving_running_statistics():
    method = DivideMix()
    network = network_of(method, norm=True)
    ready = learner_of(method, network, shard_of([0, 1, 2, 3, 4]))
    before = pieces.snapshot(network)
    method.begin(ready)
    assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
    assert 0 < float(ready.state["clean"]["probs"].sum()) < 10


def test_a_network_trusts_labels_as_the_other_one_does():
    method = DivideMix()
    network, given = network_of(method), batch_for(method)

    def total(place, *columns):
        probs = torch.full((12, 2), 0.9)
        probs[:, list(columns)] = 0.6
        state = state_of(method, network) | {"clean": {"probs": probs}}
        again = replace(given, generator=stream(1))
        return float(method.loss_of(place, network, again, state, PROGRESS).total.detach())

    assert total(0) == total(0, 0) != total(0, 1) == total(0, 0, 1)
    assert total(1) == total(1, 1) != total(1, 0) == total(1, 0, 1)


def test_labels_are_trusted_by_example():
    method = DivideMix()
    network, given = network_of(method), batch_for(method)
    ids = torch.tensor([7, 2, 9, 11])
    probs = torch.rand(12, 2, generator=stream())
    there = state_of(method, network) | {"clean": {"probs": probs}}
    here = there | {"clean": {"probs": torch.cat([probs[ids], torch.zeros(8, 2)])}}
    first, second = (
        method.loss(network, replace(given, labeled_ids=at, generator=stream(1)), state, PROGRESS)
        for at, state in ((ids, there), (torch.arange(4), here))
    )
    assert torch.equal(first.total, second.total)


def test_losses_are_averaged_over_the_last_rounds(monkeypatch):
    """Rounds with losses (0, 1), (1, 0) and (1, 0) of two labels; the last two say that the second one is clean."""
    method, own = DivideMix(history=2), shard_of([3, -1, 4])
    assert Slot("losses", "client") in method.slots()
    ready = learner_of(method, network_of(method), own)
    judged = []
    monkeypatch.setattr(
        module, "judge_labels", lambda losses, _: judged.append(losses.tolist()) or losses
    )
    for rows in ([2.0, 6.0], [9.0, 5.0], [9.0, 5.0]):
        both = torch.tensor(rows, dtype=torch.float64).unsqueeze(1).repeat(1, 2)
        monkeypatch.setattr(module, "losses_of_labels", lambda _, both=both: both)
        method.begin(ready)
    assert judged[::2] == judged[1::2] == [[0, 1], [0.5, 0.5], [1, 0]]
    kept = ready.state["losses"]
    assert kept["values"][:, :, 0].tolist() == [[1, 1], [0, 0], [0, 0]]
    assert kept["rounds"] == 3
    assert DivideMix().slots() == tuple(s for s in method.slots() if s.name != "losses")


# the loss


def naive_loss(method, network, given, clean, prior, place=0):
    """The loss written down from the paper, with the mixing's draws repeated."""
    own, other = (network.first, network.second)[:: 1 - 2 * place]
    with torch.no_grad():
        seen = torch.stack([own(view).softmax(1) for view in given.labeled]).mean(0)
        views = [net(view).softmax(1) for net in (own, other) for view in given.unlabeled]
    guess = torch.stack(views).mean(0)
    labels = torch.zeros_like(seen)
    for i, label in enumerate(given.labels):
        labels[i] = (1 - clean[i]) * seen[i]
        labels[i, label] += clean[i]
    sharp = [t**2 / (t**2).sum(1, keepdim=True) for t in (labels, guess)]
    rows = torch.cat([*given.labeled, *given.unlabeled])
    targets = torch.cat([sharp[0], sharp[0], sharp[1], sharp[1]])
    draws = stream(1)
    share = float(pieces.mixing_weights(1, method.alpha, "batch", draws))
    assert 0.5 <= share < 1
    order = torch.randperm(len(rows), generator=draws)
    rows, targets = (share * t + (1 - share) * t[order] for t in (rows, targets))
    logits, split = own(rows), 2 * len(given.labels)
    supervised = -(targets[:split] * logits[:split].log_softmax(1)).sum(1).mean()
    errors = (logits[split:].softmax(1) - targets[split:]).square().mean()
    mean = logits.softmax(1).mean(0)
    return supervised + 25 * errors + (prior * (prior / mean).log()).sum()


@pytest.mark.parametrize("place", [0, 1])
def test_the_loss_and_its_gradient_are_the_papers(place):
    """Targets are constants: the gradient is that of the loss with targets made outside the graph."""
    method = DivideMix()
    network, given = network_of(method), batch_for(method)
    counts = torch.arange(1.0, 11.0)
    probs = torch.rand(12, 2, generator=stream())
    state = {"clean": {"probs": probs}, "prior": {"counts": counts}}
    loss = method.loss_of(place, network, given, state, PROGRESS)
    clean, prior = probs[:4, 1 - place], counts / counts.sum()
    expected = naive_loss(method, network, given, clean, prior, place)
    assert float(loss.total.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    ours, theirs = (
        torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
        for total in (loss.total, expected)
    )
    assert sum(gradient is None for gradient in ours) == len(ours) / 2  # the other network's
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        assert mine is None or torch.allclose(mine, other, atol=1e-5)


def test_the_warm_up_learns_every_given_label():
    method = DivideMix()
    network, own = network_of(method), shard_of([0, 1, -1])
    ready = learner_of(method, network, own, FIRST_ROUND)
    method.begin(ready)
    for pools in (method.pools(ready), next(ready.scratch["second"])):
        assert (pools.labeled.tolist(), pools.unlabeled.tolist()) == ([0, 1], [])
    given = batch_for(method)
    loss = method.loss(network, given, ready.state, FIRST_ROUND)
    expected = F.cross_entropy(network.first(given.labeled[0]), given.labels)
    assert torch.equal(loss.total, expected)
    assert loss.pseudo_labels is None


def test_guesses_move_no_running_statistics():
    """Only the pass over the mixed images does."""
    method = DivideMix()
    network = network_of(method, norm=True)
    method.loss(network, batch_for(method), state_of(method, network), PROGRESS)
    counts = [int(net.trunk[2].num_batches_tracked) for net in network.both()]
    assert counts == [1, 0]
    assert network.training
    assert all(net.trunk[2].training for net in network.both())


def test_a_network_in_training_normalizes_by_its_batch_and_its_partner_by_its_statistics():
    method = DivideMix()
    given = batch_for(method)

    def total(place=None):
        network = network_of(method, norm=True)
        if place is not None:
            network.both()[place].trunk[2].running_var.fill_(9.0)
        again = replace(given, generator=stream(1))
        return method.loss(network, again, state_of(method, network), PROGRESS).total

    assert torch.equal(total(), total(0))
    assert not torch.equal(total(), total(1))


@pytest.mark.parametrize(("labeled", "unlabeled"), [(0, 1), (1, 0), (4, 0), (0, 12), (4, 1)])
def test_empty_parts_have_a_loss(labeled, unlabeled):
    method = DivideMix()
    network = network_of(method)
    given = batch_for(method, labeled=labeled, unlabeled=unlabeled)
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(p.grad).all() for p in network.first.parameters())
    assert len(loss.pseudo_labels) == unlabeled


# whole rounds


def train(method, own, round=4):
    network = build_network(CNN(widths=(4,), hidden=8), method, SPEC, seed=0)
    start = pieces.snapshot(network)
    recipe = Recipe(method, Train(local_steps=3, batch_size=4), Augment())
    fresh = Fresh(network, SPEC, own)
    state = {slot.name: recipe.init_slot(slot.name, fresh) for slot in recipe.slots()}
    report = fit(
        network, own, recipe, state,
        seed=0, server_round=round, client=0, phase_round=round, phase_rounds=10,
    )  # fmt: skip
    return report, start, pieces.snapshot(network)


def learned(report, before, after):
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    assert math.isfinite(report.loss)
    return report.num_steps == 3 and all(not torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("unlabeled", [0, 1])
@pytest.mark.parametrize("num_clean", [0, 1, 11, 12])
def test_a_client_trains_whatever_is_judged_clean(num_clean, unlabeled, monkeypatch):
    """No image or one is left without a label, too."""
    probs = torch.tensor([1.0] * num_clean + [0.0] * (12 - num_clean), dtype=torch.float64)
    monkeypatch.setattr(module, "judge_labels", lambda losses, threshold: probs)
    labels = [i % 10 for i in range(12)] + [-1] * unlabeled
    assert learned(*train(DivideMix(), shard_of(labels)))


@pytest.mark.parametrize("labels", [[3], [3, 3], [3, -1]])
def test_a_client_of_a_label_or_two_trains(labels):
    assert learned(*train(DivideMix(), shard_of(labels)))


def test_a_client_without_labels_sits_the_warm_up_out_and_learns_later():
    own = shard_of([-1] * 9)
    report, before, after = train(DivideMix(), own, round=1)
    assert report.is_inactive
    assert report.considered == 0  # a warm-up gives no pseudo-labels, so no image lacks one
    assert all(torch.equal(before[k], after[k]) for k in before)
    report, before, after = train(DivideMix(), own, round=4)
    assert learned(report, before, after)
    assert math.isnan(report.numbers["clean_share"])
    assert report.considered == 3 * 4


def test_the_share_of_clean_labels_is_recorded():
    report, *_ = train(DivideMix(), shard_of([i % 10 for i in range(12)]), round=1)
    assert report.numbers == {"clean_share": 1}
    report, *_ = train(DivideMix(), shard_of([i % 10 for i in range(12)]), round=4)
    assert 0 < report.numbers["clean_share"] < 1
