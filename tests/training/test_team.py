"""A team of processes trains a client to the weights and the state of one process, with every method."""

import os
import signal
import time

import pytest
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import METHODS, Fresh
from fedssl.methods.functional import mean_where, snapshot
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS, Classifier
from fedssl.models.cnn import CNN
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from fedssl.training.team import current_team, sharing_rows
from tests.contract.test_methods import TABLE, name_of
from tests.fused import shard
from tests.team import results_of
from tests.training.test_loop import UNSURE

SPEC = ImageSpec((1, 8, 8), 10, (0.4,), (0.3,), flips=True)
TRAIN = Train(local_steps=5, batch_size=8, momentum=0.9)
ROWS = "rows"
METHODS_HERE = [table for table in TABLE if not table["kind"].startswith("tests.")]


def trained(method, *, dtype=torch.float64, model=None, train=TRAIN, labeled=12):
    """Train a client for five steps; return its weights, its state, and the rows that passed trunks in this process."""
    own = shard(40, labeled, spec=SPEC, dtype=dtype)
    network = build_network(model or CNN(widths=(6, 8), hidden=12, groups=2), method, SPEC, 0)
    network.to(dtype)
    recipe = Recipe(method, train, Augment())
    fresh = Fresh(network, SPEC, own)
    state = {slot.name: recipe.init_slot(slot.name, fresh) for slot in recipe.slots()}
    passed = []
    for trunk in {
        id(m.trunk): m.trunk for m in network.modules() if isinstance(m, Classifier)
    }.values():
        trunk.register_forward_hook(lambda module, inputs, output: passed.append(len(output)))
    when = {"seed": 3, "server_round": 2, "client": 1, "phase_round": 2, "phase_rounds": 4}
    report = fit(network, own, recipe, state, **when)
    slots = {f"{s}/{n}": t for s, tensors in state.items() for n, t in tensors.items()}
    report = {"loss": torch.tensor(report.loss), "counts": torch.tensor(report.accepted)}
    return {**snapshot(network), **slots, **report, ROWS: torch.tensor(passed)}


def assert_same(first, second, tolerance):
    assert first.keys() == second.keys()
    for name in first.keys() - {ROWS}:
        tensor = first[name]
        torch.testing.assert_close(
            tensor, second[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def double():
    """Make new tensors of numbers in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("table", METHODS_HERE, ids=name_of)
def test_every_method_trains_in_three_processes_as_in_one(table):
    """Whatever it compares over the batch, counts or keeps: 12 digits in double precision, on each process.

    Every pass through a trunk is divided: the processes' rows together are those of one process.
    """
    method = METHODS.build(UNSURE.get(table["kind"], {}) | table)
    alone = trained(method)
    found = results_of(3, lambda: trained(method))
    for own in found:
        assert_same(own, alone, 1e-12)
    is_divided = alone[ROWS] >= 3  # the image of noise that FedMatch shows is a batch of its own
    assert torch.equal(sum(own[ROWS] for own in found)[is_divided], alone[ROWS][is_divided])


SENSITIVE = {
    "comatch": 1e-2,
    "vat": 1e-3,
    "fedmatch": 1e-2,
    "byol": 1e-4,
    "fedema": 1e-4,
    "fedu": 1e-4,
    "simclr": 1e-5,
    "softmatch": 1e-5,
}
"""Methods that magnify rounding, or whose thresholds it can cross, and how far apart weights may be in single precision.

In double precision, the test above holds them to 1e-12 like all others."""


@pytest.mark.parametrize("table", METHODS_HERE, ids=name_of)
def test_two_processes_have_the_same_bits_and_those_of_one_but_for_rounding(table):
    method = METHODS.build(UNSURE.get(table["kind"], {}) | table)
    first, *others = results_of(2, lambda: trained(method, dtype=torch.float32))
    for own in others:
        assert all(torch.equal(first[name], own[name]) for name in first.keys() - {ROWS})
    assert_same(first, trained(method, dtype=torch.float32), SENSITIVE.get(table["kind"], 1e-6))


def check_fixmatch(size, tolerance, **settings):
    """Train with FixMatch in one process and in some; compare each with the one."""

    def run():
        return trained(METHODS.build({"kind": "fixmatch"}), **settings)

    alone = run()
    for own in results_of(size, run):
        assert_same(own, alone, tolerance)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("norm", ["batch", "static", "group"])
def test_normalizations_see_the_whole_batch(norm):
    """Statistics too: running ones, and those that static normalization measures after the round."""
    check_fixmatch(3, 1e-11, model=CNN(widths=(6, 8), hidden=12, norm=norm, groups=2))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "model",
    [
        {"kind": "wrn", "depth": 10, "width": 1, "dropout": 0.3},
        {"kind": "convnet13", "width": 8},
        {"kind": "resnet18", "width": 4},
    ],
    ids=lambda model: model["kind"],
)
def test_larger_models_and_their_dropout_train_as_in_one_process(model):
    check_fixmatch(2, 1e-11, model=MODELS.build(model))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(
    "train",
    [
        {"clip_norm": 0.1, "ema_decay": 0.9},
        {"optimizer": {"kind": "adamw"}, "lr": 1e-3, "keep_momentum": True},
        {"optimizer": {"kind": "lars"}},
    ],
    ids=["clip", "adamw", "lars"],
)
def test_optimizers_see_the_gradient_of_the_whole_batch(train):
    check_fixmatch(3, 1e-12, train=Train(local_steps=5, batch_size=8, **train))


@pytest.mark.parametrize(("size", "shares"), [(1, [8]), (2, [4, 4]), (3, [2, 3, 3])])
def test_each_process_passes_its_share_of_the_rows(size, shares):
    step = Train(local_steps=1, batch_size=8)
    found = results_of(size, lambda: trained(Supervised(), dtype=torch.float32, train=step))
    assert [own[ROWS].tolist() for own in found] == [[n] for n in shares]


def test_a_batch_of_fewer_rows_than_processes_is_passed_by_all():
    train = Train(local_steps=2, batch_size=2)
    alone = trained(Supervised(), dtype=torch.float32, train=train)
    for own in results_of(3, lambda: trained(Supervised(), dtype=torch.float32, train=train)):
        assert_same(own, alone, 1e-6)


@pytest.mark.parametrize("kind", ["supervised", "fixmatch"])
def test_a_step_sums_all_gradients_at_once(kind):
    """A sum takes a millisecond, however small it is; a network of more layers needs no more of them."""
    step = Train(local_steps=1, batch_size=8)

    def sums(widths):
        def run():
            team, counts = current_team(), []
            reduce = team._reduce
            team._reduce = lambda tensor: (counts.append(tensor.numel()), reduce(tensor))
            model = CNN(widths=widths, groups=2)
            trained(METHODS.build({"kind": kind}), dtype=torch.float32, model=model, train=step)
            return {"counts": torch.tensor(counts)}

        return [len(own["counts"]) for own in results_of(2, run)]

    assert sums((4,)) == sums((4, 4, 4))


def test_a_network_is_as_it_was_once_its_rows_are_no_longer_shared():
    network = build_network(CNN(norm="batch"), Supervised(), SPEC, 0)

    def hooks():
        return [
            (len(m._forward_pre_hooks), len(m._forward_hooks), "forward" in vars(m))
            for m in network.modules()
        ]

    before = hooks()

    def shared():
        with sharing_rows(current_team(), [network]):
            assert hooks() != before
        assert hooks() == before
        assert not any(p._backward_hooks for p in network.parameters())
        return {}

    results_of(2, shared)


def test_a_masked_loss_is_that_of_the_whole_batch():
    """Of eight losses of 1, process 0 has three that count and process 1 none: 3/8, and 1 as the mean of those that count."""

    def losses():
        network = Classifier(nn.Flatten(), nn.Linear(1, 1, bias=False), 1)
        nn.init.ones_(network.head.weight)
        counts = torch.tensor([1.0] * 3 + [0.0] * 5)
        with sharing_rows(current_team(), [network]):
            each = network(torch.ones(8, 1, 1, 1)).squeeze(1)
            fixed, kept = (each * counts).mean(), mean_where(each, counts)
            (fixed + kept).backward()
        return {"fixed": fixed.detach(), "kept": kept.detach(), "slope": network.head.weight.grad}

    for own in results_of(2, losses):
        assert own["fixed"] == 0.375
        assert own["kept"] == 1.0
        assert own["slope"].item() == 1.375


def test_processes_that_differ_are_told():
    def differing():
        weights = torch.full((3,), float(current_team().rank))
        with pytest.raises(RuntimeError, match="do not hold the same weights"):
            current_team().refuse_difference([torch.zeros(2), weights])
        current_team().refuse_difference([torch.zeros(2), torch.arange(5)])
        return {}

    results_of(3, differing)


@pytest.mark.parametrize("how", ["killed", "hanging"])
def test_a_process_that_is_lost_ends_the_others_sums(how):
    def lost():
        team = current_team()
        team.sum(torch.ones(1))
        if team.rank == 1:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(1000)
        began = time.monotonic()
        with pytest.raises(RuntimeError):
            team.sum(torch.ones(1))
        assert time.monotonic() - began < 20
        return {}

    results_of(2, lost, patience=2.0, waits_for=[0])
