"""Fused clients in a run: same bits on any number of workers, close to single clients, and reported if impossible."""

import logging

import numpy as np
import pytest

from fedssl.app.simulation import Engine
from tests import resuming
from tests.helpers import small_experiment
from tests.resuming import Stop, Stopper

SIX = {"federation": {"sample": 6}, "rounds": 3}


@pytest.fixture(scope="module")
def workers():
    """Two workers of Ray, which take seconds to start."""
    with Engine() as machine:
        yield machine


def run(overrides=SIX, machine=None, **engine):
    if machine is not None:
        return machine.run(small_experiment(**overrides, engine={"workers": 2, **engine}))
    with Engine() as machine:
        return machine.run(small_experiment(**overrides, engine=engine))


def bits(outcome):
    return b"".join(array.tobytes() for array in outcome.model.arrays.values())


@pytest.mark.parametrize("fuse", ["auto", "on", 2])
def test_fused_clients_give_the_same_bits_on_any_number_of_workers(fuse, workers):
    serial = run(kind="serial", fuse=fuse)
    assert bits(serial) == bits(run(machine=workers, kind="ray", fuse=fuse))
    alone = run(kind="serial")
    assert bits(serial) != bits(alone)
    for name, array in alone.model.arrays.items():
        np.testing.assert_allclose(serial.model.arrays[name], array, rtol=1e-3, atol=1e-5)
    assert [row.clients_ok for row in serial.rounds] == [6] * 3


STATEFUL = {
    "freematch": {"method": {"kind": "freematch"}},
    "a teacher at the clients": {"method": {"kind": "mean_teacher", "teacher_scope": "client"}},
    "scaffold": {"strategy": "scaffold", "method": {"kind": "softmatch"}},
    "feddyn": {"strategy": {"kind": "feddyn", "alpha": 1.0}},
    "fedprox": {"strategy": {"kind": "fedprox", "mu": 1.0}, "model": {"norm": "batch"}},
}


@pytest.mark.parametrize("overrides", STATEFUL.values(), ids=STATEFUL)
def test_fused_clients_keep_and_merge_their_state_on_every_engine_and_resumed(
    overrides, workers, tmp_path
):
    """Every client of six is asked in each of three rounds, so each begins with what it kept."""
    overrides = {**SIX, "rounds": 3, **overrides}
    serial = run(overrides, kind="serial", fuse="auto")
    assert bits(serial) == bits(run(overrides, workers, kind="ray", fuse="auto"))
    alone = run(overrides, kind="serial")
    assert bits(serial) != bits(alone)
    for name, array in alone.model.arrays.items():
        np.testing.assert_allclose(serial.model.arrays[name], array, rtol=2e-2, atol=2e-4)
    experiment = small_experiment(**overrides, engine={"kind": "serial", "fuse": "auto"})
    with pytest.raises(Stop):
        resuming.run(experiment, tmp_path / "run", Stopper(2))
    resuming.go_on(experiment, tmp_path / "run")
    resuming.run(experiment, tmp_path / "whole")
    assert resuming.bits(tmp_path / "run") == resuming.bits(tmp_path / "whole")


@pytest.mark.parametrize(
    ("overrides", "is_fused"),
    [
        ({}, True),
        ({"federation": {"sample": 3}}, False),
        ({"model": {"widths": [64, 128]}}, False),
        ({"train": {"local_steps": 60}}, False),
        ({"strategy": "flwr:FedMedian"}, False),
        # Most clients have no label, and so nothing to do: they are not small, they are idle.
        (
            {
                "method": "supervised",
                "model": {"widths": [64, 128], "hidden": 2048},
                "federation": {"sample": 6, "labels": {"kind": "some_clients"}},
            },
            False,
        ),
    ],
)
def test_small_clients_are_fused_unless_the_engine_says_off(overrides, is_fused, caplog):
    """The rule looks at sizes: the cohort, the network, and the steps of a round."""
    overrides = {**SIX, "rounds": 1, **overrides}
    with caplog.at_level(logging.INFO, "fedssl"):
        found = run(overrides, fuse="auto")
        assert ("small clients are trained together" in caplog.text) == is_fused
        assert (bits(found) != bits(run(overrides, fuse="off"))) == is_fused
    assert "engine.fuse: " not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"strategy": "flwr:FedMedian"}, "'flwr:FedMedian' needs the reply of each client"),
        ({"strategy": "rscfed"}, "strategy 'rscfed' needs the reply of each client"),
        ({"method": "vat"}, "one by one: "),
        ({"method": "byol"}, "has a hook of its own"),
        ({"train": {"keep_momentum": True}}, "state that is not fused: optimizer.sgd"),
    ],
)
def test_who_cannot_be_fused_is_trained_alone_and_it_is_said_why(overrides, reason, caplog):
    outcomes = []
    for fuse in ("off", "on"):
        experiment = small_experiment(**overrides, engine={"kind": "serial", "fuse": fuse})
        with Engine() as machine, caplog.at_level(logging.WARNING, "fedssl"):
            outcomes.append(machine.run(experiment))
        assert caplog.text.count("engine.fuse") == (fuse == "on")
    assert reason in caplog.text
    assert bits(outcomes[0]) == bits(outcomes[1])
