"""`engine.kind = "auto"`: the engine follows from sizes and from the room on the machine, and changes no bit."""

import importlib.util

import pytest
import torch

from fedssl.app import simulation
from fedssl.app.engine_choice import choose_engine, estimate_seconds
from fedssl.app.simulation import Engine
from fedssl.clients.local_data import simulated_federation
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.experiment import Experiment
from fedssl.models.base import MODELS
from fedssl.models.cost import multiplications
from tests.helpers import fedssl, in_a_process, sha256, small_experiment, small_toml

OPEN = {"kind": "auto"}


def chosen(workers, *, engine=OPEN, **settings):
    experiment = small_experiment(engine=OPEN | engine, **settings)
    choice = choose_engine(experiment, simulated_federation(experiment), lambda: workers)
    return choice.experiment.engine.kind, choice.reason


def test_a_short_run_is_serial_and_a_long_run_has_workers():
    kind, reason = chosen(2, rounds=1)
    assert kind == "serial"
    assert "2 workers would save" in reason
    assert "but take 5 s to start" in reason
    kind, reason = chosen(2, rounds=100_000)
    assert kind == "ray"
    assert "and take 5 s to start" in reason


@pytest.mark.parametrize("kind", ["serial", "ray", "flower"])
def test_an_engine_that_the_file_names_is_kept(kind):
    assert chosen(8, rounds=100_000, engine={"kind": kind}) == (kind, "")


@pytest.mark.parametrize(
    "setting", [{"workers": 2}, {"address": "auto"}, {"cpu_workers": 1}, {"memory_per_worker": 1.0}]
)
def test_who_asks_for_workers_gets_them(setting):
    assert chosen(2, rounds=1, engine=setting) == ("ray", f"engine.{next(iter(setting))} is set")


def test_a_clusters_workers_are_not_counted_here():
    """The GPUs that the file asks for may be on the cluster, whatever this machine has."""
    experiment = small_experiment(engine=OPEN | {"address": "auto", "gpus_per_worker": 64})
    assert simulation.choice_here(experiment).experiment.engine.kind == "ray"


def test_one_worker_is_no_help(monkeypatch):
    assert chosen(1, rounds=100_000) == ("serial", "there is room for one worker")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert chosen(2, rounds=100_000) == ("serial", "ray is not installed")


def test_the_estimate_follows_rounds_clients_steps_and_the_network():
    def seconds(**settings):
        experiment = small_experiment(**settings)
        return estimate_seconds(experiment, simulated_federation(experiment))

    base = seconds(rounds=10, train={"local_steps": 4})
    assert seconds(rounds=20, train={"local_steps": 4}) == pytest.approx(2 * base)
    assert seconds(rounds=10, train={"local_steps": 8}) == pytest.approx(2 * base)
    phases = [{"rounds": 5}, {"rounds": 15}]
    assert seconds(rounds=None, phases=phases, train={"local_steps": 4}) == pytest.approx(2 * base)
    all_clients = {"sample": 6, "clients": 6}
    one_client = {"sample": 1, "clients": 6}
    train = {"local_steps": 4}
    assert seconds(rounds=10, federation=all_clients, train=train) == pytest.approx(
        6 * seconds(rounds=10, federation=one_client, train=train)
    )
    assert seconds(rounds=10, train=train, model={"kind": "wrn"}) > 10 * base


@pytest.mark.parametrize(("kind", "count"), [("cnn", 347_392), ("wrn", 13_379_840)])
def test_multiplications_are_those_that_torch_counts(kind, count):
    """The numbers are half of those of `torch.utils.flop_counter`, which takes a second to load."""
    from torch.utils.flop_counter import FlopCounterMode

    network = MODELS.build({"kind": kind}).build((1, 8, 8), 10)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 1, 8, 8))
    assert multiplications(network, (1, 8, 8)) == counter.get_total_flops() // 2 == count
    assert network.training
    assert not any(m._forward_hooks for m in network.modules())


def test_a_run_says_what_it_chose_and_has_the_same_bits(tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=2, engine=OPEN)
    for out, engine in (("auto", ()), ("serial", ("--engine", "serial"))):
        done = in_a_process("run", file, "--plain", "--out", tmp_path / out, *engine)
        assert ("engine serial, because" in done.stderr) == (out == "auto")
    one, other = (sha256(tmp_path / run / "model.safetensors") for run in ("auto", "serial"))
    assert one == other
    assert 'kind = "auto"' in (tmp_path / "auto" / "experiment.toml").read_text()
    assert "because" in fedssl("validate", file).output


def test_workers_that_run_already_are_used(monkeypatch):
    """A short run after a long one does not end the workers, which the next long run would start again."""
    made = []

    def make(experiment: Experiment):
        made.append(experiment.engine.kind)
        return SerialGrid(simulation.Apps(simulation.app), experiment.federation.clients, "cpu")

    monkeypatch.setattr(simulation, "_make_grid", make)
    monkeypatch.setattr(simulation, "plan_workers_here", lambda experiment: [1, 2])
    estimates = iter([1000.0, 1.0, 1000.0])
    monkeypatch.setattr("fedssl.app.engine_choice.estimate_seconds", lambda *_: next(estimates))
    with Engine() as engine:
        for _ in range(3):
            engine.run(small_experiment(rounds=1, engine=OPEN))
    assert made == ["ray"]
