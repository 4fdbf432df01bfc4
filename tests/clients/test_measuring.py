"""A client's memory is measured in a process of its own, and the number of workers follows from it."""

import pytest

from fedssl.app.simulation import plan_workers_here
from fedssl.clients.measuring import measured_bytes
from fedssl.core.errors import InputError
from fedssl.core.machine import MB
from tests.helpers import small_experiment


def test_a_larger_model_of_any_phase_takes_more_and_workers_are_planned_by_it():
    """A hidden layer of 16 million weights more: at least weights and gradients of single precision, 128 MB."""
    student = {"rounds": 1, "model": {"hidden": 250_000}, "method": {"kind": "distill"}}
    phases = [{"rounds": 1, "method": {"kind": "supervised"}}, student]
    small, large = (
        measured_bytes(experiment.plans, "cpu")
        for experiment in (small_experiment(), small_experiment(rounds=None, phases=phases))
    )
    assert small > 100 * MB
    assert large - small > 128 * MB
    engine = {"kind": "ray", "memory_per_worker": "measured"}
    plan = plan_workers_here(small_experiment(engine=engine))
    assert plan.memory == pytest.approx(small, rel=0.2)


def test_a_client_that_cannot_be_trained_is_said_and_no_worker_started():
    with pytest.raises(InputError, match=r"memory_per_worker: could not be measured(.|\n)*broken"):
        measured_bytes(small_experiment(method="tests.plugins.raising").plans, "cpu")
