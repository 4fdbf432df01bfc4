"""The check whether clients can be fused looks at the recipe and makes a trial; it has no list of methods."""

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from fedssl.augment.ctaugment import CTAugment
from fedssl.augment.policy import Augment
from fedssl.core.slots import Slot
from fedssl.fusion import fusible
from fedssl.fusion.fusible import OWN_HOOKS, way_to_fuse
from fedssl.fusion.stacked import Mapped, Wide
from fedssl.methods.base import Loss, Views
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.functional import supervised_loss
from fedssl.methods.supervised import Supervised
from fedssl.methods.temporal_ensembling import TemporalEnsembling
from fedssl.models.cnn import CNN
from fedssl.training.correction import Correction
from fedssl.training.optimization import Train
from tests.fused import (
    SPEC,
    TRAIN,
    alone,
    alone_with_state,
    apart,
    network_for,
    recipe,
    shards,
    together,
    together_with_state,
    why_not,
)


class Pull(Supervised):
    """Looks at the weights."""

    def loss(self, network, batch, state, progress):
        length = sum(weight.square().sum() for weight in network.parameters())
        return Loss(super().loss(network, batch, state, progress).total + 0.01 * length)


class Halves(Supervised):
    """Looks at a value to decide what to do."""

    def loss(self, network, batch, state, progress):
        loss = super().loss(network, batch, state, progress)
        return Loss(loss.total / 2) if loss.total > 1 else loss


class Jitters(Supervised):
    """Draws."""

    def loss(self, network, batch, state, progress):
        noise = torch.rand(batch.labeled[0].shape, generator=batch.generator)
        return Loss(supervised_loss(network, batch.labeled[0] + noise, batch.labels))


class ByLabel(Supervised):
    """Keeps one number for each labeled image."""

    def slots(self):
        return (Slot("memory", "client"),)

    def init_slot(self, name, fresh):
        return {"seen": torch.zeros(len(fresh.shard.labeled))}


class Listed(Supervised):
    """Has a setting without a hash."""

    sizes: list[int] = [1, 2]  # noqa: RUF012  (pydantic copies it)


class Odd(Supervised):
    """Keeps a truth value, and a count that stands under the name of one of the network's."""

    def slots(self):
        return (Slot("odd", "client"),)

    def init_slot(self, name, fresh):
        return {"flag": torch.tensor(False), "trunk.1.num_batches_tracked": torch.tensor(0)}

    def loss(self, network, batch, state, progress):
        loss = super().loss(network, batch, state, progress)
        odd = state["odd"]
        counted = odd["trunk.1.num_batches_tracked"] + 1
        updates = {"odd": {"flag": ~odd["flag"], "trunk.1.num_batches_tracked": counted}}
        return Loss(loss.total, updates=updates)


class Remembers(Supervised):
    """Keeps the state of an earlier phase."""

    def slots(self):
        return (Slot("earlier", "phase"),)


class Follows(Supervised):
    """Does something after each step, and does not say that it is elementwise."""

    def after_step(self, learner, batch, loss):
        pass


class Shows(Supervised):
    """Says that it is elementwise, and looks at images."""

    is_elementwise = True

    def after_step(self, learner, batch, loss):
        list(learner.show("plain", name="all"))


class Lengths(Supervised):
    """Says that it is elementwise, and looks at the length of a weight."""

    is_elementwise = True

    @torch.no_grad()
    def after_step(self, learner, batch, loss):
        for weight in learner.network.parameters():
            weight /= weight.norm()


@dataclass
class Thawed(Correction):
    """Is a dataclass that is not frozen, and so has no hash."""

    is_elementwise = True
    factor: float = 0.5


@dataclass(frozen=True)
class Normalized(Correction):
    """Says that it is elementwise, and looks at the length of a gradient."""

    is_elementwise = True

    def correct(self, learner, parameters):
        for parameter in parameters.values():
            parameter.grad /= parameter.grad.norm() + 1e-9


class Unlabeled(Supervised):
    """Has no labeled views, and an unlabeled one as it is."""

    def views(self):
        return Views((), ("plain",))

    def loss(self, network, batch, state, progress):
        return Loss(network(batch.unlabeled[0]).square().mean())


class Other(nn.Module):
    """An architecture of layers that cannot be put side by side, or of code that mixes channels."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.LayerNorm(6)
        self.second, self.last = nn.Conv2d(8, 4, 3), nn.Linear(64, 4)
        if how != "layer":
            del self.norm

    def forward(self, images):
        features = self.first(images)
        if self.how == "layer":
            features = self.norm(features)
        if self.how == "dropout":
            features = nn.functional.dropout(features, 0.5, self.training)
        doubled = torch.cat([features, features.flip(2)], dim=1)
        return self.last(self.second(doubled).relu().flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.last = nn.Linear(64, 4)

    def forward(self, images):
        return self.last(self.second(self.first(images.flatten(1)).relu()))


@pytest.mark.parametrize(
    ("plan", "model", "words"),
    [
        (recipe(FixMatch()), {"norm": "static"}, "buffers of its own, in a StaticBatchNorm"),
        (recipe(FixMatch()), {"dropout": 0.5}, "dropout"),
        (recipe(FixMatch(), Train(precision="bf16")), {}, "precision is bf16"),
        (recipe(FixMatch(), Train(keep_momentum=True)), {}, "optimizer.sgd"),
        (
            recipe(FixMatch(), Train(optimizer="lars")),
            {},
            "the optimizer lars looks at whole tensors",
        ),
        (recipe(FixMatch(), augment=Augment(strong=CTAugment())), {}, "augment.strong"),
        (recipe(Follows()), {}, "after_step"),
        (recipe(Shows()), {}, "uses more than weights and state"),
        (recipe(Lengths()), {}, "learns something else when it is fused"),
        (recipe(TemporalEnsembling()), {}, "state of different shapes: ensemble"),
        (recipe(ByLabel()), {}, "state of different shapes: memory"),
        (replace(recipe(FixMatch()), correction=Thawed()), {}, "client half has no hash"),
        (recipe(Remembers()), {}, "state that is not fused: earlier"),
        (replace(recipe(FixMatch()), correction=Correction()), {}, "Correction"),
        (replace(recipe(FixMatch()), correction=Normalized()), {}, "learns something else"),
        (recipe(Halves()), {}, "cannot be mapped over clients"),
        (recipe(Jitters()), {}, "random"),
    ],
)
def test_what_cannot_be_fused_says_why(plan, model, words):
    network = network_for(plan.method, CNN(widths=(8,), hidden=8).model_copy(update=model))
    reason = why_not(plan, network, SPEC)
    assert words in reason
    with pytest.raises(ValueError, match=re.escape(reason)):
        together(network, shards(), plan)


def test_a_trial_that_was_interrupted_is_no_answer(monkeypatch):
    """An alarm rings amid the trial; later, there is time for it."""
    plan, network = recipe(FixMatch()), network_for(FixMatch())

    def late(*args):
        raise TimeoutError("no reply within 2 s")

    monkeypatch.setattr(fusible, "_trial", late)
    with pytest.raises(TimeoutError):
        way_to_fuse(plan, network, SPEC)
    monkeypatch.undo()
    assert way_to_fuse(plan, network, SPEC) is Wide


def test_each_client_goes_on_with_a_count_of_its_own():
    """One client has taken part before and the other has not; a buffer of this name is one for all copies."""
    plan = recipe(Odd())
    network = network_for(Odd(), CNN(widths=(8,), hidden=8, norm="batch"))
    assert way_to_fuse(plan, network, SPEC) is Wide
    name = "trunk.1.num_batches_tracked"
    kept = [{"odd": {"flag": np.array(True), name: np.array(7)}}, {}]
    for (_, state, _), (_, wanted, _) in zip(
        together_with_state(network, shards()[:2], plan, kept=kept),
        alone_with_state(network, shards()[:2], plan, kept=kept),
        strict=True,
    ):
        assert {n: t.item() for n, t in state["odd"].items()} == {
            n: t.item() for n, t in wanted["odd"].items()
        }
    assert wanted["odd"][name] == TRAIN.local_steps


@pytest.mark.parametrize("hook", OWN_HOOKS)
def test_a_method_with_a_hook_of_its_own_is_not_fused(hook):
    changed = type("Changed", (Supervised,), {hook: lambda self, *rest: None})
    network = network_for(Supervised())
    assert hook in why_not(recipe(changed()), network, SPEC)


@pytest.mark.parametrize(
    ("method", "way"), [(Supervised(), Wide), (Pull(), Mapped), (Listed(), Wide)]
)
def test_a_loss_that_looks_at_the_weights_is_mapped_over_them(method, way):
    plan, network = recipe(method), network_for(method)
    assert way_to_fuse(plan, network, SPEC) is way
    for (weights, _), (expected, _) in zip(
        together(network, shards(), plan), alone(network, shards(), plan), strict=True
    ):
        assert apart(network, expected, weights) < 1e-4


@pytest.mark.parametrize("how", ["layer", "mixed"])
def test_networks_that_cannot_stand_side_by_side_are_mapped(how):
    """One has a layer that nobody widened; the other's code takes channels for one client's: the trial sees it."""
    network, plan = Other(how), recipe(FixMatch(threshold=0.3))
    assert way_to_fuse(plan, network, SPEC) is Mapped
    for (weights, report), (expected, wanted) in zip(
        together(network, shards(), plan), alone(network, shards(), plan), strict=True
    ):
        assert apart(network, expected, weights) < 1e-4
        assert report.considered == wanted.considered


def test_dropout_in_an_architectures_code_is_found_by_trying():
    network, before = Other("dropout"), torch.get_rng_state()
    assert "random" in why_not(recipe(FixMatch()), network, SPEC)
    assert torch.equal(before, torch.get_rng_state())


def test_layers_that_share_a_weight_are_not_fused():
    assert "share a weight" in why_not(recipe(Supervised()), Tied(), SPEC)


def test_the_trial_leaves_the_network_as_it_is():
    network = network_for(FixMatch())
    before = {k: v.clone() for k, v in network.state_dict().items()}
    assert why_not(recipe(FixMatch()), network, SPEC) is None
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())


def test_weights_that_do_not_learn_stay_as_they_are():
    network = network_for(Supervised())
    frozen = next(network.parameters())
    frozen.requires_grad_(False)
    plan = recipe(Supervised())
    fused = together(network, shards(), plan)
    for (weights, _), (expected, _) in zip(fused, alone(network, shards(), plan), strict=True):
        assert torch.equal(weights["trunk.0.weight"], frozen)
        assert apart(network, expected, weights) < 1e-4


def test_a_method_without_labeled_views_fuses():
    plan, network = recipe(Unlabeled(), TRAIN), network_for(Unlabeled())
    own = [shards()[0], *shards(labeled=False)[1:]]
    for (weights, _), (expected, _) in zip(
        together(network, own, plan), alone(network, own, plan), strict=True
    ):
        assert apart(network, expected, weights) < 1e-4
