"""Server optimizers: steps worked out by hand, buffers that pass by, Flower's and torch's steps, and the same bits later."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict
from safetensors.numpy import load

from fedssl.clients.client_app import app
from fedssl.core.arrays import as_safetensors
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.buffers import without_buffers
from fedssl.exchange.census import Census, Cohorts
from fedssl.experiment.families import STRATEGIES
from fedssl.server.app import serve
from fedssl.strategies.keeping import KeptStrategy
from fedssl.strategies.server_optimizer import OptimizingStrategy
from tests.helpers import small_experiment
from tests.resuming import Stop, Stopper, bits, go_on, run

KINDS = ["fedadagrad", "fedadam", "fedavgm", "fedyogi"]


def built(kind, clients=4, **settings):
    return STRATEGIES.build({"kind": kind, **settings}).build(
        Cohorts(Census.unknown(clients), 2, seed=0)
    )


def step(strategy, old, mean, buffers=()):
    """Return the next global arrays where two clients of weight 1 have this mean."""
    arrays = {name: np.asarray(array) for name, array in old.items()}
    sums = {name: np.asarray(2.0 * np.asarray(array)) for name, array in mean.items()}
    return strategy.conclude(1, arrays, sums, 2.0, buffers)


def path(strategy, old, means):
    """Return where one number goes, round by round."""
    places = []
    for mean in means:
        old = step(strategy, {"w": np.float64(old)}, {"w": mean})["w"]
        places.append(float(old))
    return places


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        # g = 1 - .5, v = .5, w = 1 - .5; then g = .5 - .25, v = .5 * .5 + .25, w = .5 - .5.
        ({"momentum": 0.5}, [0.5, 0.0]),
        # w = 1 - .5 * .5; then g = .75 - .25, v = .5 * .5 + .5, w = .75 - .5 * .75.
        ({"momentum": 0.5, "server_lr": 0.5}, [0.75, 0.375]),
        ({"momentum": 0}, [0.5, 0.25]),
    ],
)
def test_momentum_by_hand(settings, places):
    assert path(built("fedavgm", **settings), 1.0, [0.5, 0.25]) == places


@pytest.mark.parametrize(
    ("kind", "settings", "means", "places"),
    [
        # v = 9 + 4^2 = 25, m = 2: 2 / (5 + 3); then the update is 12, v = 25 + 144 = 169, m = 7: 7 / (13 + 3).
        ("fedadagrad", {"beta_1": 0.5}, [4, 12.25], [0.25, 0.6875]),
        # The paper has no momentum here: 4 / (5 + 3); then the update is 12: 12 / (13 + 3).
        ("fedadagrad", {}, [4, 12.5], [0.5, 1.25]),
        # v = .75 * 9 + .25 * 169 = 49, m = 6.5: 6.5 / (7 + 3); then the update is 23, v = 169, m = 14.75: 14.75 / 16.
        ("fedadam", {"beta_1": 0.5, "beta_2": 0.75}, [13, 23.65], [0.65, 0.65 + 14.75 / 16]),
        # 9 < 8^2, so v = 9 + .25 * 64 = 25, m = 4: 4 / (5 + 3);
        # then the update is 2.8 and 25 > 2.8^2, so v = 25 - .25 * 7.84 = 4.8^2, m = 3.4: 3.4 / (4.8 + 3).
        ("fedyogi", {"beta_1": 0.5, "beta_2": 0.75}, [8, 3.3], [0.5, 0.5 + 3.4 / 7.8]),
    ],
)
def test_two_adaptive_steps_by_hand(kind, settings, means, places):
    strategy = built(kind, server_lr=1, tau=3, **settings)
    assert path(strategy, 0.0, means) == pytest.approx(places, rel=1e-12)
    halved = built(kind, server_lr=0.5, tau=3, **settings)
    assert path(halved, 0.0, means[:1]) == pytest.approx([places[0] / 2], rel=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_moves_a_buffer(kind):
    """As a parameter, a variance of 1 whose clients say .2 twice would go to -.2 under a momentum of .5."""
    strategy = built(kind, **({"momentum": 0.5} if kind == "fedavgm" else {}))
    arrays, mean = {"w": 1.0, "var": 1.0, "steps": 7}, {"w": 0.2, "var": 0.2, "steps": 9}
    parameter = []
    for _ in range(2):
        arrays = step(strategy, arrays, mean, buffers=("var", "steps"))
        assert arrays["var"] == 0.2
        assert arrays["steps"] == 9
        assert arrays["steps"].dtype.kind == "i"
        parameter.append(arrays["w"])
    assert set(strategy.states) == {"w"}
    if kind == "fedavgm":
        assert parameter == pytest.approx([0.2, -0.2])


def test_without_momentum_it_is_federated_averaging_but_for_rounding():
    """Single precision has 24 bits, double has 53: w + (mean - w) is exact unless the mean is 2^29 times smaller."""
    draw = np.random.default_rng(0)
    old, mean = (
        (draw.standard_normal(10**5) * 10.0 ** draw.uniform(-12, 3, 10**5)).astype(np.float32)
        for _ in range(2)
    )
    new = step(built("fedavgm", momentum=0), {"w": old}, {"w": mean})["w"]
    assert new.dtype == np.float32
    comparable = np.abs(mean) > np.abs(old) * 2.0**-28
    assert 0.5 < comparable.mean() < 0.95
    assert (new == mean)[comparable].all()
    assert (np.abs(new - mean)[~comparable] <= np.abs(old)[~comparable] * 2.0**-53).all()


def test_without_momentum_a_run_is_that_of_federated_averaging():
    """The server trains too and normalizations have statistics: the step goes out from the weights that were sent."""
    sections = {
        "federation": {"labels": {"kind": "at_server", "per_class": 4}},
        "model": {"norm": "batch"},
    }
    first, second = (
        serve(small_experiment(strategy=s, **sections), SerialGrid(Apps(app), 6), []).model.arrays
        for s in ("fedavg", {"kind": "fedavgm", "momentum": 0})
    )
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array)


def test_momentum_is_that_of_torch():
    """SemiFL's server is torch's SGD with a rate of 1, whose gradient is the old parameter minus the mean."""
    draw = np.random.default_rng(1)
    strategy, old = built("fedavgm", momentum=0.5), draw.standard_normal(20)
    weight = torch.tensor(old)
    optimizer = torch.optim.SGD([weight], lr=1, momentum=0.5)
    for _ in range(5):
        mean = weight.numpy() + 0.1 * draw.standard_normal(20)
        weight.grad = weight - torch.tensor(mean)
        optimizer.step()
        old = step(strategy, {"w": old}, {"w": mean})["w"]
        np.testing.assert_allclose(old, weight.numpy(), rtol=1e-12)


FLOWERS = {
    "fedadagrad": ("FedAdagrad", {"eta": 0.1, "tau": 0.01}),
    "fedadam": ("FedAdam", {"eta": 0.1, "tau": 0.01}),
    "fedavgm": ("FedAvgM", {"server_learning_rate": 0.1, "server_momentum": 0.9}),
    "fedyogi": ("FedYogi", {"eta": 0.1, "tau": 0.01}),
}
OURS = {kind: {"server_lr": 0.1, "tau": 0.01} for kind in KINDS} | {"fedavgm": {"server_lr": 0.1}}


def flowers(kind):
    name, options = FLOWERS[kind]
    return built(f"flwr:{name}", options=options)


def answered(strategy, server_round, arrays, values):
    """Return the next arrays of a round in which the i-th client of the cohort replies the i-th arrays."""
    config, grid = protocol.request_config("{}", 0, 1, 1), SerialGrid(Apps(app), 4)
    record = protocol.to_record(arrays)
    replies = []
    for message, reply in zip(
        strategy.configure_train(server_round, record, config, grid), values, strict=True
    ):
        counts = {"num-examples": 1, "num-labeled": 1, "num-confident": 1.0, "loss": 1.0}
        content = RecordDict({"arrays": protocol.to_record(reply), "metrics": MetricRecord(counts)})
        replies.append(Message(content=content, reply_to=message))
    new, _ = strategy.aggregate_train(server_round, replies)
    return protocol.from_record(new)


def without_bias_correction(inner, server_round):
    """Divide Flower's rate by what it will be multiplied with: its exponent is the round, from 1, plus 1 (flwr 1.41)."""
    beyond = server_round + 1
    inner.eta = 0.1 * (1 - inner.beta_1**beyond) / math.sqrt(1 - inner.beta_2**beyond)


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_flowers_with_the_papers_beginning_and_no_bias_correction(kind):
    """Flower starts the second moment at 0 and corrects Adam's bias; with both as in the paper, the steps agree."""
    draw = np.random.default_rng(2)
    ours, theirs = built(kind, **OURS[kind]), flowers(kind)
    ours.buffers = ("var",)
    arrays = other = {
        "w": np.ones((3, 4), np.float32),
        "b": np.zeros(5, np.float32),
        "var": np.ones(5, np.float32),
    }
    if kind != "fedavgm":
        theirs._inner.v_t = {k: np.full_like(array, 0.01**2) for k, array in arrays.items()}
    for server_round in range(1, 6):
        if kind == "fedadam":
            without_bias_correction(theirs._inner, server_round)
        replies = [
            {k: a + draw.normal(0, 0.05, a.shape).astype(a.dtype) for k, a in arrays.items()}
            for _ in range(2)
        ]
        arrays = answered(ours, server_round, arrays, replies)
        other = answered(theirs, server_round, other, replies)
        np.testing.assert_allclose(arrays["var"], np.mean([r["var"] for r in replies], 0), 1e-6)
        for name, array in without_buffers(arrays, ours.buffers).items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, other[name], rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "ours", "flower"),
    [
        # Shares of the rate in the first step, whose update is tau. Ours: v = 2 tau^2; Flower's: v = tau^2.
        ("fedadagrad", 1 / (math.sqrt(2) + 1), 1 / 2),
        # m = .1 tau. Ours: v = tau^2; Flower's: v = .01 tau^2, and the correction sqrt(1 - .99^2) / (1 - .9^2).
        ("fedadam", 0.1 / 2, 0.1 / 1.1 * math.sqrt(0.0199) / 0.19),
        ("fedyogi", 0.1 / 2, 0.1 / 1.1),
    ],
)
def test_flowers_first_step_is_longer(kind, ours, flower):
    arrays, reply = {"w": np.zeros(1)}, [{"w": np.full(1, 0.01)}] * 2
    assert answered(built(kind, **OURS[kind]), 1, arrays, reply)["w"] == pytest.approx(0.1 * ours)
    assert answered(flowers(kind), 1, arrays, reply)["w"] == pytest.approx(0.1 * flower)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_bits(kind, tmp_path):
    experiment = small_experiment(strategy=kind, model={"norm": "batch"}, rounds=4)
    run(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "run", Stopper(2))
    go_on(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_kept_in_double_precision_and_to_the_bit(kind):
    arrays = {"w": np.ones(3, np.float32), "scale": np.float32(2)}
    mean = {"w": np.full(3, 1 / 3), "scale": 0.3}
    whole, resumed = built(kind), built(kind)
    arrays = step(whole, arrays, mean)
    assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
    kept = KeptStrategy(whole).kept()
    numbers = [array for array in kept.values() if array.dtype.kind == "f"]
    assert len(numbers) == 2 * len(whole.states["w"])
    assert {array.dtype for array in numbers} == {np.dtype(np.float64)}
    KeptStrategy(resumed).take_up(load(as_safetensors(kept)))  # by way of a file
    for _ in range(2):
        arrays, again = step(whole, arrays, mean), step(resumed, arrays, mean)
        assert all(again[name].tobytes() == array.tobytes() for name, array in arrays.items())


def test_state_follows_the_parameters_by_name_and_shape():
    """With a momentum of .5, a parameter that goes from 0 to 1 and stays with its clients goes on to 1.5."""
    strategy = built("fedavgm", momentum=0.5)
    names = ("stays", "grows", "goes")
    step(strategy, dict.fromkeys(names, np.zeros(1)), dict.fromkeys(names, np.ones(1)))
    new = {"stays": np.ones(1), "grows": np.ones(2), "comes": np.ones(1)}
    moved = step(strategy, new, new)
    assert {name: array.tolist() for name, array in moved.items()} == {
        "stays": [1.5], "grows": [1, 1], "comes": [1],
    }  # fmt: skip
    assert strategy.states.keys() == new.keys()
    back = {"goes": np.ones(1)}
    assert step(strategy, back, back)["goes"] == 1


def test_a_phase_with_a_larger_network_goes_on_with_what_is_the_same(monkeypatch):
    """ReMixMatch trains a head more, for rotations. Its state begins anew; the others' goes on."""
    seen = []

    def noting(self, server_round, arrays, aggregate, after=OptimizingStrategy.after):
        before = self.states
        moved = after(self, server_round, arrays, aggregate)
        seen.append((set(before), set(self.states)))
        return moved

    monkeypatch.setattr(OptimizingStrategy, "after", noting)
    methods = [{"kind": "supervised"}, {"kind": "remixmatch", "num_strong": 1}]
    phases = [{"rounds": 1, "method": method} for method in methods]
    experiment = small_experiment(rounds=None, strategy="fedadam", phases=phases)
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    (none, small), (same, large) = seen
    assert none == set()
    assert same == small
    assert large - small
    assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_in_which_no_reply_counts_is_no_step(kind):
    strategy = built(kind)
    arrays = step(strategy, {"w": np.zeros(2)}, {"w": np.ones(2)})
    before = strategy.states
    assert strategy.conclude(2, arrays, None, 0.0) is arrays
    assert strategy.states is before


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_is_given_is_not_written_to(kind):
    strategy, old, mean = built(kind), np.zeros(2), np.ones(2)
    for array in (old, mean):
        array.flags.writeable = False
    for server_round in (1, 2):
        states = {n: a.copy() for n, a in strategy.states.get("w", {}).items()}
        last = strategy.states.get("w", {})
        strategy.after(server_round, {"w": old}, {"w": mean})
        assert all((last[name] == array).all() for name, array in states.items())


def test_the_mean_is_that_of_federated_averaging():
    """Two of four clients move from 0 to 6; over the population, the update is 3."""
    strategy = built("fedavgm", averaging="population", weight="uniform", server_lr=0.5)
    assert step(strategy, {"w": 0.0}, {"w": 6.0})["w"] == 1.5
    census = Census.unknown(4)
    census.num_labeled[:] = 0
    for kind in KINDS:
        with pytest.raises(InputError, match=r"strategy.weight: is 'labeled', but no client"):
            STRATEGIES.build({"kind": kind, "weight": "labeled"}).build(Cohorts(census, 2, 0))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "fedavgm", "momentum": 1}, r"strategy.momentum: is 1"),
        ({"kind": "fedavgm", "momentum": -0.1}, r"strategy.momentum: is -0.1"),
        ({"kind": "fedavgm", "server_lr": 0}, r"strategy.server_lr: is 0"),
        ({"kind": "fedavgm", "beta_1": 0.5}, r"strategy.beta_1: unknown key"),
        ({"kind": "fedadam", "tau": 0}, r"strategy.tau: is 0"),
        ({"kind": "fedadam", "beta_1": 1}, r"strategy.beta_1: is 1"),
        ({"kind": "fedyogi", "beta_2": 1}, r"strategy.beta_2: is 1"),
        ({"kind": "fedadagrad", "beta_2": 0.5}, r"strategy.beta_2: unknown key"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(section, message):
    with pytest.raises(InputError, match=message):
        STRATEGIES.build(section)
