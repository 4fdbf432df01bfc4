"""What a method's hooks may use: passes over the shard, pools, further batches, gradients, the received weights."""

import dataclasses

import pytest
import torch

from fedssl.augment.policy import Augment
from fedssl.core import rng
from fedssl.core.slots import Slot
from fedssl.methods.base import Loss, Method, Pools, Views
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import snapshot, supervised_loss
from fedssl.methods.supervised import Supervised
from fedssl.training.learn import learn
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from tests.helpers import small_experiment
from tests.training.test_loop import TRAIN, equal, shard, train_client  # noqa: F401

NOTED = {}
"""What the hooks of the methods below noted."""


@pytest.fixture(autouse=True)
def _forget():
    NOTED.clear()


class Shown(FixMatch):
    """Look at the whole shard before the first step."""

    def begin(self, learner):
        NOTED["all"] = list(learner.show("weak", name="look"))
        NOTED["again"] = list(learner.show("weak", name="look"))
        NOTED["some"] = list(learner.show("plain", torch.tensor([3, 1]), name="few"))
        learner.scratch["seen"] = len(NOTED["all"])

    def end(self, learner):
        NOTED["scratch"] = learner.scratch


def test_a_pass_shows_every_example_once_in_order(shard):  # noqa: F811
    train_client(Shown(), shard)
    ids = torch.cat([ids for ids, _ in NOTED["all"]])
    images = torch.cat([images for _, images in NOTED["all"]])
    assert torch.equal(ids, torch.arange(len(shard)))
    assert images.shape == (len(shard), *shard.spec.shape)
    assert torch.equal(images, torch.cat([images for _, images in NOTED["again"]]))
    ((few, plain),) = NOTED["some"]
    assert few.tolist() == [3, 1]
    wanted = shard.spec.normalize(shard.images[[3, 1]].float() / 255)
    assert torch.allclose(plain, wanted, atol=1e-6)
    assert not torch.equal(images[[3, 1]], plain)
    assert NOTED["scratch"] == {"seen": 1}


def test_a_pass_over_the_shard_cannot_shift_the_steps(shard):  # noqa: F811
    assert equal(train_client(Shown(), shard)[0], train_client(FixMatch(), shard)[0])


def test_every_stream_of_a_round_has_a_purpose_of_its_own(shard, monkeypatch):  # noqa: F811
    """Otherwise a pass over the shard would show the views that the steps then train on."""
    purposes = []
    real = rng.make_generator

    def noted(seed, purpose, **name):
        purposes.append(purpose)
        return real(seed, purpose, **name)

    monkeypatch.setattr(rng, "make_generator", noted)
    for method, own in ((Shown(), "show/few"), (Further(), "own/augment/labeled/0")):
        purposes.clear()
        train_client(method, shard)
        once = [
            purpose for purpose in purposes if purpose != "show/look"
        ]  # `Shown` asks for it twice
        assert {own, "augment/labeled/0"} <= set(once)
        assert len(set(once)) == len(once)


@dataclasses.dataclass
class Choice:
    """What `Chooses` draws from, and what it was given."""

    pools: Pools | None = None
    batches: list = dataclasses.field(default_factory=list)


CHOICE = Choice()


class Chooses(Method):
    """Train on chosen examples."""

    def views(self):
        return Views(("weak",), ("weak",))

    def pools(self, learner):
        return CHOICE.pools

    def loss(self, network, batch, state, progress):
        guesses = network(batch.unlabeled[0]).argmax(1)
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels), guesses, torch.ones(len(guesses)))  # fmt: skip

    def after_step(self, learner, batch, loss):
        CHOICE.batches.append((batch, loss, learner.progress))


def chosen(pools, shard, **train):  # noqa: F811
    CHOICE.pools, CHOICE.batches = pools, []
    return train_client(Chooses(), shard, Train(**{"local_steps": 3, "batch_size": 8} | train))


def test_batches_come_from_the_chosen_examples_with_their_targets(shard):  # noqa: F811
    labeled, unlabeled = torch.tensor([5, 2, 7]), torch.tensor([1, 4])
    targets = torch.tensor([9, 8, 7])
    chosen(Pools(labeled, unlabeled, targets), shard)
    assert len(CHOICE.batches) == 3
    wanted = dict(zip(labeled.tolist(), targets.tolist(), strict=True))
    for batch, loss, _ in CHOICE.batches:
        assert {
            int(i): int(t) for i, t in zip(batch.labeled_ids, batch.labels, strict=True)
        } == wanted
        assert set(batch.unlabeled_ids.tolist()) == {1, 4}
        assert loss.total.requires_grad or loss.total.grad_fn is not None


def test_targets_may_be_probabilities(shard):  # noqa: F811
    targets = torch.tensor([[0.25] * 4 + [0.0] * 6, [0.1] * 10])
    chosen(Pools(torch.tensor([0, 1]), torch.tensor([0]), targets), shard)
    for batch, _, _ in CHOICE.batches:
        assert torch.equal(batch.labels, targets[batch.labeled_ids])


def test_without_targets_the_given_labels_are_used(shard):  # noqa: F811
    chosen(Pools(shard.labeled, shard.unlabeled), shard)
    for batch, _, _ in CHOICE.batches:
        assert torch.equal(batch.labels, shard.labels[batch.labeled_ids])


def test_the_default_pools_are_no_choice_at_all(shard):  # noqa: F811
    assert equal(chosen(Pools(shard.labeled, shard.unlabeled), shard)[0], chosen(None, shard)[0])


def test_draws_with_replacement_need_not_pass_over_everything(shard):  # noqa: F811
    """Passes show each of eight examples once a step; with replacement, some step repeats one."""
    eight = torch.arange(8)
    chosen(Pools(eight, eight, eight), shard)
    assert all(sorted(b.labeled_ids.tolist()) == list(range(8)) for b, _, _ in CHOICE.batches)
    chosen(Pools(eight, eight, eight, replacement="labeled"), shard)
    drawn = [b.labeled_ids.tolist() for b, _, _ in CHOICE.batches]
    assert any(len(set(ids)) < 8 for ids in drawn)
    assert {i for ids in drawn for i in ids} <= set(range(8))


def test_an_epoch_is_one_over_the_chosen_examples(shard):  # noqa: F811
    """Two epochs over twelve labeled examples in batches of 8 are three steps, whatever the shard holds."""
    twelve = torch.arange(12)
    _, report = chosen(
        Pools(twelve, twelve[:4], twelve % 10), shard, local_steps=None, local_epochs=2
    )
    assert report.num_steps == 3
    assert [progress.num_steps for *_, progress in CHOICE.batches] == [3] * 3


def test_a_client_without_chosen_examples_sits_the_round_out(shard):  # noqa: F811
    none = torch.empty(0, dtype=torch.int64)
    received = snapshot(build_network(small_experiment().model, Chooses(), shard.spec, 0))
    after, report = chosen(Pools(none, none), shard)
    assert report.is_inactive
    assert report.num_steps == 0
    assert CHOICE.batches == []
    assert equal(after, received)
    after, took_part = chosen(Pools(shard.labeled, torch.tensor([1])), shard)
    assert not took_part.is_inactive
    assert took_part.num_steps == 3
    assert not equal(after, received)


def test_labels_that_a_method_gives_are_measured_at_every_example_that_it_took_for_unlabeled(shard):  # noqa: F811
    """Given labels do not excuse an example: a method that doubts labels is measured where it replaced them."""
    labeled = shard.labeled
    _, report = chosen(Pools(labeled[:1], labeled[1:3]), shard)
    assert report.accepted == report.judged == pytest.approx(2 * 24 / len(shard))
    _, report = chosen(Pools(labeled, labeled), shard)
    assert report.considered == pytest.approx(24 * (1 - len(labeled) / len(shard)))
    assert report.accepted == 0


def test_examples_that_the_method_left_out_lower_the_coverage(shard):  # noqa: F811
    """Each of the four unlabeled examples counts as often as if all examples were drawn from, by class too."""
    own = dataclasses.replace(
        shard, labels=torch.zeros_like(shard.labels), truth=shard.truth.clone()
    )
    hidden, each = torch.tensor([0, 1, 2, 3]), 24 / len(shard)  # 3 steps of 8 examples
    own.labels[hidden] = -1
    own.truth[hidden] = torch.tensor([5, 5, 6, -1])
    for kept in ([0], [0, 1]):
        pools = Pools(hidden[:0], torch.tensor(kept), targets=torch.empty(0, dtype=torch.int64))
        _, report = chosen(pools, own)
        assert report.accepted == pytest.approx(each * len(kept))
        assert report.considered == pytest.approx(each * 4)
        assert report.num_confident(len(shard) - 4, len(shard)) == pytest.approx(
            len(shard) - 4 + len(kept)
        )
    _, report = chosen(dataclasses.replace(pools, unlabeled=hidden[1:2]), own)
    considered, accepted, *_ = torch.tensor(report.by_class).view(4, -1)
    assert considered[5:7].tolist() == pytest.approx([2 * each, each])
    assert float(considered.sum()) == pytest.approx(
        3 * each
    )  # nobody knows the class of the fourth
    assert accepted.sum() == accepted[5] == pytest.approx(each)
    _, report = chosen(dataclasses.replace(pools, unlabeled=hidden), own)
    assert (
        report.accepted == report.considered == 24
    )  # nothing is left out: the steps are counted as they are


@pytest.mark.parametrize("train", [{"local_steps": 3}, {"local_steps": None, "local_epochs": 2}])
def test_a_cohorts_coverage_is_a_share_of_images_whatever_each_client_chose(shard, train):  # noqa: F811
    """All of one client's images are used and none or one of the other's: a half, as with a mask in each step."""
    ids = torch.arange(40)
    own = dataclasses.replace(
        shard, images=shard.images[ids], labels=torch.full((40,), -1), truth=shard.truth[ids]
    )  # fmt: skip
    none = torch.empty(0, dtype=torch.int64)
    _, everything = chosen(Pools(none, ids, none), own, **train)
    for kept in (none, ids[:1]):
        _, other = chosen(Pools(none, kept, none), own, **train)
        assert other.is_inactive == (len(kept) == 0)
        considered = everything.considered + other.considered
        accepted = everything.accepted + other.accepted
        assert accepted / considered == pytest.approx((40 + len(kept)) / 80)
        one, two = (torch.tensor(report.by_class).view(4, -1) for report in (everything, other))
        assert float(one[0].sum()) == pytest.approx(float(two[0].sum()))
        assert float(two[1].sum()) == pytest.approx(other.accepted)
        share = torch.bincount(own.truth, minlength=two.shape[1]) / 40
        torch.testing.assert_close(two[0] / two[0].sum(), share)


def test_a_round_without_pseudo_labels_leaves_nothing_out(shard):  # noqa: F811
    none = torch.empty(0, dtype=torch.int64)
    _, report = chosen(Pools(none, none, gives_pseudo_labels=False), shard)
    assert report.is_inactive
    assert (report.considered, sum(report.by_class)) == (0, 0)


class Further(Method):
    """Draw batches of its own beside the main ones."""

    def views(self):
        return Views(("weak",))

    def begin(self, learner):
        pools = Pools(torch.tensor([0, 1]), torch.tensor([2, 3]))
        learner.scratch["own"] = learner.batches(
            pools, Views(("plain",), ("weak", "strong"), 2), name="own"
        )
        _ = learner.received

    def loss(self, network, batch, state, progress):
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels))

    def after_step(self, learner, batch, loss):
        NOTED.setdefault("own", []).append(next(learner.scratch["own"]))
        NOTED["received"] = learner.received

    def end(self, learner):
        NOTED["left"] = list(learner.scratch["own"])


def test_further_batches_are_as_many_as_the_steps_and_shift_nothing(shard):  # noqa: F811
    weights, _ = train_client(Further(), shard)
    assert equal(weights, train_client(Supervised(), shard)[0])
    assert len(NOTED["own"]) == 3
    assert NOTED["left"] == []
    for batch in NOTED["own"]:
        assert set(batch.labeled_ids.tolist()) == {0, 1}
        assert set(batch.unlabeled_ids.tolist()) == {2, 3}
        assert (len(batch.labeled), len(batch.unlabeled)) == (1, 2)
        assert len(batch.unlabeled_ids) == 16


def test_the_received_weights_stay_as_they_came(shard):  # noqa: F811
    weights, _ = train_client(Further(), shard)

    class Still(Supervised):
        def begin(self, learner):
            NOTED["first"] = snapshot(learner.network)

    train_client(Still(), shard)
    assert equal(NOTED["first"], NOTED["received"])
    assert not equal(weights, NOTED["received"])


def test_the_received_weights_cannot_be_asked_for_too_late(shard):  # noqa: F811
    class Late(Supervised):
        def after_step(self, learner, batch, loss):
            if learner.progress.step == 1:
                _ = learner.received

    with pytest.raises(RuntimeError, match="before the first step"):
        train_client(Late(), shard)


class Measures(Supervised):
    """Ask for gradients that move nothing."""

    def step(self, learner, batch):
        loss = self.loss(learner.network, batch, learner.state, learner.progress)
        before = snapshot(learner.network)
        NOTED["gradients"] = learner.gradients(loss.total, "main")
        assert equal(before, snapshot(learner.network))
        assert all(p.grad is None for p in learner.network.parameters())
        names, parameters = zip(*learner.network.named_parameters(), strict=True)
        found = torch.autograd.grad(loss.total, parameters, retain_graph=True)
        NOTED["wanted"] = dict(zip(names, found, strict=True))
        for parameter in parameters:
            parameter.grad = None
        learner.descend(loss.total, "main")
        return loss


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_unscaled_and_move_nothing(shard, precision):  # noqa: F811
    train = Train(local_steps=1, batch_size=8, precision=precision)
    weights, _ = train_client(Measures(), shard, train)
    assert NOTED["gradients"].keys() == NOTED["wanted"].keys()
    for name, gradient in NOTED["gradients"].items():
        assert torch.allclose(gradient, NOTED["wanted"][name], rtol=1e-2, atol=1e-3), name
    if precision == "fp32":
        assert equal(weights, train_client(Supervised(), shard, train)[0])


class Nosy(Supervised):
    """Look for the truth wherever a hook may look."""

    def slots(self):
        return (Slot("looked", "client"),)

    def init_slot(self, name, fresh):
        NOTED["slot"] = fresh.shard.truth
        return {"once": torch.zeros(())}

    def begin(self, learner):
        NOTED["begin"] = learner.shard.truth


def test_no_hook_sees_the_truth(shard):  # noqa: F811
    network = build_network(small_experiment().model, Nosy(), shard.spec, 0)
    recipe = Recipe(Nosy(), TRAIN, Augment())
    learn(network, shard, recipe, {}, seed=0, server_round=1, client=0, phase_round=1, phase_rounds=2)  # fmt: skip
    assert (shard.truth >= 0).all()
    assert (NOTED["slot"] == -1).all()
    assert (NOTED["begin"] == -1).all()


def test_an_epoch_does_not_count_a_pool_that_is_drawn_with_replacement(shard):  # noqa: F811
    """Two epochs over four unlabeled examples in batches of 8 are one step; the labeled pool would give three."""
    twelve = torch.arange(12)
    for replacement, steps in (("labeled", 1), ("both", 3), ("none", 3)):
        pools = Pools(twelve, twelve[:4], twelve % 10, replacement=replacement)
        _, report = chosen(pools, shard, local_steps=None, local_epochs=2)
        assert report.num_steps == steps
        counts = torch.bincount(CHOICE.batches[0][0].unlabeled_ids, minlength=4)
        assert (counts.tolist() == [2] * 4) == (replacement != "both")
