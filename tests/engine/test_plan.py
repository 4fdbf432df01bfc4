"""How many workers and what each is given: arithmetic, with the refusals."""

import pytest

from fedssl.engine.plan import WorkerPlan, available_cores, plan_workers
from fedssl.errors import InputError


@pytest.mark.parametrize(
    ("workers", "share", "cpus", "gpus", "plan"),
    [
        ("auto", None, 2, 0, WorkerPlan(2, 1.0, 0.0)),
        ("auto", None, 16, 4, WorkerPlan(4, 1.0, 1.0)),
        ("auto", 0.5, 16, 4, WorkerPlan(8, 1.0, 0.5)),
        ("auto", 0.3, 16, 2, WorkerPlan(6, 1.0, 0.3)),
        ("auto", 2, 16, 4, WorkerPlan(2, 1.0, 2)),
        ("auto", 0, 8, 4, WorkerPlan(8, 1.0, 0.0)),
        ("auto", 0.1, 4, 2, WorkerPlan(4, 1.0, 0.1)),
        (3, None, 2, 0, WorkerPlan(3, 0.6666, 0.0)),
        (1, None, 2, 0, WorkerPlan(1, 1.0, 0.0)),
        (8, None, 16, 2, WorkerPlan(8, 1.0, 0.25)),
        (2, 0.5, 16, 1, WorkerPlan(2, 1.0, 0.5)),
    ],
)
def test_plans(workers, share, cpus, gpus, plan):
    assert plan_workers(workers, share, cpus, gpus) == plan


def test_auto_takes_no_more_than_are_of_use():
    assert plan_workers("auto", None, 64, 0, most=5).workers == 5
    assert plan_workers("auto", None, 64, 8, most=5) == WorkerPlan(5, 1.0, 1.0)
    assert plan_workers(7, None, 64, 0, most=5).workers == 7


@pytest.mark.parametrize(
    ("workers", "share", "gpus", "message"),
    [
        ("auto", 1, 0, r"gpus_per_worker: is 1, but there are 0 GPUs here; set engine.gpus_per_worker = 0"),
        (4, 1, 2, r"workers: 4 workers x 1 GPUs = 4 do not fit 2 GPUs; at most 2 workers"),
        (3, 0.5, 1, r"3 workers x 0.5 GPUs = 1.5 do not fit 1 GPUs"),
        (3, 0.6, 2, r"at most 2 workers"),  # 1.8 GPUs in all, but no share is spread over two
        ("auto", 4, 2, r"gpus_per_worker: is 4, but there are 2"),
    ],
)  # fmt: skip
def test_more_than_there_is_is_refused_with_the_arithmetic(workers, share, gpus, message):
    with pytest.raises(InputError, match=message):
        plan_workers(workers, share, 16, gpus)


def test_there_is_a_core():
    assert available_cores() >= 1
