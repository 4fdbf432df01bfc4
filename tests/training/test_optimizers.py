"""Optimizers: the family, LARS by hand, and an optimizer and a schedule of the user's own."""

import importlib
import json
import sys
import uuid

import numpy as np
import pytest
import torch

from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.experiment import Experiment
from fedssl.server.app import serve
from fedssl.training.optimization import Descent, Train
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.optimizers import OPTIMIZERS
from fedssl.training.optimizers.lars import trust_ratio
from tests.helpers import fedssl, small_experiment

CPU = torch.device("cpu")


def test_the_members_are_found():
    assert {"adam", "adamw", "lars", "sgd"} <= set(OPTIMIZERS.names())


@pytest.mark.parametrize("name", ["adam", "adamw", "lars", "sgd"])
def test_a_bare_name_is_short_for_a_table_and_goes_round(name):
    train = Train(optimizer=name, schedule="cosine")
    assert train == Train(optimizer={"kind": name}, schedule={"kind": "cosine"})
    assert hash(train) == hash(Train(optimizer={"kind": name}, schedule={"kind": "cosine"}))
    assert Train.model_validate(train.model_dump(mode="json", exclude_none=True)) == train


def test_the_settings_that_earlier_versions_wrote_mean_what_they_meant():
    """Every record of a run holds all settings of its version."""
    before = {
        "optimizer": "adam", "lr": 0.05, "momentum": 0.9, "nesterov": True, "keep_momentum": False,
        "weight_decay": 0.0005, "schedule": "step", "schedule_over": "phase", "milestones": [0.5, 0.75], "gamma": 0.1,
    }  # fmt: skip
    assert small_experiment(train=before) == small_experiment(
        train={"optimizer": "adam", "schedule": "step"}
    )


def test_settings_of_one_optimizer_do_not_pass_to_another(tmp_path):
    """What all schedules have stays: the warm-up."""
    table = {
        "optimizer": {"kind": "lars", "trust_coefficient": 0.02},
        "schedule": {"kind": "cosine", "final": 0.5, "warm_up": 0.1},
    }
    experiment = small_experiment(train=table)
    changed = experiment.with_settings("train.optimizer=sgd", "train.schedule=constant").train
    assert (changed.optimizer.kind, changed.schedule.to_dict()) == (
        "sgd",
        {"kind": "constant", "warm_up": 0.1},
    )
    longer = experiment.with_settings("train.optimizer.trust_coefficient=0.5")
    assert longer.train.optimizer.to_dict()["trust_coefficient"] == 0.5
    phases = [{"rounds": 1, "train": {"optimizer": "lars"}}, {"rounds": 1}]
    first, second = small_experiment(rounds=None, phases=phases).plans
    assert (first.train.optimizer.kind, second.train.optimizer.kind) == ("lars", "sgd")


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"optimizer": "lrs"}}, r"^train.optimizer.kind: there is no optimizer 'lrs'"),
        ({"train": {"optimizer": {"kind": "sgd", "lr": 1}}}, r"^train.optimizer.lr: unknown key"),
        (
            {"server": {"train": {"optimizer": "lrs"}}},
            r"^server.train.optimizer.kind: there is no optimizer 'lrs'",
        ),
        (
            {"server": {"train": {"schedule": {"kind": "cosine", "final": 2}}}},
            r"^server.train.schedule.final: is 2",
        ),
        (
            {"rounds": None, "phases": [{"rounds": 1, "train": {"optimizer": "lrs"}}]},
            r"^phases\[0\].train.optimizer.kind: there is no optimizer 'lrs'",
        ),
    ],
)
def test_a_wrong_optimizer_is_one_message_that_says_where(sections, message):
    with pytest.raises(InputError, match=message):
        small_experiment(**sections)


def test_the_schema_takes_a_bare_name_and_a_table():
    train = Experiment.model_json_schema()["$defs"]["Train"]["properties"]
    for name, kind in (("optimizer", "lars"), ("schedule", "cosine")):
        ways = train[name]["anyOf"]
        assert kind in [way.get("title") for way in ways]
        assert "string" in [way["type"] for way in ways]


@pytest.mark.parametrize(
    ("family", "words"), [("optimizers", ["lars", "trust_coefficient"]), ("schedules", ["warm_up"])]
)
def test_the_families_are_listed(family, words):
    output = fedssl("list", family).output
    assert all(word in output for word in words)


def descend(train, weights, loss, steps):
    optimizers = OptimizerSet({"main": train.make_optimizer(iter(weights))})
    descent = Descent(optimizers, train, CPU)
    for _ in range(steps):
        descent(loss(), "main")
    return optimizers


def test_three_steps_of_lars_by_hand():
    """w = (3, 4) has the norm 5, and its gradient is always (.6, .8), of norm 1, in the direction of w.

    So everything stays in that direction, and ||w|| alone is counted: v = m v + lr r (1 + decay ||w||), ||w|| -= v.
    """
    settings = {"trust_coefficient": 0.1, "epsilon": 0.5}
    train = Train(optimizer={"kind": "lars", **settings}, lr=2.0, momentum=0.9, weight_decay=0.2)
    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    gradient = torch.tensor([[0.6, 0.8]])
    found = descend(train, [weight], lambda: (weight * gradient).sum(), 3)
    norm, velocity = 5.0, 0.0
    for _ in range(3):
        ratio = 0.1 * norm / (1 + 0.2 * norm + 0.5)
        velocity = 0.9 * velocity + 2.0 * ratio * (1 + 0.2 * norm)
        norm -= velocity
    assert torch.allclose(weight.detach(), norm * gradient, atol=1e-5)
    kept = found.tensors()
    assert torch.allclose(kept["main/0/momentum_buffer"], velocity * gradient, atol=1e-5)
    # The first step is lr r (1 + decay ||w||) = 2 (.5 / 2.5) 2.
    first = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    descend(train, [first], lambda: (first * gradient).sum(), 1)
    assert float(first.detach().norm()) == pytest.approx(5 - 0.8)


def test_the_rate_is_within_the_momentum():
    """v = m v + lr ...: where the rate falls to zero, the weight moves on by m v."""
    train = Train(optimizer="lars", lr=1.0, momentum=0.5, weight_decay=0)
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = train.make_optimizer(iter([weight]))
    for rate, at in ((1.0, 0.0), (0.0, -0.5), (0.0, -0.75)):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.ones(2)
        optimizer.step()
        assert weight.tolist() == [at, at]


def test_norms_and_biases_take_plain_steps_and_never_decay():
    train = Train(optimizer="lars", lr=0.1, momentum=0.9, weight_decay=0.5)
    bias, scalar = (
        torch.nn.Parameter(torch.tensor([2.0, -3.0])),
        torch.nn.Parameter(torch.tensor(1.0)),
    )
    descend(train, [bias, scalar], lambda: bias.sum() + scalar, 2)
    moved = 0.1 + 0.19
    assert torch.allclose(bias.detach(), torch.tensor([2.0 - moved, -3.0 - moved]))
    assert float(scalar.detach()) == pytest.approx(1 - moved)


def test_the_trust_ratio_of_zero_weights_and_of_zero_gradients_is_one():
    weights, gradients = torch.tensor([0.0, 2.0, 0.0, 2.0]), torch.tensor([3.0, 0.0, 0.0, 4.0])
    found = trust_ratio(weights, gradients, trust_coefficient=0.5, weight_decay=0.5, epsilon=0.0)
    assert found.tolist() == pytest.approx([1, 1, 1, 0.5 * 2 / (4 + 0.5 * 2)])


def test_zero_weights_move_by_their_gradients_and_zero_gradients_let_weights_decay():
    train = Train(optimizer="lars", lr=0.1, momentum=0.9, weight_decay=0.5)
    zero, still = torch.nn.Parameter(torch.zeros(1, 2)), torch.nn.Parameter(torch.ones(1, 2))
    descend(train, [zero, still], lambda: zero.sum() + 0 * still.sum(), 1)
    assert torch.allclose(zero.detach(), torch.full((1, 2), -0.1))
    assert torch.allclose(still.detach(), torch.full((1, 2), 1 - 0.1 * 0.5))


def test_a_weight_without_a_gradient_stays():
    train = Train(optimizer="lars", lr=0.1)
    used, unused = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    found = descend(train, [used, unused], lambda: used.sum(), 2)
    assert torch.equal(unused.detach(), torch.ones(2, 2))
    assert list(found.tensors()) == ["main/0/momentum_buffer"]


def test_fp16_does_not_scale_what_lars_measures():
    """The loss is scaled by 1,024; a trust ratio of scaled gradients would be as many times smaller."""

    def trained(precision):
        weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        train = Train(optimizer="lars", lr=10.0, weight_decay=0.1, precision=precision)
        descend(train, [weight], lambda: weight.square().sum(), 3)
        return weight.detach()

    assert torch.allclose(trained("fp16"), trained("fp32"), rtol=1e-4)
    assert not torch.allclose(trained("fp32"), torch.tensor([[3.0, 4.0]]), rtol=1e-3)


def test_lars_restored_goes_on_as_if_it_had_not_stopped():
    train = Train(optimizer="lars", lr=5.0, weight_decay=0.1)

    def steps(count, optimizers, weights):
        descent = Descent(optimizers, train, CPU)
        for _ in range(count):
            descent(sum(weight.square().sum() for weight in weights), "main")

    def weights():
        return [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))]

    whole, half = weights(), weights()
    steps(5, OptimizerSet({"main": train.make_optimizer(iter(whole))}), whole)
    first = OptimizerSet({"main": train.make_optimizer(iter(half))})
    steps(3, first, half)
    second = OptimizerSet({"main": train.make_optimizer(iter(half))})
    second.restore(first.tensors())
    steps(2, second, half)
    assert all(torch.equal(a, b) for a, b in zip(whole, half, strict=True))


OWN_OPTIMIZER = '''
"""Lion (Chen et al., NeurIPS 2023, arXiv:2302.06675)."""

import torch
from pydantic import Field

from fedssl.training.optimizers import Optimizer


class Lion(Optimizer):
    """Move by the sign of an interpolated momentum."""

    share: float = Field(0.9, description="share of the momentum in a step's direction")

    def build(self, parameters, train):
        return Signed(parameters, {"lr": train.lr, "momentum": train.momentum, "share": self.share})


class Signed(torch.optim.Optimizer):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    kept = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                    weight -= group["lr"] * torch.lerp(weight.grad, kept, group["share"]).sign()
                    kept.lerp_(weight.grad, 1 - group["momentum"])
'''
OWN_SCHEDULE = '''
"""A learning rate that falls in a straight line."""

from fedssl.training.schedules import Schedule


class Linear(Schedule):
    """Fall to 0 in a straight line."""

    def factor(self, fraction, train):
        return 1 - fraction
'''


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Write an optimizer and a schedule into a folder that was empty, and return the name of their package."""
    package = f"lab_{uuid.uuid4().hex}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "lion.py").write_text(OWN_OPTIMIZER)
    (tmp_path / package / "linear.py").write_text(OWN_SCHEDULE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield package
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def test_an_optimizer_and_a_schedule_of_ones_own_are_one_file_each(lab):
    """They train a federation whose clients keep the optimizer's state, under any settings of groups."""
    experiment = small_experiment(
        federation={"sample": 6},
        train={
            "optimizer": {"kind": f"{lab}.lion", "share": 0.8},
            "schedule": f"{lab}.linear",
            "lr": 0.002,
            "keep_momentum": True,
            "rates": {"head.*": 2.0},
        },
    )
    assert json.loads(experiment.to_client_json())["train"]["optimizer"]["share"] == 0.8
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert len(outcome.rounds) == 2
    assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())
