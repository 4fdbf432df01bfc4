"""The number of runs side by side: limited by cores, GPUs and memory, and never with fewer busy cores than one run."""

import pytest

from fedssl.app.sweep.packing import pack
from fedssl.core.errors import InputError
from fedssl.engine.plan import Node
from tests.helpers import small_experiment


@pytest.fixture
def machine(monkeypatch):
    """Return a function that says what this machine has."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def has(*what: float) -> None:
        monkeypatch.setattr("fedssl.app.simulation.this_machine", lambda: Node(*what))

    return has


def left(count, **engine):
    return [small_experiment(seed=seed, engine={"kind": "ray", **engine}) for seed in range(count)]


@pytest.mark.parametrize(
    ("runs", "jobs", "expected"),
    [(9, None, 8), (3, None, 3), (2, None, 1), (1, None, 1), (9, 1, 1), (9, 5, 5), (2, 5, 2)],
)
def test_runs_share_the_cores_unless_one_alone_would_use_more_of_them(
    machine, runs, jobs, expected
):
    machine(8)  # three clients a round, so that a run has use for three workers
    packing = pack(left(runs), jobs)
    assert packing.jobs == expected
    assert packing.gpus == (None,) * expected


def test_a_run_with_company_is_serial_and_one_alone_has_its_own_engine(machine):
    machine(8)
    experiment = left(1)[0]
    assert pack(left(9)).as_run(experiment).engine.kind == "serial"
    assert pack(left(1)).as_run(experiment) == experiment
    assert pack(left(2, kind="serial")).jobs == 2


def test_more_runs_than_cores_are_allowed_and_said(machine):
    machine(2)
    assert "4 workers share 2 cores" in pack(left(9), 4).warning
    assert pack(left(9)).warning == ""


def test_each_sees_its_share_of_the_gpus(machine, monkeypatch):
    machine(8, 2)
    assert pack(left(9)).gpus == ("0", "1")
    assert pack(left(9), 4).gpus == ("0", "0", "1", "1")
    assert pack(left(9, gpus_per_worker=0.25)).gpus == ("0",) * 4 + ("1",) * 4
    assert pack(left(9, gpus_per_worker=0)).gpus == (None,) * 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert pack(left(9)).gpus == ("3", "5")


def test_memory_limits_them(machine):
    machine(8, 0, 5_000e6)
    assert pack(left(9, memory_per_worker=1_000.0)).jobs == 5
    with pytest.raises(InputError, match="6 workers x 1,000 MB"):
        pack(left(9, memory_per_worker=1_000.0), 6)


def test_what_fits_least_decides(machine):
    machine(8)
    assert pack([*left(9), *left(1, workers=4)]).jobs == 4


@pytest.mark.parametrize("engine", [{"kind": "flower"}, {"address": "somewhere:1"}])
def test_engines_that_are_not_this_machines_run_one_at_a_time(machine, engine):
    machine(8)
    assert pack(left(9, **engine)).jobs == 1
    with pytest.raises(InputError, match="--jobs: is 2"):
        pack(left(9, **engine), 2)
