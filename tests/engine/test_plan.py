"""The number of workers and the share of each: the arithmetic, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl.core.errors import InputError
from fedssl.core.machine import MB, available_cores, available_memory
from fedssl.engine.plan import (
    Node,
    Wish,
    WorkerPlan,
    devices_of_worker,
    plan_workers,
    slots_on_a_gpu,
)


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
        (
            3,
            None,
            2,
            0,
            WorkerPlan(
                3,
                0.6666,
                0.0,
                warning="3 workers share 2 cores: each gets 0.6666, and together they do no more work",
            ),
        ),
        (1, None, 2, 0, WorkerPlan(1, 1.0, 0.0)),
        (8, None, 16, 2, WorkerPlan(8, 1.0, 0.25)),
        (2, 0.5, 16, 1, WorkerPlan(2, 1.0, 0.5)),
    ],
)
def test_plans(workers, share, cpus, gpus, plan):
    assert plan_workers(Wish(workers, share), [Node(cpus, gpus)]) == plan


def test_auto_takes_no_more_than_are_of_use():
    assert plan_workers(Wish(), [Node(64)], most=5).workers == 5
    assert plan_workers(Wish(), [Node(64, 8)], most=5) == WorkerPlan(5, 1.0, 1.0)
    assert len(plan_workers(Wish(7), [Node(64)], most=5)) == 5
    assert len(plan_workers(Wish(2, cpu_workers=9), [Node(64, 2)], most=5)) == 5
    assert (
        "9 workers were asked for, but a round has only 5 clients: 5 start"
        in plan_workers(Wish(9), [Node(64)], most=5).warning
    )
    assert not plan_workers(Wish(5), [Node(64)], most=5).warning


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
        plan_workers(Wish(workers, share), [Node(16, gpus)])


def test_there_is_a_core():
    assert available_cores() >= 1


def test_several_machines():
    """No share is spread over two of them: 3 + 1 cores give four workers a core each, five .75 of one."""
    nodes = [Node(3, 1), Node(1, 1)]
    assert plan_workers(Wish(gpus_per_worker=0), nodes) == WorkerPlan(4, 1.0, 0.0)
    assert plan_workers(Wish(5, 0), nodes).cpus == 0.75
    assert plan_workers(Wish(), nodes) == WorkerPlan(2, 1.0, 1.0)
    with pytest.raises(InputError, match=r"is 2, but there are 2 GPUs"):
        plan_workers(Wish(gpus_per_worker=2), nodes)


@given(
    st.lists(st.builds(Node, st.integers(1, 9), st.integers(0, 3)), min_size=1, max_size=4),
    st.integers(1, 30),
)
def test_whatever_is_planned_fits(nodes, count):
    plan = plan_workers(Wish(count, 0), nodes)
    assert sum(int(node.cpus / plan.cpus + 1e-9) for node in nodes) >= count
    assert bool(plan.warning) == (count > sum(node.cpus for node in nodes))


def test_cores_and_gpus_must_be_on_the_same_machine():
    """Eight GPUs beside two cores, and thirty cores without a GPU: two workers at a core each, eight at a quarter."""
    nodes = [Node(2, 8), Node(30)]
    assert plan_workers(Wish(), nodes).workers == 2
    assert plan_workers(Wish(8), nodes) == WorkerPlan(8, 0.25, 1.0)
    assert plan_workers(Wish(gpus_per_worker=0), nodes).workers == 32


def test_a_machine_of_a_cluster_may_lend_less_than_a_core():
    assert plan_workers(Wish(1), [Node(0.5)]).cpus == 0.5


def test_cores_beside_gpus():
    plan = plan_workers(Wish(cpu_workers=2), [Node(8, 2)])
    assert [plan.gpus_of(worker) for worker in range(len(plan))] == [1, 1, 0, 0]
    assert plan.describe() == "2 workers, 1 cores and 1 GPUs each; 2 more without a GPU"


def test_memory_is_arithmetic_too():
    nodes = [Node(8, memory=1000 * MB), Node(8, memory=700 * MB)]
    assert plan_workers(Wish(memory_per_worker=300 * MB), nodes).workers == 5
    assert plan_workers(Wish(5, memory_per_worker=300 * MB), nodes).memory == 300 * MB
    with pytest.raises(
        InputError, match=r"6 workers x 300 MB = 1,800 MB do not fit 1,700 MB; at most 5 workers"
    ):
        plan_workers(Wish(6, memory_per_worker=300 * MB), nodes)
    with pytest.raises(InputError, match=r"1 workers x 2,000 MB = 2,000 MB do not fit 1,700"):
        plan_workers(Wish(memory_per_worker=2000 * MB), nodes)
    assert available_memory() > 100 * MB


def test_slots_on_a_gpu_by_what_a_client_took():
    assert slots_on_a_gpu(1000, 10_000) == 9
    assert slots_on_a_gpu(9000, 10_000) == 1
    with pytest.raises(
        InputError, match="one client took 95 MB, but a GPU has only 90 MB for workers"
    ):
        slots_on_a_gpu(95 * MB, 100 * MB)


def test_a_team_takes_a_core_for_each_process():
    """16 cores are five bundles of three; a client's processes are never spread over two machines."""
    plan = plan_workers(Wish(cpus_per_client=3), [Node(16)])
    assert plan == WorkerPlan(5, 3.0, 0.0, cpus_per_client=3)
    assert plan.describe().endswith("; 3 processes train a client together")
    assert plan_workers(Wish(cpus_per_client=2), [Node(3), Node(3)]).workers == 2
    shared = plan_workers(Wish(2, cpus_per_client=2), [Node(2)])
    assert (shared.cpus, shared.warning) == (
        1.0,
        "2 workers share 2 cores: each gets 1, and together they do no more work",
    )
    with pytest.raises(
        InputError, match=r"cpus_per_client: is 4, but no machine here has more than 3"
    ):
        plan_workers(Wish(cpus_per_client=4), [Node(3), Node(3)])
    with pytest.raises(InputError, match=r"cpus_per_client: is 2, but clients train on GPUs here"):
        plan_workers(Wish(cpus_per_client=2), [Node(8, 1)])
    assert plan_workers(Wish(gpus_per_worker=0, cpus_per_client=2), [Node(8, 1)]).workers == 4
    on_gpus = plan_workers(Wish(gpus_per_worker=2), [Node(16, 4)])
    assert on_gpus.describe() == (
        "2 workers, 1 cores and 2 GPUs each; 2 processes train a client together"
    )


@pytest.mark.parametrize(
    ("gpus", "cpus", "has_cuda", "devices"),
    [
        (0, 1, False, "cpu"),
        (0, 1, True, "cpu"),
        (0.5, 1, True, "cuda:0"),
        (1, 3, True, "cuda:0"),
        (1, 3, False, "cpu,cpu,cpu"),
        (2, 1, True, "cuda:0,cuda:1"),
        (2, 1, False, "cpu,cpu"),
    ],
)
def test_the_devices_of_a_worker(gpus, cpus, has_cuda, devices):
    assert devices_of_worker(gpus, cpus, has_cuda) == devices
