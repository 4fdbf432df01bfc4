"""Fused clients in a run: same bits on any number of workers, close to single clients, and reported if impossible."""

import logging

import numpy as np
import pytest

from fedssl.app.simulation import Engine
from tests.helpers import small_experiment

SIX = {"federation": {"sample": 6}, "rounds": 3}


def run(overrides=SIX, **engine):
    with Engine() as machine:
        return machine.run(small_experiment(**overrides, engine=engine))


def bits(outcome):
    return b"".join(array.tobytes() for array in outcome.model.arrays.values())


@pytest.mark.parametrize("fuse", ["auto", "on", 2])
def test_fused_clients_give_the_same_bits_on_any_number_of_workers(fuse):
    serial = run(kind="serial", fuse=fuse)
    assert bits(serial) == bits(run(kind="ray", workers=2, fuse=fuse))
    alone = run(kind="serial")
    assert bits(serial) != bits(alone)
    for name, array in alone.model.arrays.items():
        np.testing.assert_allclose(serial.model.arrays[name], array, rtol=1e-3, atol=1e-5)
    assert [row.clients_ok for row in serial.rounds] == [6] * 3


@pytest.mark.parametrize(
    ("overrides", "is_fused"),
    [
        ({}, True),
        ({"federation": {"sample": 3}}, False),
        ({"model": {"widths": [64, 128]}}, False),
        ({"train": {"local_steps": 60}}, False),
        ({"strategy": "flwr:FedMedian"}, False),
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
        ({"method": "mean_teacher"}, "one by one: "),
        ({"strategy": {"kind": "fedprox", "mu": 50.0}}, "changes the steps of its clients"),
        ({"strategy": "scaffold"}, "changes the steps of its clients"),
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
