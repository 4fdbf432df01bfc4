"""A new strategy with a client half is one file: the test writes it into an empty folder, and runs it on every engine."""

import json
import sys

import pytest

from tests.helpers import (
    fedssl,
    finished,
    in_a_process,
    refused,
    sha256,
    small_experiment,
    small_toml,
)

STRATEGY = '''
"""Elastic averaging: clients are drawn to the global model by a term, and to the mean gradient by a correction."""

from dataclasses import dataclass

import torch
from pydantic import Field

from fedssl.core.slots import Merge, Slot
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_sums import SumStrategy
from fedssl.training.correction import Correction, squared_distance


class Elastic(Strategy):
    """Average models whose clients share a running gradient."""

    pull: float = Field(0.1, ge=0, description="weight of the squared distance to the global model")

    def correction(self):
        return Pulled(self.pull)

    def build(self, cohorts):
        return Halved(cohorts)


class Halved(SumStrategy):
    """Go half of the way to the mean, and count the rounds."""

    def __init__(self, cohorts):
        super().__init__(cohorts)
        self.rounds = 0

    def after(self, server_round, arrays, aggregate):
        self.rounds += 1
        return {name: (arrays[name] + aggregate[name]) / 2 for name in arrays}

    def numbers(self):
        return {"rounds": self.rounds}


@dataclass(frozen=True)
class Pulled(Correction):
    pull: float

    def slots(self):
        return (Slot("elastic.mean", "server", Merge("uniform")), Slot("elastic.last", "client"))

    def init_slot(self, name, parameters):
        return {key: torch.zeros_like(parameter) for key, parameter in parameters.items()}

    def begin(self, learner):
        _ = learner.received

    def term(self, learner, parameters):
        return self.pull * squared_distance(parameters, learner.received)

    def correct(self, learner, parameters):
        for name, parameter in parameters.items():
            learner.state["elastic.last"][name] = parameter.grad.clone()
            parameter.grad += 0.1 * learner.state["elastic.mean"][name]

    def end(self, learner):
        learner.state["elastic.mean"] = dict(learner.state["elastic.last"])
'''


@pytest.mark.timeout(300)
def test_one_file_is_a_strategy_with_both_halves_on_every_engine(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mylab").mkdir()
    (tmp_path / "mylab" / "elastic.py").write_text(STRATEGY, encoding="utf-8")
    file = small_toml(tmp_path / "e.toml")
    settings = ["--set", "strategy.kind=mylab.elastic", "--set", "rounds=3"]
    sums = set()
    engines = (("ray", "--workers", 2), ("flower", "--workers", 1))
    for i, engine in enumerate((("serial",), *engines)):
        out = tmp_path / f"run{i}"
        arguments = ("run", file, *settings, "--engine", *engine, "--out", out)
        if engine in engines:
            in_a_process(*arguments)
        else:
            finished(fedssl(*arguments))
        sums.add(sha256(out / "model.safetensors"))
        assert ",strategy.rounds,3" in (out / "numbers.csv").read_text().replace("3.0", "3")
    assert len(sums) == 1
    out = tmp_path / "without"
    finished(fedssl("run", file, *settings, "--set", "strategy.pull=0", "--out", out))
    assert sha256(out / "model.safetensors") not in sums
    refused(
        fedssl("validate", file, "--set", "strategy.kind=fedprox", "--set", "strategy.nu=1"), "nu"
    )


def test_clients_see_a_strategy_only_if_it_has_a_client_half():
    def sent(**strategy):
        return json.loads(small_experiment(strategy=strategy).plans[0].to_client_json())

    assert "strategy" not in sent(kind="fedavg")
    assert "strategy" not in sent(kind="fedprox", mu=0.0)
    assert sent(kind="fedprox", mu=0.5)["strategy"]["mu"] == 0.5
