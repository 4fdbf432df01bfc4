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
from fedssl.fusion.fusible import way_to_fuse
from fedssl.fusion.groups import cut_groups, fusion_key, group_size
from fedssl.fusion.stacked import Wide
from fedssl.methods.base import METHODS
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import snapshot
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS
from fedssl.strategies.feddyn import DynamicRegularizer
from fedssl.strategies.fedprox import ProximalTerm
from fedssl.strategies.scaffold import ControlVariates
from fedssl.training.optimization import Train
from tests.fused import (
    CLIENTS,
    MODEL,
    SPEC,
    TRAIN,
    alone,
    alone_with_state,
    apart,
    network_for,
    recipe,
    shard,
    shards,
    together,
    together_with_state,
    why_not,
)
from tests.methods.examples import FIRST_METHODS

TOLERANCE = 1e-4
"""Of the way a client's weights came, in single precision."""

EXACT = 1e-10
"""Of the same in double precision: what differs is rounding."""

PLAIN = {"supervised", "fixmatch", "pi_model", "pseudo_label", "uda"}
WITH_STATE = {"comatch", "fedlabel", "freematch", "mean_teacher", "sage", "softmatch"}
FUSES = PLAIN | WITH_STATE

IN_SINGLE = {"softmatch": 1e-2}
"""Bounds in single precision of methods that magnify rounding: SoftMatch divides by a variance, which may be 1e-5."""

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
    "clipped": {"clip_norm": 0.5},
    "warm-up": {"schedule": {"kind": "cosine", "final": 0.1, "warm_up": 0.5}},
}


@pytest.fixture
def in_double():
    """New tensors of floats are in double precision, as those are that a method makes for its state."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(name):
    return METHODS.build({"kind": name, **KEEN.get(name, {})})


def same_reports(first, second, tolerance=TOLERANCE):
    """Counts are whole numbers or sums of weights; a loss is a mean in single precision."""
    about = {"rel": max(tolerance, 1e-9), "abs": 1e-9}
    assert first.num_steps == second.num_steps
    assert first.loss == pytest.approx(second.loss, nan_ok=True, **about)
    for name in ("considered", "accepted", "judged", "right"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), **about), name
    assert first.by_class == pytest.approx(second.by_class, **about)
    assert first.numbers == pytest.approx(second.numbers, nan_ok=True, **about)


def check_parity(network, own, plan, tolerance, rounds=(2, 3)):
    """The second round begins with what the clients keep from the first."""
    start, kept = snapshot(network), None
    for phase_round in rounds:
        when = {"kept": kept, "phase_round": phase_round, "server_round": phase_round}
        fused = together_with_state(network, own, plan, **when)
        assert all(torch.equal(start[k], v) for k, v in snapshot(network).items())
        expected = alone_with_state(network, own, plan, **when)
        for (weights, state, report), (others, wanted, told) in zip(fused, expected, strict=True):
            assert list(weights) == list(others)
            assert apart(network, others, weights) < tolerance
            same_reports(report, told, tolerance)
            same_state(state, wanted, tolerance)
        kept = [as_kept(plan, state) for _, state, _ in expected]


def same_state(found, wanted, tolerance):
    assert found.keys() == wanted.keys()
    for slot, tensors in wanted.items():
        assert found[slot].keys() == tensors.keys()
        for name, tensor in tensors.items():
            other = found[slot][name]
            assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype)
            if not tensor.is_floating_point():
                assert torch.equal(other, tensor)
            else:
                assert (other - tensor).norm() <= tolerance * tensor.norm() + 1e-12, (slot, name)


def as_kept(plan, state):
    slots = [slot.name for slot in plan.slots() if slot.scope != "reset"]
    return {slot: {n: t.numpy() for n, t in state[slot].items()} for slot in slots}


@pytest.mark.parametrize("name", FIRST_METHODS)
@pytest.mark.parametrize("labeled", [True, False])
def test_every_method_fuses_to_the_same_weights_or_says_why_not(name, labeled):
    method = build(name)
    plan, network = recipe(method), network_for(method)
    reason = why_not(plan, network, SPEC)
    assert (reason is None) or name not in FUSES, reason
    if reason is not None:
        assert len(reason) > 10
        assert "\n" not in reason
        with pytest.raises(ValueError, match=re.escape(reason)):
            together(network, shards(labeled), plan)
    elif method.can_learn(int(labeled)):
        check_parity(network, shards(labeled), plan, IN_SINGLE.get(name, TOLERANCE))


KINDS = {
    **{name: {"kind": name} for name in sorted(FUSES)},
    "fixmatch, received labels": {"kind": "fixmatch", "labeler": "received", "threshold": 0.3},
    "fixmatch, its own labels if it has some": {
        "kind": "fixmatch",
        "labeler": "local_if_labeled",
        "threshold": 0.3,
    },
    "mean_teacher, kept by clients": {"kind": "mean_teacher", "teacher_scope": "client"},
    "mean_teacher, merged": {"kind": "mean_teacher", "teacher_scope": "server"},
    "freematch, kept by clients": {"kind": "freematch", "statistics_scope": "client"},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_in_double_precision_nothing_but_rounding_is_left(settings, in_double):
    method = METHODS.build({**KEEN.get(settings["kind"], {}), **settings})
    network = network_for(method, dtype=torch.float64)
    plan = recipe(method, augment=STEADY)
    check_parity(network, shards(dtype=torch.float64), plan, EXACT)


CORRECTIONS = {
    "fedprox": ProximalTerm(5.0),
    "scaffold": ControlVariates(),
    "feddyn": DynamicRegularizer(1.0),
}


@pytest.mark.parametrize("correction", CORRECTIONS.values(), ids=CORRECTIONS)
@pytest.mark.parametrize("name", ["fixmatch", "mean_teacher"])
def test_corrections_of_strategies_fuse(correction, name, in_double):
    """They change what clients learn, together as alone."""
    method = build(name)
    network, own = network_for(method, dtype=torch.float64), shards(dtype=torch.float64)
    plan = recipe(method, augment=STEADY)
    corrected = dataclasses.replace(plan, correction=correction)
    assert way_to_fuse(corrected, network, SPEC) is Wide
    check_parity(network, own, corrected, EXACT)
    if name == "fixmatch":
        plain, other = (together(network, own, p, phase_round=3) for p in (plan, corrected))
        moves = not isinstance(correction, ControlVariates)  # these begin at 0
        assert (apart(network, plain[0][0], other[0][0]) > 1e-3) == moves


@pytest.mark.parametrize("name", ["fixmatch", "mean_teacher"])
def test_batch_normalization_fuses(name, in_double):
    """Each client has statistics of its own, and a teacher has its own, too."""
    method = METHODS.build({"kind": name} | ({"labeler": "received"} if name == "fixmatch" else {}))
    network = network_for(method, MODEL.model_copy(update={"norm": "batch"}), dtype=torch.float64)
    plan = recipe(method, augment=STEADY)
    assert way_to_fuse(plan, network, SPEC) is Wide
    check_parity(network, shards(dtype=torch.float64), plan, EXACT)
    first, second = (
        weights for weights, _ in together(network, shards(dtype=torch.float64), plan)[:2]
    )
    assert not torch.equal(first["trunk.1.running_mean"], second["trunk.1.running_mean"])


@pytest.mark.parametrize("settings", TRAINS.values(), ids=TRAINS)
def test_every_optimizer_and_schedule_steps_as_alone(settings):
    method = build("fixmatch")
    train = TRAIN.model_validate(TRAIN.model_dump() | {"local_steps": 5} | settings)
    plan = recipe(method, train, STEADY)
    check_parity(network_for(method), shards(), plan, TOLERANCE)
    double = network_for(method, dtype=torch.float64)
    check_parity(double, shards(dtype=torch.float64), plan, EXACT)


def test_each_client_is_clipped_by_its_own_norm():
    """The limit lies between the lengths of the clients' gradients."""
    plain = TRAIN.model_validate(TRAIN.model_dump() | {"local_steps": 1} | TRAINS["plain"])
    network, own = network_for(FixMatch()), shards()

    def lengths(train):
        trained = together(network, own, recipe(FixMatch(), train, STEADY))
        return torch.tensor([length(network, weights) / train.lr for weights, _ in trained])

    free = lengths(plain)
    limit = float(free.sort().values[1:3].mean())
    clipped = lengths(plain.model_copy(update={"clip_norm": limit}))
    assert (clipped < 0.999 * free).sum() == 2
    torch.testing.assert_close(clipped, free.clamp(max=limit), rtol=1e-4, atol=0)


def length(network, weights):
    start = snapshot(network)
    return torch.stack([(weights[name] - start[name]).norm() for name in start]).norm()


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        ("cnn", "none"),
        ("cnn", "group"),
        ("resnet8", "group"),
        ("resnet9", "none"),
        ("resnet18", "group"),
        ("wrn", "none"),
        ("wrn", "group"),
    ],
)
def test_architectures_with_branches_and_group_normalization_fuse(kind, norm):
    spec = dataclasses.replace(SPEC, shape=(3, 16, 16), mean=(0.4,) * 3, std=(0.3,) * 3)
    method = FixMatch(threshold=0.3, unlabeled_ratio=1)
    network = network_for(method, MODELS.build({"kind": kind, "norm": norm}), spec)
    plan = recipe(method, Train(local_steps=1, batch_size=2, lr=0.01))
    assert why_not(plan, network, spec) is None
    check_parity(network, shards(spec=spec)[:2], plan, TOLERANCE, rounds=[2])


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
