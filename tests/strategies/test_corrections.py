"""Corrections against client drift, on two quadratics whose best common point is known, and under any optimizer."""

import pytest
import torch

from fedssl.core.slots import Merge
from fedssl.methods.base import Loss
from fedssl.server.app import serve
from fedssl.strategies.fedavg import FedAvg
from fedssl.strategies.feddyn import GRADIENT, FedDyn
from fedssl.strategies.fedprox import FedProx
from fedssl.strategies.scaffold import OWN, SERVER, Scaffold
from fedssl.training.learn import learn
from tests.strategies.quadratics import (
    EXACT,
    Federation,
    Point,
    Quadratic,
    Slope,
    on_digits,
    shard_of,
    two_clients,
)


def test_federated_averaging_settles_beside_the_optimum():
    """Ten steps of .1: the clients go to 1 - .9^10 (1 - w) and so on; the fixed point of their mean is -.1974."""
    a, b = 0.9**10, 0.7**10
    expected = ((1 - a) - (1 - b)) / (2 - a - b)
    assert expected == pytest.approx(-0.1974, abs=1e-4)
    federation = Federation(FedAvg(weight="uniform"), local_steps=10, lr=0.1)
    assert federation.run(100) == pytest.approx(expected, abs=1e-5)


def test_fedprox_solved_exactly_settles_at_minus_a_fifth():
    """The mean of (1 + w) / 2 and (w - 3) / 4 is w at w = -.2."""
    federation = Federation(FedProx(weight="uniform", mu=1.0), **EXACT)
    assert federation.run(30) == pytest.approx(-0.2, abs=1e-4)


def test_fedprox_changes_nothing_at_the_first_step_and_pulls_back_later():
    """mu d: after one step from 0 the client is at .1; the second gradient is (.1 - 1) + mu .1."""
    for steps, mean in ((1, (0.1 - 0.3) / 2), (2, (0.1 + 0.09 - 0.05 - 0.3 - 0.21 + 0.15) / 2)):
        federation = Federation(FedProx(weight="uniform", mu=5.0), local_steps=steps, lr=0.1)
        assert federation.run(1) == pytest.approx(mean, abs=1e-6)


def test_fedprox_without_weight_is_federated_averaging_bit_for_bit():
    assert FedProx(mu=0.0).correction() is None
    ours = Federation(FedProx(weight="uniform", mu=0.0), local_steps=3).run(5)
    assert ours == Federation(FedAvg(weight="uniform"), local_steps=3).run(5)


def test_scaffold_begins_at_zero_and_keeps_mean_gradients():
    """Two steps of .1 from 0: the clients come to .19 and -.51, and their gradients were -.95 and 2.55 on average."""
    federation = Federation(Scaffold(), local_steps=2, lr=0.1)
    federation.run(1)
    assert federation.trained == {0: pytest.approx(0.19), 1: pytest.approx(-0.51)}
    assert federation.kept[0][OWN]["w"] == pytest.approx(-0.95)
    assert federation.kept[1][OWN]["w"] == pytest.approx(2.55)
    assert federation.state[SERVER]["w"] == pytest.approx((2.55 - 0.95) / 2)


def test_scaffold_finds_the_optimum():
    federation = Federation(Scaffold(), local_steps=10, lr=0.1)
    assert federation.run(100) == pytest.approx(-0.5, abs=1e-4)
    assert federation.kept[0][OWN]["w"] == pytest.approx(-1.5, abs=1e-3)
    assert federation.kept[1][OWN]["w"] == pytest.approx(1.5, abs=1e-3)
    assert federation.state[SERVER]["w"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("clients", [(0,), (1,), (0, 1)])
def test_the_servers_variate_is_the_mean_of_all_clients(clients):
    """Also where only some clients take part: the others count with the variates that they keep."""
    federation = Federation(Scaffold(), local_steps=3, lr=0.1)
    for taking_part in ((0, 1), clients, (0,), clients):
        federation.clients = taking_part
        federation.run(1)
        mean = sum(float(kept[OWN]["w"]) for kept in federation.kept.values()) / 2
        assert federation.state[SERVER]["w"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("steps", [2, 10])
@pytest.mark.parametrize(
    "train",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"optimizer": "adam", "momentum": 0.9},
        {"optimizer": "adamw", "momentum": 0.9},
        {"optimizer": "lars", "momentum": 0.9},
        {"schedule": {"kind": "constant", "warm_up": 0.5}},
        {"schedule": "cosine"},
        {"weight_decay": 0.1},
        {"clip_norm": 0.1},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_a_constant_gradient_is_its_own_variate_under_any_optimizer(train, steps):
    """(x - y) / (K eta) would say 1.45 after two steps with momentum .9, and 4.14 after ten."""
    federation = Federation(Scaffold(), Slope(), local_steps=steps, lr=0.01, **train)
    federation.run(1)
    assert federation.kept[0][OWN]["w"] == pytest.approx(1, abs=1e-5)


class Plane(Slope):
    """A weight of two dimensions, whose step LARS scales; its gradient is 1 everywhere."""

    def loss(self, network, batch, state, progress):
        return Loss(network.w.sum() + 0 * batch.labels.sum())


def test_a_variate_is_a_mean_gradient_where_lars_scales_the_steps():
    """Each step is .001 of the weight's length; (x - y) / (K eta) would take this for a gradient."""
    network = Point()
    network.w = torch.nn.Parameter(torch.full((2, 3), 5.0))
    settings = {"optimizer": "lars", "momentum": 0.9, "local_steps": 4, "lr": 0.1}
    recipe = Federation(Scaffold(), Plane(), **settings).recipe
    when = {"seed": 0, "server_round": 1, "client": 0, "phase_round": 1, "phase_rounds": 100}
    _, state = learn(network, shard_of(0), recipe, {}, **when)
    assert torch.allclose(state[OWN]["w"], torch.ones(2, 3))
    assert 0 < 5 - float(network.w.detach().mean()) < 0.01


def test_scaffolds_correction_comes_before_clipping():
    """The limit holds for the step that is taken: at most .1 a step, whatever the variates say."""
    federation = Federation(Scaffold(), local_steps=1, lr=1.0, clip_norm=0.1)
    before = 0.0
    for _ in range(5):
        federation.run(1)
        for trained in federation.trained.values():
            assert abs(trained - before) <= 0.1 + 1e-6
        before = float(federation.arrays["w"])


def test_the_servers_step_length_scales_scaffolds_mean():
    whole, half = (
        Federation(Scaffold(server_lr=lr), local_steps=2, lr=0.1).run(1) for lr in (1.0, 0.5)
    )
    assert half == pytest.approx(whole / 2)


def test_feddyn_finds_the_optimum():
    """The clients' linear terms are their gradients there, and the server's correction is 0."""
    federation = Federation(FedDyn(alpha=1.0), **EXACT)
    assert federation.run(60) == pytest.approx(-0.5, abs=1e-4)
    assert federation.kept[0][GRADIENT]["w"] == pytest.approx(-1.5, abs=1e-3)
    assert federation.kept[1][GRADIENT]["w"] == pytest.approx(1.5, abs=1e-3)
    (drift,) = (v for k, v in federation.strategy.kept().items() if k.endswith("w"))
    assert drift == pytest.approx(0, abs=1e-3)


def test_feddyns_first_round_by_hand():
    """alpha 1 from 0, solved exactly: w1 = 1/2, w2 = -3/4; h = -w; H = -mean; the model is mean w - H = 2 mean w."""
    federation = Federation(FedDyn(alpha=1.0), **EXACT)
    assert federation.run(1) == pytest.approx(2 * (0.5 - 0.75) / 2, abs=1e-5)
    assert federation.kept[0][GRADIENT]["w"] == pytest.approx(-0.5, abs=1e-5)
    assert federation.kept[1][GRADIENT]["w"] == pytest.approx(0.75, abs=1e-5)


def test_feddyn_counts_the_clients_that_did_not_take_part():
    """One client of two: H moves by half of its step only."""
    federation = Federation(FedDyn(alpha=1.0), clients=(0,), **EXACT)
    assert federation.run(1) == pytest.approx(0.5 + 0.5 / 2, abs=1e-5)


@pytest.mark.parametrize("section", [FedProx(mu=1.0), Scaffold(), FedDyn(alpha=1.0)], ids=str)
def test_buffers_are_averaged_and_never_corrected(section):
    """Both clients count four steps a round; with a correction, the count is still the plain mean."""
    federation = Federation(section, local_steps=4, lr=0.1)
    federation.run(3)
    assert federation.arrays["seen"] == 12
    for slots in (federation.kept[0], federation.kept[1], federation.state):
        assert all("seen" not in arrays for arrays in slots.values())


class Beside(Quadratic):
    """Train a private weight by an optimizer of its own, beside the shared one."""

    def is_shared(self, key):
        return key != "own"

    def optimizers(self, network, make):
        return {"main": make(iter([network.w])), "own": make(iter([network.own]))}

    def step(self, learner, batch):
        loss = super().step(learner, batch)
        learner.descend((learner.network.own - 1) ** 2 / 2, "own")
        return loss


@pytest.mark.parametrize("section", [FedProx(mu=1.0), Scaffold(), FedDyn(alpha=1.0)], ids=str)
def test_an_optimizer_of_private_weights_alone_is_not_corrected(section):
    """Two steps of .1 from 0 bring the private weight to .19, and the shared weight is where it is without it."""
    network = Point()
    network.own = torch.nn.Parameter(torch.zeros(()))
    recipe = Federation(section, Beside(), local_steps=2, lr=0.1).recipe
    when = {"seed": 0, "server_round": 1, "client": 0, "phase_round": 1, "phase_rounds": 100}
    learn(network, shard_of(0), recipe, {}, **when)
    assert network.own.item() == pytest.approx(0.19)
    plain = Federation(section, clients=(0,), local_steps=2, lr=0.1)
    plain.run(1)
    assert network.w.item() == plain.trained[0]


def test_feddyn_begins_anew_with_a_phase():
    """Its clients' h_i begin at 0 in a phase, so H must: if H went on, the phase would settle beside the optimum."""
    phases = [{"rounds": 3}, {"rounds": 40, "train": {"lr": 0.29}}]
    outcome = serve(on_digits({"kind": "feddyn", "alpha": 1.0}, phases=phases), two_clients(), [])
    assert outcome.model.arrays["w"] == pytest.approx(-0.5, abs=1e-3)


def test_the_variates_are_merged_over_the_population():
    (own, server) = Scaffold().correction().slots()
    assert (own.scope, server.scope) == ("client", "server")
    assert server.merge == Merge("uniform", over="population")


@pytest.mark.parametrize("strategy", [FedProx(mu=5.0), Scaffold(), FedDyn(alpha=1.0)])
def test_half_precision_with_a_scaled_loss_is_corrected_by_unscaled_gradients(strategy):
    """fp16 scales the loss by 1,024: a correction that saw scaled gradients would vanish beside them."""
    half = Federation(strategy, local_steps=3, lr=0.05, precision="fp16").run(3)
    full = Federation(strategy, local_steps=3, lr=0.05).run(3)
    assert half == pytest.approx(full, rel=1e-3)
    # Without the correction, the model is elsewhere by far more than this.
    assert Federation(FedAvg(), local_steps=3, lr=0.05).run(3) != pytest.approx(full, rel=1e-2)


def test_a_step_that_overflows_is_not_noted():
    """Its gradient is not finite, its step is not taken, and the variate is the mean of the others."""

    class Overflows(Slope):
        def loss(self, network, batch, state, progress):
            loss = super().loss(network, batch, state, progress)
            if progress.step == 0:
                loss = type(loss)(loss.total * torch.tensor(float("inf")))
            return loss

    federation = Federation(Scaffold(), Overflows(), local_steps=3, lr=0.01, precision="fp16")
    federation.run(1)
    assert federation.kept[0][OWN]["w"] == pytest.approx(1, abs=1e-5)
