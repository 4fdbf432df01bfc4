"""Fused clients get the weights that each would get alone, up to rounding."""

import dataclasses
import itertools
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedssl.augment.policy import Augment
from fedssl.fusion.fusible import why_not_fusible
from fedssl.fusion.groups import cut_groups, fusion_key, group_size
from fedssl.methods.base import METHODS
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import snapshot
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS
from fedssl.training.optimization import Train
from tests.fused import (
    CLIENTS,
    MODEL,
    SPEC,
    TRAIN,
    alone,
    apart,
    network_for,
    recipe,
    shard,
    shards,
    together,
)
from tests.methods.examples import FIRST_METHODS

TOLERANCE = 1e-4
"""Of the way a client's weights came, in single precision."""

EXACT = 1e-10
"""Of the same in double precision: what differs is rounding."""

FUSES = {"supervised", "fixmatch", "pi_model", "pseudo_label", "uda"}
KEEN = {"fixmatch": {"threshold": 0.3}, "pseudo_label": {"threshold": 0.3, "ramp_up": 0}}
"""Settings by which pseudo-labels count from the first step on."""

STEADY = Augment.model_validate({"weak": {"kind": "identity"}, "strong": {"kind": "noise"}})
TRAINS = {
    "plain": {"momentum": 0, "nesterov": False, "weight_decay": 0},
    "momentum": {"nesterov": False, "weight_decay": 0},
    "nesterov": {"weight_decay": 0},
    "decay": {"weight_decay": 0.01},
    "cosine": {"schedule": "cosine", "schedule_over": "round"},
    "step": {"schedule": "step", "schedule_over": "round", "milestones": (0.4,)},
    "adam": {"optimizer": "adam", "lr": 0.003},
    "adamw": {"optimizer": "adamw", "lr": 0.003, "weight_decay": 0.1},
    "average": {"ema_decay": 0.5},
    "rates": {"rates": {"head.*": 2.0, "*.bias": 0.0}},
    "no decay of vectors": {"weight_decay": 0.1, "decay_norms_and_biases": False},
    "warm-up": {"schedule": {"kind": "cosine", "final": 0.1, "warm_up": 0.5}},
}


def build(name):
    return METHODS.build({"kind": name, **KEEN.get(name, {})})


def same_reports(first, second):
    """Counts are whole numbers or sums of weights; a loss is a mean in single precision."""
    assert first.num_steps == second.num_steps
    assert first.loss == pytest.approx(second.loss, rel=1e-4, nan_ok=True)
    for name in ("considered", "accepted", "judged", "right"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), rel=1e-4), name
    assert first.by_class == pytest.approx(second.by_class, rel=1e-4)


def check_parity(network, own, plan, tolerance):
    start = snapshot(network)
    fused = together(network, own, plan)
    assert all(torch.equal(start[k], v) for k, v in snapshot(network).items())
    for (weights, report), (expected, wanted) in zip(fused, alone(network, own, plan), strict=True):
        assert list(weights) == list(expected)
        assert apart(network, expected, weights) < tolerance
        same_reports(report, wanted)


@pytest.mark.parametrize("name", FIRST_METHODS)
@pytest.mark.parametrize("labeled", [True, False])
def test_every_method_fuses_to_the_same_weights_or_says_why_not(name, labeled):
    method = build(name)
    plan, network = recipe(method), network_for(method)
    reason = why_not_fusible(plan, network, SPEC)
    assert (reason is None) or name not in FUSES, reason
    if reason is not None:
        assert len(reason) > 10
        assert "\n" not in reason
        with pytest.raises(ValueError, match=re.escape(reason)):
            together(network, shards(labeled), plan)
    elif method.can_learn(int(labeled)):
        check_parity(network, shards(labeled), plan, TOLERANCE)


@pytest.mark.parametrize("name", sorted(FUSES))
def test_in_double_precision_nothing_but_rounding_is_left(name):
    method = build(name)
    network = network_for(method, dtype=torch.float64)
    plan = recipe(method, augment=STEADY)
    check_parity(network, shards(dtype=torch.float64), plan, EXACT)


@pytest.mark.parametrize("settings", TRAINS.values(), ids=TRAINS)
def test_every_optimizer_and_schedule_steps_as_alone(settings):
    method = build("fixmatch")
    train = TRAIN.model_validate(TRAIN.model_dump() | {"local_steps": 5} | settings)
    plan = recipe(method, train, STEADY)
    check_parity(network_for(method), shards(), plan, TOLERANCE)
    double = network_for(method, dtype=torch.float64)
    check_parity(double, shards(dtype=torch.float64), plan, EXACT)


@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("kind", ["cnn", "resnet8", "resnet9", "resnet18", "wrn"])
def test_architectures_with_branches_and_group_normalization_fuse(kind, norm):
    spec = dataclasses.replace(SPEC, shape=(3, 16, 16), mean=(0.4,) * 3, std=(0.3,) * 3)
    method = build("fixmatch")
    network = network_for(method, MODELS.build({"kind": kind, "norm": norm}), spec)
    plan = recipe(method, Train(local_steps=1, batch_size=2, lr=0.01))
    assert why_not_fusible(plan, network, spec) is None
    check_parity(network, shards(spec=spec), plan, TOLERANCE)


def test_clients_that_take_no_step_get_back_what_they_were_sent():
    plan, network = recipe(Supervised()), network_for(Supervised())
    for weights, report in together(network, shards(labeled=False), plan):
        assert all(torch.equal(weights[k], v) for k, v in network.state_dict().items())
        assert report.num_steps == 0
        assert report.loss != report.loss


def test_a_group_gives_the_same_bits_twice_and_any_order_gives_the_same_weights():
    plan, network = recipe(build("fixmatch")), network_for(FixMatch())
    first = together(network, shards(), plan)
    for (weights, _), (again, _) in zip(first, together(network, shards(), plan), strict=True):
        assert all(torch.equal(weights[k], again[k]) for k in weights)
    turned = together(network, shards()[::-1], plan, CLIENTS[::-1])[::-1]
    for (weights, report), (others, wanted) in zip(first, turned, strict=True):
        assert apart(network, weights, others) < TOLERANCE
        same_reports(report, wanted)


def test_clients_of_a_group_do_not_share_what_they_were_given():
    """Weights stay as they are while the next group trains and a client's are written to."""
    plan, network = recipe(build("fixmatch")), network_for(FixMatch())
    first = together(network, shards(), plan)
    kept = [{k: v.clone() for k, v in weights.items()} for weights, _ in first]
    together(network, shards()[::-1], plan, CLIENTS[::-1])
    for tensor in first[0][0].values():
        tensor.fill_(7)
    for (weights, _), own in list(zip(first, kept, strict=True))[1:]:
        assert all(torch.equal(weights[k], own[k]) for k in own)


def test_a_client_that_diverges_harms_nobody_else():
    plan, network = recipe(build("fixmatch"), augment=STEADY), network_for(FixMatch())
    healthy = shards(dtype=torch.float32)
    broken = dataclasses.replace(healthy[1], images=healthy[1].images / 0)
    fused = together(network, [healthy[0], broken, *healthy[2:]], plan)
    assert not any(v.isfinite().all() for v in fused[1][0].values())
    expected = alone(network, healthy, plan)
    for i in (0, 2, 3):
        assert apart(network, expected[i][0], fused[i][0]) < TOLERANCE
        same_reports(fused[i][1], expected[i][1])


def test_a_client_trains_in_a_group_of_one():
    plan, network = recipe(build("fixmatch")), network_for(FixMatch())
    ((weights, _),) = together(network, shards()[:1], plan, CLIENTS[:1])
    ((expected, _),) = alone(network, shards()[:1], plan, CLIENTS[:1])
    assert apart(network, expected, weights) < TOLERANCE


def test_clients_of_different_kinds_are_refused():
    plan, network = recipe(FixMatch()), network_for(FixMatch())
    with pytest.raises(ValueError, match="different kinds"):
        together(network, [shard(labeled=2), shard(labeled=0)], plan, CLIENTS[:2])


def test_what_a_loss_must_not_say_is_refused_as_alone():
    class Wrong(Supervised):
        def loss(self, network, batch, state, progress):
            said = super().loss(network, batch, state, progress)
            return dataclasses.replace(
                said, pseudo_labels=batch.labels.new_zeros(7), accepted=batch.labels.new_zeros(7)
            )

    with pytest.raises(ValueError, match="pseudo_labels must have shape"):
        together(network_for(Wrong()), shards(), recipe(Wrong()))


# ---- who goes with whom ----


@given(st.integers(0, 6), st.integers(0, 60), st.integers(0, 6), st.integers(0, 60))
def test_clients_of_one_key_take_the_same_steps_and_both_have_labels_or_neither(a, m, b, n):
    a, b = min(a, m), min(b, n)
    for method in (Supervised(), FixMatch(unlabeled_ratio=2)):
        plan = recipe(method, Train(local_epochs=1, batch_size=4))
        same = plan.num_steps(a, m) == plan.num_steps(b, n) and (a > 0) == (b > 0)
        assert (fusion_key(plan, a, m) == fusion_key(plan, b, n)) == same


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 7))
def test_groups_are_even_parts_of_runs_of_one_key_and_as_few_as_may_be(keys, size):
    cut = cut_groups(keys, lambda key: size)
    assert [place for group in cut for place in group] == list(range(len(keys)))
    assert all(1 <= len(group) <= size for group in cut)
    assert all(len({keys[place] for place in group}) == 1 for group in cut)
    for _, run in itertools.groupby(range(len(keys)), key=lambda place: keys[place]):
        places = set(run)
        sizes = [len(group) for group in cut if places.issuperset(group)]
        assert len(sizes) == math.ceil(len(places) / size)
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("step", "num_steps", "cohort", "size"),
    [
        (1.84e6, 1, 10, 5),  # short clients: a group of five, although there are two groups then
        (0.2e6, 1, 100, 13),  # an eighth of the cohort
        (0.2e6, 1, 1_000, 32),  # the largest group
        (14.7e6, 10, 5, 0),  # a long round, and workers would have nothing to share
        (14.7e6, 10, 100, 10),  # as many as one step has room for
        (20.0e6, 10, 100, 8),
        (20.1e6, 10, 100, 0),  # convolutions fill a core
        (2.0e6, 1, 3, 0),  # a cohort of three
        (2.0e6, 11, 24, 0),  # an eighth are three
        (2.0e6, 10, 24, 5),
        (0.0, 0, 40, 5),  # clients that take no step
    ],
)
def test_small_clients_are_fused_by_a_rule_of_sizes_alone(step, num_steps, cohort, size):
    assert group_size(step, num_steps, cohort) == size


def test_streams_are_named_by_client_and_round():
    plan, network = recipe(build("fixmatch")), network_for(FixMatch(), MODEL)
    own = shards()
    first = together(network, own, plan)
    others = together(network, own, plan, server_round=3)
    for (weights, _), (changed, _) in zip(first, others, strict=True):
        assert apart(network, weights, changed) > 100 * TOLERANCE
