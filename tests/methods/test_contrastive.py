"""Projection heads, NT-Xent and SimCLR, the queue and MoCo."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.core.errors import InputError
from fedssl.methods import projection as parts
from fedssl.methods.bank import empty_bank, write
from fedssl.methods.base import METHODS, Progress
from fedssl.methods.functional import call_with, snapshot
from fedssl.methods.moco import MoCo, info_nce
from fedssl.methods.simclr import SimCLR, nt_xent
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from tests.helpers import small_experiment
from tests.methods.examples import (
    NUM_EXAMPLES,
    PROGRESS,
    batch_for,
    network_of,
    state_of,
    stream,
)
from tests.training.test_loop import shard, train_client  # noqa: F401

KINDS = ["byol", "fedema", "fedu", "moco", "simclr"]
ONE_IMAGE = Train(local_steps=3, batch_size=1)


def units(count, dim=8, seed=0):
    return F.normalize(torch.randn(count, dim, generator=stream(seed)), dim=1)


def value(tensor):
    return float(tensor.detach())


# Projection heads


def test_a_head_has_relus_between_its_layers_and_norms_where_it_is_told():
    head = parts.projection_head(8, (6, 5, 4), norm="batch", normalize_last=True)
    kinds = [[type(part) for part in layer] for layer in head]
    hidden = [nn.Linear, parts.BatchNorm, nn.ReLU]
    assert kinds == [hidden, hidden, [nn.Linear, parts.BatchNorm]]
    assert [layer[1].bias is None for layer in head] == [False, False, True]
    assert all(layer[0].bias is None for layer in head)
    plain = parts.projection_head(8, (6, 4))
    assert [[type(part) for part in layer] for layer in plain] == [
        [nn.Linear, nn.ReLU],
        [nn.Linear],
    ]
    assert plain[0][0].bias is not None
    own = parts.projection_head(8, (6, 4), norm="layer")
    assert [[type(p) for p in layer] for layer in own] == [
        [nn.Linear, nn.LayerNorm, nn.ReLU],
        [nn.Linear],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_unit_vectors_and_judges_look_at_the_first_layer(kind):
    method = METHODS.build(kind)
    network = network_of(method)
    images = batch_for(method).unlabeled[0]
    assert torch.allclose(network.embed(images).norm(dim=1), torch.ones(NUM_EXAMPLES))
    assert torch.equal(network(images), method.classifier(network)(images))
    found = method.representations(network)
    features = network.classifier.features(images)
    assert torch.equal(found["backbone"](images), features)
    assert torch.equal(found["projection"](images), network.projection[0](features))
    assert (found["projection"](images) >= 0).all()
    assert found["projection"](images).shape == (NUM_EXAMPLES, method.projection[0])


def test_an_encoder_shares_the_weights_by_their_names_and_has_no_head_for_classes():
    network = network_of(MoCo())
    encoder = parts.Encoder(network)
    own = network.state_dict(keep_vars=True)
    assert {n: id(t) for n, t in encoder.state_dict(keep_vars=True).items()} == {
        n: id(t) for n, t in own.items() if not n.startswith("classifier.head.")
    }
    images = batch_for(MoCo()).unlabeled[0]
    assert torch.equal(encoder(images), network.embed(images))
    assert torch.allclose(call_with(encoder, snapshot(encoder), images), network.embed(images))


def test_one_image_is_normalized_by_the_running_statistics():
    norm = parts.BatchNorm(3)
    norm(torch.randn(8, 3, generator=stream()))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    one = torch.randn(1, 3, generator=stream(1))
    assert torch.allclose(norm(one), (one - mean) / (var + norm.eps).sqrt(), atol=1e-6)
    assert torch.equal(norm.running_mean, mean)


def test_the_spread_is_one_on_the_whole_sphere_and_zero_in_one_point():
    assert value(parts.spread(units(20_000, 16))) == pytest.approx(1, abs=0.01)
    assert value(parts.spread(units(1).expand(50, -1))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_gives_embeddings_in_single_precision(kind):
    method = METHODS.build(kind)
    network = network_of(method)
    with torch.autocast("cpu", torch.bfloat16):
        given = batch_for(method)
        loss = method.loss(network, given, state_of(method, network), PROGRESS)
        assert network.embed(given.unlabeled[0]).dtype == torch.float32
    assert loss.total.dtype == torch.float32
    assert loss.total.isfinite()


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_for_classes_keeps_its_weights_whatever_the_weight_decay(kind, shard):  # noqa: F811
    method = METHODS.build(kind)
    start = snapshot(build_network(small_experiment().model, method, shard.spec, 0))
    state, report = train_client(method, shard)
    moved = {name for name in state if not torch.equal(state[name], start[name])}
    assert report.num_steps == 3
    assert {n for n in state if n.startswith("classifier.head.")}.isdisjoint(moved)
    assert {n for n, _ in network_of(method).named_parameters() if "projection" in n} <= moved


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [0, -3])
def test_widths_are_positive(kind, width):
    with pytest.raises(InputError, match=f"widths must be positive, not {width}"):
        METHODS.build({"kind": kind, "projection": [8, width]})
    with pytest.raises(InputError, match=r"method\.projection"):
        METHODS.build({"kind": kind, "projection": []})


# NT-Xent


def test_two_orthogonal_images_with_equal_views_have_the_loss_of_the_fact_sheet():
    """Each row: ln((e + 2) / e) = ln(1 + 2 / e)."""
    embeddings = torch.eye(2)
    loss = nt_xent(embeddings, embeddings, torch.arange(2), 1.0)
    assert value(loss) == pytest.approx(math.log(1 + 2 / math.e), abs=1e-6)
    assert value(loss) == pytest.approx(0.5514, abs=5e-5)


def nt_xent_by_loops(first, second, ids, temperature):
    rows, images = torch.cat([first, second]), [*ids.tolist(), *ids.tolist()]
    size, losses = len(ids), []
    for i in range(2 * size):
        positive = (i + size) % (2 * size)
        others = [j for j in range(2 * size) if images[j] != images[i]]
        terms = [torch.exp(rows[i] @ rows[j] / temperature) for j in (positive, *others)]
        losses.append(-torch.log(terms[0] / sum(terms)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("ids", [range(6), [0, 1, 2, 0, 1, 0]])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nt_xent_is_the_mean_over_the_rows_of_the_equation(ids, temperature):
    first, second, ids = units(6), units(6, seed=1), torch.tensor(list(ids))
    expected = nt_xent_by_loops(first, second, ids, temperature)
    assert value(nt_xent(first, second, ids, temperature)) == pytest.approx(
        value(expected), rel=1e-5
    )


def test_no_row_contains_its_own_similarity():
    """With it, the loss of two far images would be at least ln 2; without it, it goes to 0."""
    first = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert value(nt_xent(first, first, torch.arange(2), 0.05)) < 1e-6


def test_the_order_of_the_batch_does_not_matter():
    first, second, ids = units(6), units(6, seed=1), torch.tensor([0, 1, 2, 3, 1, 4])
    order = torch.randperm(6, generator=stream(2))
    shuffled = nt_xent(first[order], second[order], ids[order], 0.5)
    assert value(shuffled) == pytest.approx(value(nt_xent(first, second, ids, 0.5)), rel=1e-6)


@pytest.mark.parametrize("kind", ["moco", "simclr"])
@pytest.mark.parametrize("size", [1, 4])
def test_without_another_image_the_loss_is_zero_and_so_is_its_gradient(kind, size):
    method = METHODS.build(kind)
    network = network_of(method)
    given = batch_for(method, unlabeled=size)
    given = replace(given, unlabeled_ids=torch.zeros(size, dtype=torch.int64))
    loss = method.loss(network, given, state_of(method, network), PROGRESS)
    assert value(loss.total) == 0
    loss.total.backward()
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert gradients
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_image_trains(kind, shard):  # noqa: F811
    _, report = train_client(METHODS.build(kind), shard, train=ONE_IMAGE)
    assert math.isfinite(report.loss)


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_the_last_layer_of_simclrs_head_is_normalized_without_an_offset(norm):
    *hidden, last = SimCLR(projection_norm=norm).head(8)
    assert len(last) == 2
    assert last[1].bias is None
    assert last[1].weight is not None
    assert all(layer[1].bias is not None for layer in hidden)


def test_simclr_shows_both_views_to_the_network_together():
    method = SimCLR(temperature=0.3)
    network, given = network_of(method), batch_for(method)
    embeddings = network.embed(torch.cat(given.unlabeled))
    first, second = embeddings[:NUM_EXAMPLES], embeddings[NUM_EXAMPLES:]
    expected = nt_xent(first, second, given.unlabeled_ids, 0.3)
    loss = method.loss(network_of(method), given, {}, PROGRESS)
    assert value(loss.total) == pytest.approx(value(expected), rel=1e-6)


# MoCo's loss


def all_of(queries, candidates):
    return torch.ones(len(queries), len(candidates), dtype=torch.bool)


@pytest.mark.parametrize(("size", "expected"), [(4, 1.6094), (8192, 9.0110)])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_equal_similarities_give_the_logarithm_of_one_plus_the_queue(size, expected, temperature):
    one, queue = units(1), units(1).expand(size, -1)
    loss = value(info_nce(one, one, queue, all_of(one, queue), temperature))
    assert loss == pytest.approx(math.log(1 + size), abs=1e-5)
    assert loss == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("temperature", "expected"), [(1.0, 0.9048), (0.5, 0.4327)])
def test_a_positive_of_one_among_orthogonal_negatives(temperature, expected):
    """ln(1 + K e^(-1/T)) with K = 4."""
    rows = torch.eye(5)
    loss = value(info_nce(rows[:1], rows[:1], rows[1:], all_of(rows[:1], rows[1:]), temperature))
    assert loss == pytest.approx(math.log(1 + 4 * math.exp(-1 / temperature)), abs=1e-6)
    assert loss == pytest.approx(expected, abs=5e-5)


def test_no_gradient_reaches_the_key_encoder_the_keys_or_the_queue():
    method = MoCo(queue_size=8)
    network, given = network_of(method), batch_for(method)
    state = state_of(method, network)
    state["queue"] = filled(method, NUM_EXAMPLES)
    for tensors in state.values():
        for tensor in tensors.values():
            if tensor.is_floating_point():
                tensor.requires_grad_()
    loss = method.loss(network, given, state, PROGRESS)
    loss.total.backward()
    assert all(t.grad is None for tensors in state.values() for t in tensors.values())
    trained = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {n for n, _ in parts.Encoder(network).named_parameters()}


def filled(method, first_image, round=PROGRESS.round):
    """Return a full queue of keys of images that no batch of the tests holds, made in a round."""
    size, dim = method.queue_size, method.projection[-1]
    images = torch.arange(first_image, first_image + size)
    queue = empty_bank({"keys": torch.zeros(size, dim)})
    return write(queue, {"keys": units(size, dim, seed=7)}, images, round)


def test_the_key_encoder_moves_before_it_makes_the_keys():
    """Weights of 1 and 0, m = .9: .1 after one step, .19 after two; the keys are of the moved encoder."""
    method = MoCo(momentum=0.9, queue_size=NUM_EXAMPLES)
    network, given = network_of(method), batch_for(method)
    ones = parts.Encoder(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(1.0)
    state = state_of(method, network)
    state["key_encoder"] = {n: torch.zeros_like(t) for n, t in state["key_encoder"].items()}
    for expected in (0.1, 0.19):
        updates = method.loss(network, given, state, PROGRESS).updates
        for name, _ in ones.named_parameters():
            moved = updates["key_encoder"][name]
            assert torch.allclose(moved, torch.full_like(moved, expected)), name
        keys = call_with(ones, updates["key_encoder"], given.unlabeled[1])
        assert torch.allclose(updates["queue"]["keys"], keys.detach(), atol=1e-6)
        state |= updates


def test_the_loss_is_that_of_queries_keys_and_the_queue_as_it_was():
    method = MoCo(queue_size=5, temperature=0.3, momentum=1.0)
    network, given = network_of(method), batch_for(method)
    state = {"key_encoder": snapshot(parts.Encoder(network_of(method, seed=3)))}
    state["queue"] = filled(method, NUM_EXAMPLES)
    keys = call_with(parts.Encoder(network), state["key_encoder"], given.unlabeled[1])
    queries, queue = network.embed(given.unlabeled[0]), state["queue"]["keys"]
    logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ queue.T], 1) / 0.3
    expected = -logits.log_softmax(1)[:, 0].mean()
    loss = method.loss(network, given, state, PROGRESS)
    assert value(loss.total) == pytest.approx(value(expected), rel=1e-5)
    assert value(loss.numbers["negatives"]) == 5


# The queue


def test_keys_land_in_the_columns_of_the_fact_sheet():
    """K = 4 and batches of 2: steps 1, 2, 3 land in 01, 23, 01; the pointer is 2, 0, 2."""
    queue = state_of(MoCo(queue_size=4), network_of(MoCo()))["queue"]
    dim = queue["keys"].shape[1]
    for step, (columns, pointer) in enumerate([([0, 1], 2), ([2, 3], 0), ([0, 1], 2)]):
        before, keys = queue, units(2, dim, seed=step)
        queue = write(queue, {"keys": keys}, torch.tensor([10, 11]), step + 1)
        assert torch.equal(queue["keys"][columns], keys)
        assert queue["rounds"][columns].tolist() == [step + 1] * 2
        assert int(queue["pointer"]) == pointer
        others = [c for c in range(4) if c not in columns]
        assert torch.equal(queue["keys"][others], before["keys"][others])


@pytest.mark.parametrize("size", [3, 5, 7])
def test_a_queue_holds_the_last_keys_whatever_the_batches_are(size):
    """Batches that do not divide the queue, short batches, and batches longer than the queue."""
    queue = state_of(MoCo(queue_size=size), network_of(MoCo()))["queue"]
    keys, images, dim = [], [], queue["keys"].shape[1]
    for step, count in enumerate([2, 4, 1, 12, 3, 5, 2, 2]):
        new, ids = units(count, dim, seed=step), torch.arange(count) + 100 * step
        keys, images = [*keys, *new], [*images, *ids.tolist()]
        queue = write(queue, {"keys": new}, ids, step + 1)
        assert int(queue["pointer"]) == len(images) % size
        held = [(int(queue["pointer"]) + i) % size for i in range(size)]  # the oldest first
        filled = [place for place in held if queue["rounds"][place] > 0]
        assert queue["images"][filled].tolist() == images[-size:]
        assert torch.equal(queue["keys"][filled], torch.stack(keys[-size:]))


def negatives_of(method, state, given, progress=PROGRESS):
    loss = method.loss(network_of(method), given, state, progress)
    return value(loss.numbers["negatives"]), loss


def test_until_the_queue_is_full_the_batch_gives_negatives_too():
    """12 images a step, a queue of 20 places: none in the queue at first, then 12 (one is the query's own), then 20."""
    method = MoCo(queue_size=20)
    network, given = network_of(method), batch_for(method)
    state = state_of(method, network)
    assert not state["queue"]["keys"].any()
    found = []
    for _ in range(3):
        number, loss = negatives_of(method, state, given)
        found.append(number)
        state |= loss.updates
    # The queue of the third step holds 8 keys of 12 images twice, so 20 keys, of which 1 or 2 are the query's own.
    assert found == [11, 11 + 11, pytest.approx(20 - 20 / 12)]


def test_the_key_of_this_step_is_not_among_its_own_negatives():
    """If it were, even a perfect match would cost ln 2."""
    method = MoCo(queue_size=NUM_EXAMPLES, temperature=0.01, unlabeled_views=("weak", "weak"))
    network, given = network_of(method), batch_for(method)
    same = replace(given, unlabeled=(given.unlabeled[0],) * 2)
    _, loss = negatives_of(method, state_of(method, network), same)
    assert value(loss.total) < math.log(2)
    for _ in range(2):  # nor are the keys of its image from earlier steps
        state = state_of(method, network) | loss.updates
        number, loss = negatives_of(method, state, same)
        assert number == NUM_EXAMPLES - 1
        assert value(loss.total) < math.log(2)


@pytest.mark.parametrize(("age", "negatives"), [(0, 11), (1, 11), (2, 11 + 6), (3, 11 + 6)])
def test_keys_of_a_stale_encoder_are_dropped_by_their_age(age, negatives):
    """Six of twelve places hold keys that were made two rounds ago, the others are empty."""
    method = MoCo(queue_size=12, max_key_age=age)
    network, given = network_of(method), batch_for(method)
    state = state_of(method, network)
    old = PROGRESS.round - 2
    state["queue"] = write(state["queue"], {"keys": units(6, 128)}, torch.arange(100, 106), old)
    assert negatives_of(method, state, given)[0] == negatives


def test_a_queue_of_old_keys_is_as_good_as_an_empty_one():
    method = MoCo(queue_size=6, max_key_age=4)
    network, given = network_of(method), batch_for(method)
    progress = Progress(round=6, num_rounds=9, step=0, num_steps=2)
    state = state_of(method, network)
    empty = negatives_of(method, state, given, progress)[1].total
    state["queue"] = filled(method, 100, round=1)
    assert torch.equal(negatives_of(method, state, given, progress)[1].total, empty)


# Batch normalization and the order of keys


def keys_of(method, network, images, seed=0):
    encoder = parts.Encoder(network)
    return method.make_keys(encoder, snapshot(encoder), images, stream(seed))


@pytest.mark.parametrize("count", [1, 2, 3, 20])
def test_parts_of_a_batch_of_keys_come_back_in_order(count):
    network = network_of(MoCo())
    images = batch_for(MoCo()).unlabeled[0]
    whole, cut = keys_of(MoCo(), network, images), keys_of(MoCo(key_parts=count), network, images)
    assert torch.allclose(whole, cut, atol=1e-6)


def test_shuffling_alone_changes_nothing_but_parts_have_statistics_of_their_own():
    """The trap of shuffle-BN on one device: a permuted batch has the same statistics."""
    network = network_of(MoCo(), norm=True)
    images = batch_for(MoCo()).unlabeled[0]
    order = torch.randperm(NUM_EXAMPLES, generator=stream(5))
    whole, permuted = keys_of(MoCo(), network, images), keys_of(MoCo(), network, images[order])
    assert torch.allclose(whole[order], permuted, atol=1e-6)
    cut = keys_of(MoCo(key_parts=2), network, images)
    assert (whole - cut).abs().max() > 1e-2
    other = keys_of(MoCo(key_parts=2), network, images, seed=1)
    assert not torch.allclose(cut, other, atol=1e-4)


def test_keys_move_no_running_statistics():
    network = network_of(MoCo(), norm=True)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    keys_of(MoCo(key_parts=3), network, batch_for(MoCo()).unlabeled[0])
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
