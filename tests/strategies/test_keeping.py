"""State that a strategy keeps between rounds: of any Flower strategy, of a user's own, and what cannot be kept."""

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from safetensors.numpy import load

from fedssl.core.arrays import as_safetensors
from fedssl.core.errors import InputError
from fedssl.exchange.census import Census, Cohorts
from fedssl.experiment.families import STRATEGIES
from fedssl.strategies.by_sums import SumStrategy
from fedssl.strategies.keeping import KeptStrategy
from tests.helpers import federation_of, small_experiment
from tests.resuming import Stop, Stopper, bits, go_on, run

FLOWERS = {
    "FedAvg": {}, "FedAvgM": {"server_momentum": 0.9, "server_learning_rate": 0.5}, "FedAdam": {"eta": 0.01},
    "FedAdagrad": {"eta": 0.01}, "FedYogi": {"eta": 0.01}, "FedMedian": {}, "FedTrimmedAvg": {},
    "QFedAvg": {"client_learning_rate": 0.1, "train_loss_key": "loss"}, "Krum": {}, "MultiKrum": {"num_nodes_to_select": 2}, "Bulyan": {},
}  # fmt: skip


@pytest.fixture
def cohorts():
    return Cohorts(Census.of_simulation(federation_of(small_experiment())), 3, 0)


@pytest.mark.parametrize("name", FLOWERS)
def test_flowers_strategies_go_on_where_they_were(name, tmp_path):
    strategy = {"kind": f"flwr:{name}", "options": FLOWERS[name]}
    experiment = small_experiment(strategy=strategy, rounds=4)
    run(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run(experiment, tmp_path / "run", Stopper(2))
    go_on(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


class Own(SumStrategy):
    """Keeps something of every kind."""

    def __init__(self, cohorts):
        super().__init__(cohorts)
        self.momentum = None
        self.count = 0

    def fill(self):
        self.momentum = {"w": np.arange(3.0), "v": [np.float32(1 / 3), (1, "two", None, True)]}
        self.tensor = torch.tensor([[1, 2]], dtype=torch.int16)
        self.best = (0.1 + 0.2, float("nan"))
        self.by_client = {3: np.zeros((0, 2), np.float16), 1: np.array(5)}
        self.count = 10**30


def test_ones_own_is_kept_without_a_word(cohorts):
    first, second = Own(cohorts), Own(cohorts)
    first.fill()
    kept = KeptStrategy(first).kept()
    KeptStrategy(second).take_up(load(as_safetensors(kept)))  # by way of a file
    for name in ("momentum", "best", "by_client", "count"):
        assert repr(getattr(second, name)) == repr(getattr(first, name))
    assert torch.equal(second.tensor, first.tensor)
    assert second.tensor.dtype == torch.int16
    first.momentum["w"] += 1
    KeptStrategy(second).take_up(kept)
    assert second.momentum["w"].tolist() == [0, 1, 2]  # a copy


def test_one_can_say_it_oneself(cohorts):
    class Counting(SumStrategy):
        stream = np.random.default_rng(0)
        calls = 0

        def kept(self):
            return {"calls": np.array(self.calls)}

        def take_up(self, state):
            self.calls = int(state["calls"])

    first, second = Counting(cohorts), Counting(cohorts)
    first.stream = np.random.default_rng(1)
    first.calls = 7
    KeptStrategy(second).take_up(KeptStrategy(first).kept())
    assert second.calls == 7


def test_what_cannot_be_kept_is_refused_when_the_run_begins(cohorts):
    own = Own(cohorts)
    own.stream = np.random.default_rng(0)
    with pytest.raises(
        InputError,
        match=r"strategy.kind: Own cannot be resumed: its attribute 'stream' holds a numpy",
    ):
        KeptStrategy(own).kept()
    own.stream = {"deep": [lambda: 0]}
    with pytest.raises(InputError, match=r"'stream' holds a builtins\.function"):
        KeptStrategy(own).kept()


class Grows(SumStrategy):
    """From its second round on it holds what nobody can keep."""

    def after(self, server_round, arrays, aggregate):
        if server_round == 2:
            self.stream = np.random.default_rng(0)
        return aggregate


def test_what_cannot_be_kept_any_more_ends_checkpoints_and_no_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(type(STRATEGIES.build({})), "build", lambda self, cohorts: Grows(cohorts))
    experiment = small_experiment(rounds=4, server={"checkpoint_every": 1})
    run(experiment, tmp_path / "whole")
    assert caplog.text.count("no further checkpoint is written: ") == 1
    assert "attribute 'stream' holds a numpy" in caplog.text
    with pytest.raises(Stop):
        run(experiment, tmp_path / "run", Stopper(3))
    found = go_on(experiment, tmp_path / "run")
    assert found.snapshot.round == 1
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")


def test_all_that_can_be_named_can_be_kept(cohorts):
    for name in FLOWERS:
        section = STRATEGIES.build({"kind": f"flwr:{name}", "options": FLOWERS[name]})
        strategy = section.build(cohorts)
        assert isinstance(strategy, FlowerStrategy)
        assert KeptStrategy(strategy).kept()
    assert KeptStrategy(STRATEGIES.build("fedavg").build(cohorts)).kept() == {}
