"""CoMatch: alignment, smoothing by the memory bank, the pseudo-label graph, and what carries gradients."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.core.errors import InputError
from fedssl.methods.bank import empty_bank, write
from fedssl.methods.base import METHODS, Progress
from fedssl.methods.comatch import (
    CoMatch,
    align_to_even,
    append,
    graph_loss,
    predict_by_bank,
    pseudo_label_graph,
)
from fedssl.training.optimization import Train
from tests.methods.examples import PROGRESS, batch_for, network_of, state_of, stream
from tests.training.test_loop import equal, shard, train_client  # noqa: F401

FIRST = Progress(round=1, num_rounds=9, step=0, num_steps=10)


def close(tensor, expected):
    torch.testing.assert_close(tensor, torch.tensor(expected), atol=5e-5, rtol=0)


def bank_of(size, dim=4, classes=2):
    return empty_bank({"embeddings": torch.zeros(size, dim), "probs": torch.zeros(size, classes)})


def entries(*probs, dim=4):
    """Return entries that all have the first unit vector as their embedding."""
    return {
        "embeddings": torch.eye(dim)[:1].repeat(len(probs), 1),
        "probs": torch.tensor(probs),
    }


def empty_alignment(window=4, classes=2):
    return {"recent": torch.zeros(window, classes), "is_filled": torch.zeros(window)}


def confident(method, seed=0):
    """Return a network whose predictions are confident, so that masks and edges are not empty."""
    network = network_of(method, seed)
    with torch.no_grad():
        network.classifier.head.weight.mul_(20)
    return network


def step(method, network, given, state, progress=PROGRESS):
    loss = method.loss(network, given, state, progress)
    for slot, tensors in loss.updates.items():
        state[slot].update(tensors)
    return loss


# alignment


def test_the_first_batch_is_aligned_by_its_own_mean():
    probs = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    alignment = append(empty_alignment(), probs.mean(0))
    close(align_to_even(probs, alignment), [[0.6316, 0.3684], [0.3913, 0.6087]])


def test_the_window_holds_the_last_means_and_rows_without_one_do_not_count():
    alignment = empty_alignment(window=2)
    for mean in ([0.9, 0.1], [0.6, 0.4], [0.8, 0.2]):
        alignment = append(alignment, torch.tensor(mean))
    close(alignment["recent"], [[0.6, 0.4], [0.8, 0.2]])
    once = append(empty_alignment(window=2), torch.tensor([0.7, 0.3]))
    probs = torch.tensor([[0.5, 0.5]])
    expected = torch.tensor([[3 / 10, 7 / 10]])
    torch.testing.assert_close(align_to_even(probs, once), expected)
    torch.testing.assert_close(align_to_even(probs, alignment), expected)


def test_a_mean_of_cohorts_windows_is_a_window_of_their_means():
    """A client that took no step yet sends no rows; the others' mean stays what it is."""
    full = append(empty_alignment(window=2), torch.tensor([0.7, 0.3]))
    empty = empty_alignment(window=2)
    merged = {name: 0.75 * full[name] + 0.25 * empty[name] for name in full}
    probs = torch.tensor([[0.5, 0.5]])
    torch.testing.assert_close(align_to_even(probs, merged), align_to_even(probs, full))


@pytest.mark.parametrize("lie", [-3e38, -1000.0, 3e38])
@pytest.mark.parametrize("name", ["recent", "is_filled"])
def test_a_lying_clients_window_neither_switches_off_the_alignment_nor_makes_nan(name, lie):
    """The lie is in the server's mean, which every client receives; other numbers of the window are honest."""
    probs = torch.tensor([[0.8, 0.2], [0.6, 0.4]])
    window = append(append(empty_alignment(), torch.tensor([0.9, 0.1])), torch.tensor([0.7, 0.3]))
    window[name][1:] = lie
    aligned = align_to_even(probs, append(window, probs.mean(0)))
    assert aligned.isfinite().all()
    assert not torch.equal(aligned, probs)
    kept = append(window, probs.mean(0))[name]
    assert ((kept >= 0) & (kept <= 1)).all()


# the memory bank


def test_an_empty_place_in_the_bank_is_no_entry():
    """Trap: one entry among 2559 zeros at t = .2 weighs e^5 / (e^5 + 2559) = .0548, so nothing passes .95."""
    bank = write(bank_of(2560), entries([1.0, 0.0]), torch.zeros(1).long(), 1)
    image = torch.eye(4)[:1]
    close(predict_by_bank(image, bank, (bank["rounds"] > 0)[None], 0.2), [[1.0, 0.0]])
    diluted = predict_by_bank(image, bank, torch.ones(1, 2560, dtype=torch.bool), 0.2)
    close(diluted, [[0.0548, 0.0]])
    assert 0.9 * 1 + 0.1 * diluted.max() < 0.95


def test_similar_entries_weigh_more():
    """Similarities of 1 and 0 at t = .2: e^5 to 1."""
    new = {"embeddings": torch.eye(4)[:2], "probs": torch.eye(2)}
    bank = write(bank_of(8), new, torch.arange(2), 1)
    found = predict_by_bank(torch.eye(4)[:1], bank, (bank["rounds"] > 0)[None], 0.2)
    share = math.exp(5) / (math.exp(5) + 1)
    close(found, [[share, 1 - share]])


def test_the_oldest_entries_are_replaced_first_and_the_end_meets_the_beginning():
    bank = write(bank_of(3), entries([0.1, 0.9], [0.2, 0.8]), torch.arange(2), 1)
    bank = write(bank, entries([0.3, 0.7], [0.4, 0.6]), torch.tensor([2, 3]), 2)
    close(bank["probs"][:, 0], [0.4, 0.2, 0.3])
    assert bank["rounds"].tolist() == [2, 1, 2]
    assert bank["images"].tolist() == [3, 1, 2]
    assert bank["pointer"] == 1
    many = entries(*([i / 10, 1 - i / 10] for i in range(5)))
    bank = write(bank, many, torch.arange(5), 3)
    assert sorted(bank["probs"][:, 0].tolist()) == pytest.approx([0.2, 0.3, 0.4])
    assert bank["pointer"] == 0


def test_the_bank_holds_aligned_predictions_before_smoothing_and_labels_as_one_hot_rows():
    """Trap: smoothed predictions in the bank would feed themselves."""
    method = CoMatch(bank_size=64, bank_fill=0, smoothing=0.5)
    network, given = confident(method), batch_for(method)
    state = state_of(method, network)
    first = step(method, network, given, state)
    aligned = state["bank"]["probs"][:12].clone()
    guesses = network(given.unlabeled[0]).softmax(1).detach()
    expected = guesses / guesses.mean(0)
    torch.testing.assert_close(aligned, expected / expected.sum(1, keepdim=True))
    assert torch.equal(state["bank"]["probs"][12:16], torch.eye(10)[given.labels])
    assert first.numbers["bank_fill"] == 0
    second = step(method, network, given, state)
    torch.testing.assert_close(state["bank"]["probs"][16:28], aligned)
    assert second.numbers["bank_fill"] == 16 / 64
    torch.testing.assert_close(
        state["bank"]["embeddings"][:12], network.embed(given.unlabeled[0]).detach()
    )
    torch.testing.assert_close(
        state["bank"]["embeddings"][12:16], network.embed(given.labeled[0]).detach()
    )


def test_a_client_without_labels_fills_the_bank_by_predictions():
    method = CoMatch(bank_size=64)
    network = network_of(method)
    state = state_of(method, network)
    step(method, network, batch_for(method, labeled=0), state)
    assert (state["bank"]["rounds"] > 0).sum() == 12


@pytest.mark.parametrize(("fill", "smooths_from"), [(0.0, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_smoothing_begins_when_the_bank_is_full_enough(fill, smooths_from):
    """Each step adds a quarter of this bank; a bank of nothing smooths nothing, whatever the setting."""
    method = CoMatch(bank_size=64, bank_fill=fill, smoothing=0.9, threshold=0.0)
    plain = method.model_copy(update={"smoothing": 0.0})
    network, given = network_of(method), batch_for(method)
    state = state_of(method, network)
    for index in range(5):
        unsmoothed = plain.loss(network, given, state, PROGRESS)
        loss = step(method, network, given, state)
        assert torch.equal(loss.total, unsmoothed.total) == (index < smooths_from)


@pytest.mark.parametrize("batch_size", [8, 32])
def test_the_default_bank_smooths_within_the_first_round_of_a_small_client(shard, batch_size):  # noqa: F811
    """The bank is empty at first, as in every round of a client whose bank is emptied or forgotten."""
    train = Train(batch_size=batch_size)
    smoothed, report = train_client(CoMatch(threshold=0), shard, train)
    plain, _ = train_client(CoMatch(threshold=0, smoothing=0), shard, train)
    assert report.num_steps == 10
    assert not equal(smoothed, plain)


def test_the_default_bank_is_five_default_batches():
    method = CoMatch()
    assert method.bank_size == 5 * Train().batch_size * (1 + method.unlabeled_ratio)


def test_an_images_own_entries_are_not_its_neighbors():
    """A client with one image has a full bank of it, and smooths nothing; with other ids in the bank it smooths."""
    method = CoMatch(bank_size=16, bank_fill=1, smoothing=0.9, threshold=0)
    plain = method.model_copy(update={"smoothing": 0.0})
    network, given = confident(method), batch_for(method)
    one = torch.zeros_like
    given = replace(
        given, unlabeled_ids=one(given.unlabeled_ids), labeled_ids=one(given.labeled_ids)
    )
    state = state_of(method, network)
    step(method, network, given, state)
    unsmoothed = plain.loss(network, given, state, PROGRESS)
    loss = method.loss(network, given, state, PROGRESS)
    assert loss.numbers["bank_fill"] == 1
    assert torch.equal(loss.total, unsmoothed.total)
    others = replace(given, unlabeled_ids=torch.arange(12) // 11)  # the last image has neighbors
    smoothed = method.loss(network, others, state, PROGRESS)
    assert not torch.equal(smoothed.total, plain.loss(network, others, state, PROGRESS).total)


def test_the_bank_knows_the_image_of_each_entry():
    method = CoMatch(bank_size=16)
    network, given = network_of(method), batch_for(method)
    given = replace(given, unlabeled_ids=torch.arange(20, 32), labeled_ids=torch.arange(40, 44))
    updates = method.loss(network, given, state_of(method, network), PROGRESS).updates
    assert updates["bank"]["images"].tolist() == [*range(20, 32), *range(40, 44)]


def test_old_entries_do_not_count():
    method = CoMatch(bank_size=16, max_entry_age=2)
    network, given = network_of(method), batch_for(method)
    state = state_of(method, network)
    step(method, network, given, state, replace(PROGRESS, round=3))
    for round, expected in ((3, 1), (5, 1), (6, 0)):
        loss = method.loss(network, given, state, replace(PROGRESS, round=round))
        assert loss.numbers["bank_fill"] == expected


@pytest.mark.parametrize(("scope", "slot"), [("reset", "reset"), ("client", "client")])
def test_the_bank_never_leaves_the_client(scope, slot):
    method = CoMatch(bank_scope=scope, alignment_scope="reset")
    assert [(s.name, s.scope) for s in method.slots()] == [("bank", slot), ("alignment", "reset")]
    with pytest.raises(InputError, match=r"bank_scope"):
        METHODS.build({"kind": "comatch", "bank_scope": "server"})


# the pseudo-label graph


def test_edges_begin_at_the_threshold_and_rows_sum_to_1():
    apart = torch.tensor([[0.9, 0.1], [0.8, 0.2]])  # .74 from each other
    assert torch.equal(pseudo_label_graph(apart, torch.arange(2), 0.8), torch.eye(2))
    together = torch.tensor([[0.95, 0.05], [0.9, 0.1]])  # .86
    graph = pseudo_label_graph(together, torch.arange(2), 0.8)
    close(graph, [[0.5376, 0.4624], [0.4624, 0.5376]])


def test_copies_of_one_image_belong_together_whatever_their_pseudo_labels_are():
    """Q = 1/4 everywhere. The loss of equal embeddings is ln 4, its least value, so nothing is pushed apart."""
    probs = torch.eye(4)  # no pseudo-label is like another
    graph = pseudo_label_graph(probs, torch.full((4,), 7), 0.8)
    assert torch.equal(graph, torch.full((4, 4), 0.25))
    vectors = torch.eye(3)[:1].repeat(4, 1).requires_grad_()
    loss = graph_loss(graph, vectors, vectors.detach().clone(), 0.2)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(math.log(4), abs=1e-5)
    assert vectors.grad.abs().max() < 1e-6
    apart = F.normalize(torch.randn(4, 3, generator=stream()), dim=1)
    assert float(graph_loss(graph, apart, apart, 0.2)) > math.log(4)


def test_copies_among_other_images_are_edges_too():
    graph = pseudo_label_graph(torch.eye(3), torch.tensor([5, 8, 5]), 0.8)
    assert graph.tolist() == [[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]]


def test_without_copies_the_graph_is_the_papers_to_the_bit():
    probs = (4 * torch.randn(9, 3, generator=stream())).softmax(1)
    similarities = (probs @ probs.T).masked_fill(torch.eye(9, dtype=torch.bool), 1)
    edges = similarities.masked_fill(similarities < 0.5, 0)
    graph = pseudo_label_graph(probs, torch.randperm(9, generator=stream()), 0.5)
    assert torch.equal(graph, edges / edges.sum(1, keepdim=True))
    assert (graph > 0).sum() > 9


def test_a_batch_of_copies_only_has_no_contrast_but_ln_of_its_size():
    """The loss hands the images' ids to the graph; equal views have equal embeddings."""
    method = CoMatch()
    network, given = network_of(method), batch_for(method, unlabeled=4)
    view = given.unlabeled[1][:1].repeat(4, 1, 1, 1)
    weak = given.unlabeled[0] * 9  # predictions that differ
    given = replace(given, unlabeled=(weak, view, view), unlabeled_ids=torch.zeros(4).long())
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    assert float(loss.numbers["contrast"]) == pytest.approx(math.log(4), abs=1e-5)
    assert loss.numbers["edges"] == 4


def test_orthonormal_embeddings_of_different_images():
    """-ln(e^5 / (e^5 + 1)) at t = .2 and Q = I."""
    loss = graph_loss(torch.eye(2), torch.eye(2), torch.eye(2), 0.2)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-5)), abs=1e-6)
    assert float(loss) == pytest.approx(0.0067, abs=5e-5)


def test_the_graph_loss_equals_a_loop():
    generator = stream()
    graph = torch.rand(5, 5, generator=generator)
    first, second = (torch.randn(5, 3, generator=generator) for _ in range(2))
    total = 0.0
    for i in range(5):
        weights = [math.exp(float(first[i] @ second[j]) / 0.5) for j in range(5)]
        for j in range(5):
            total -= float(graph[i, j]) * math.log(weights[j] / sum(weights) + 1e-7) / 5
    assert float(graph_loss(graph, first, second, 0.5)) == pytest.approx(total, rel=1e-5)


def test_no_gradient_into_the_graph():
    graph = torch.eye(3).requires_grad_()
    vectors = torch.randn(3, 4, generator=stream(), requires_grad=True)
    graph_loss(graph, vectors, vectors.flip(0), 0.2).backward()
    assert graph.grad is None
    assert vectors.grad.abs().sum() > 0


# the whole loss


def test_gradients_flow_through_both_strong_views_and_not_through_the_weak_view():
    method = CoMatch(threshold=0.0)
    network, given = confident(method), batch_for(method)
    views = tuple(view.requires_grad_() for view in given.unlabeled)
    (labeled,) = (view.requires_grad_() for view in given.labeled)
    given = replace(given, unlabeled=views, labeled=(labeled,))
    method.loss(network, given, state_of(method, network), PROGRESS).total.backward()
    assert views[0].grad is None
    assert all(view.grad.abs().sum() > 0 for view in (*views[1:], labeled))


def test_labels_do_not_move_the_projection_head():
    method = CoMatch(contrast_weight=0)
    network = network_of(method)
    method.loss(network, batch_for(method), state_of(method, network), PROGRESS).total.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.projection.parameters())
    _, embeddings = method._learn_labels(network, batch_for(method))
    assert not embeddings.requires_grad


def test_the_terms_weigh_what_they_should():
    given = batch_for(CoMatch())

    def total(unlabeled, contrast):
        method = CoMatch(threshold=0.0, unlabeled_weight=unlabeled, contrast_weight=contrast)
        network = confident(method)
        loss = method.loss(network, given, state_of(method, network), PROGRESS)
        return float(loss.total.detach()), float(loss.numbers["contrast"])

    (neither, contrast), (labels, _), (both, _) = total(0, 0), total(2, 0), total(1, 3)
    assert both - neither == pytest.approx((labels - neither) / 2 + 3 * contrast, rel=1e-4)


def second_step(method, network):
    """Return the batch and the loss of a second step, and what is mixed there: aligned and neighbors' predictions."""
    state = state_of(method, network)
    step(method, network, batch_for(method, seed=1), state)
    given = batch_for(method, seed=2)
    bank, window = dict(state["bank"]), dict(state["alignment"])
    loss = method.loss(network, given, state, PROGRESS)
    guesses = network(given.unlabeled[0]).softmax(1).detach()
    embeddings = network.embed(given.unlabeled[0]).detach()
    others = (bank["rounds"] > 0) & (given.unlabeled_ids[:, None] != bank["images"])
    neighbors = predict_by_bank(embeddings, bank, others, method.temperature)
    return given, loss, align_to_even(guesses, append(window, guesses.mean(0))), neighbors


def test_alignment_comes_before_smoothing():
    """Trap: a smoothed and then aligned prediction would not be .5 aligned + .5 neighbors."""
    method = CoMatch(bank_size=64, bank_fill=0, smoothing=0.5, threshold=0)
    network = confident(method)
    given, loss, aligned, neighbors = second_step(method, network)
    expected = (aligned + neighbors) / 2
    edges = pseudo_label_graph(expected, given.unlabeled_ids, method.graph_threshold) > 0
    assert torch.equal(loss.pseudo_labels, expected.argmax(1))
    assert loss.numbers["edges"] == edges.sum(1).float().mean()


def test_the_mask_and_the_soft_targets_are_of_the_smoothed_predictions():
    """The total is CE(labels) + mean(mask H(q, p)); hard labels, or a mask from before smoothing, give other numbers."""
    method = CoMatch(bank_size=64, bank_fill=0, smoothing=0.5, threshold=0.45, contrast_weight=0)
    network = confident(method)
    given, loss, aligned, neighbors = second_step(method, network)
    smoothed = (aligned + neighbors) / 2
    mask = smoothed.max(1).values >= 0.45
    assert 0 < mask.sum() < len(mask)
    assert not torch.equal(mask, aligned.max(1).values >= 0.45)
    assert torch.equal(loss.accepted, mask.float())
    log_probs = network(given.unlabeled[1]).log_softmax(1)
    labeled = F.cross_entropy(network(given.labeled[0]), given.labels)
    soft = labeled - (mask * (smoothed * log_probs).sum(1)).mean()
    hard = labeled - (mask * log_probs.gather(1, loss.pseudo_labels[:, None])[:, 0]).mean()
    torch.testing.assert_close(loss.total, soft)
    assert abs(float((soft - hard).detach())) > 1e-3


def test_the_first_step_of_the_first_round_is_defined():
    method = CoMatch()
    network = network_of(method)
    loss = method.loss(network, batch_for(method), state_of(method, network), FIRST)
    assert torch.isfinite(loss.total)
    assert loss.numbers["bank_fill"] == 0


def test_the_second_view_has_a_setting():
    assert CoMatch(second_view="weak").views().unlabeled == ("weak", "strong", "weak")


def test_a_client_has_something_to_learn_without_labels_unless_both_weights_are_0():
    assert CoMatch().can_learn(0)
    assert CoMatch(unlabeled_weight=0).can_learn(0)
    assert not CoMatch(unlabeled_weight=0, contrast_weight=0).can_learn(0)


def test_one_embedding_takes_one_pass_through_the_trunk():
    method = CoMatch()
    network = network_of(method)
    passes = []
    network.classifier.trunk.register_forward_hook(lambda *_: passes.append(1))
    method.loss(network, batch_for(method), state_of(method, network), PROGRESS)
    assert len(passes) == 4  # labeled, weak, and two strong views


def test_a_width_of_a_projection_is_positive():
    with pytest.raises(InputError, match="positive"):
        METHODS.build({"kind": "comatch", "projection": [64, 0]})


def test_judges_may_look_at_features_and_at_the_first_layer_of_the_projection():
    method = CoMatch(projection=(5, 3))
    network = network_of(method)
    images = torch.randn(2, 1, 4, 4, generator=stream())
    shapes = {name: f(images).shape for name, f in method.representations(network).items()}
    assert shapes == {"backbone": (2, 8), "projection": (2, 5)}
    assert isinstance(method.classifier(network), nn.Module)
