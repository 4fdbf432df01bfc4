"""The parts that only the Ray grid has: devices by Ray's count, lost workers, deadlines."""

import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedssl.core.errors import RunFailed
from fedssl.engine.local_grid import Apps, Patience
from fedssl.engine.plan import Wish
from fedssl.engine.ray.grid import RayGrid
from fedssl.exchange import protocol
from fedssl.exchange.reduction import CohortSums, Reduction, by_examples
from fedssl.exchange.unit_replies import Replies

naughty = ClientApp()

FINE, DIES, HANGS, DIES_ONCE, HANGS_ONCE, RAISES_ONCE, RAISES, HUNGRY, SPINS = range(9)
"""Clients by what they do; the ones that do something once leave a file behind."""


@naughty.train()
def train(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    folder = Path(str(message.content["config"]["folder"]))
    first = not (folder / str(client)).exists()
    (folder / str(client)).touch()
    if client == DIES or (client == DIES_ONCE and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if client == HANGS or (client == HANGS_ONCE and first):
        time.sleep(600)
    if client == SPINS:
        # Holds the interpreter for good: such a worker cannot even say what it is doing.
        ctypes.PyDLL(None).usleep(600_000_000)
    if client == RAISES or (client == RAISES_ONCE and first):
        raise RuntimeError("does not want to")
    if client == HUNGRY:
        torch.empty(1 << 60, dtype=torch.uint8)
    arrays = {"w": np.full(2, client + 1.0, np.float32)}
    metrics = {"client": client, "num-examples": 1, "num-labeled": 1, "num-confident": 1.0}
    records = {"arrays": protocol.to_record(arrays), "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(records), reply_to=message)


def divided(device: str, number: int, by: int) -> tuple[int, int]:
    assert device == "cpu"
    return divmod(number, by)


def nap(device: str, seconds: float) -> None:
    time.sleep(seconds)


@pytest.fixture(scope="module")
def patient() -> Iterator[RayGrid]:
    grid = RayGrid(Apps(naughty), 9, Wish(2), patience=Patience(retries=1, client_timeout=2))
    grid.describe_workers()  # both are up: what follows is not their start
    yield grid
    grid.close()


def requests(clients, folder):
    arrays = {"w": np.zeros(2, np.float32)}
    content = RecordDict(
        {"arrays": protocol.to_record(arrays), "config": ConfigRecord({"folder": str(folder)})}
    )
    return [protocol.new_message("train", protocol.node_of(c), content) for c in clients]


def reduced(grid, clients, folder, timeout=None):
    """Return the sum of the clients' arrays, the weight behind it, and the reason of every failure by client."""
    arrays = {"arrays": {"w": np.zeros(2, np.float32)}}
    sums = CohortSums(Reduction.of(arrays, {"arrays": by_examples}), len(clients))
    grid.incidents.clear()
    answers = list(grid.reduce(requests(clients, folder), sums, timeout=timeout))
    assert sorted(protocol.client_of(a.node) for a in answers) == sorted(clients)
    failed = {protocol.client_of(a.node): a.reason for a in answers if a.metrics is None}
    total, weight = sums.result()["arrays"]
    return None if total is None else total["w"].tolist(), weight, failed


def test_fused_clients_may_take_the_sum_of_their_limits(tmp_path):
    """Three clients of 1.2 s each, and a limit of 2 s for each."""

    def slow(messages, contexts):
        time.sleep(3.6)
        return Replies([naughty(m, c) for m, c in zip(messages, contexts, strict=True)])

    grid = RayGrid(Apps(naughty, slow), 11, Wish(1), patience=Patience(client_timeout=2))
    try:
        messages = requests([FINE, 9, 10], tmp_path)
        arrays = {"arrays": {"w": np.zeros(2, np.float32)}}
        sums = CohortSums(Reduction.of(arrays, {"arrays": by_examples}), 1)
        answers = list(grid.reduce(messages, sums, units=[(0, 3)]))
        assert [answer.reason for answer in answers] == [""] * 3
    finally:
        grid.close()


def test_ray_starts_no_process_that_no_run_needs(patient):
    ours = subprocess.run(
        ["ps", "-ww", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True
    )
    names = {
        Path(line.split()[0]).name
        for line in ours.stdout.splitlines()
        if "/site-packages/ray/" in line
    }
    assert names == {"gcs_server", "raylet"}


def test_meanwhile_is_while_they_work(patient, tmp_path):
    def wait_for_both():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)

    grid_replies = patient.stream(requests([FINE, RAISES], tmp_path), meanwhile=wait_for_both)
    assert len(list(grid_replies)) == 2


def test_a_grid_made_in_the_background_works_and_leaves_no_process():
    """In a process of its own, for the thread that starts Ray must be the one that made the grid."""
    code = """
        from fedssl.engine.local_grid import Apps
        from fedssl.engine.plan import Wish
        from fedssl.engine.ray.grid import RayGrid
        from fedssl.core.processes import InBackground
        from tests.engine.ray.test_grid import naughty

        made = InBackground(lambda: RayGrid(Apps(naughty), 2, Wish(1)))
        print(made.result().describe_workers()[0]["pid"])
        made.end(RayGrid.close)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    worker = Path("/proc") / done.stdout.split()[-1]
    deadline = time.monotonic() + 20
    while worker.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_lost_worker_costs_nobody_else_anything(patient, tmp_path):
    before = {worker["pid"] for worker in patient.describe_workers()}
    sums, weight, failed = reduced(patient, [FINE, DIES, RAISES_ONCE], tmp_path)
    assert (sums, weight) == ([7.0, 7.0], 2)
    assert set(failed) == {DIES}
    assert "worker lost" in failed[DIES]
    assert patient.incidents
    after = {worker["pid"] for worker in patient.describe_workers()}
    assert len(after) == 2
    assert after != before


def test_what_fails_once_is_tried_again(patient, tmp_path):
    clients = [FINE, DIES_ONCE, HANGS_ONCE, RAISES_ONCE]
    sums, weight, failed = reduced(patient, clients, tmp_path)
    assert failed == {}
    assert weight == 4
    assert sums == [sum(c + 1.0 for c in clients)] * 2
    assert any("no reply within 2 s" in incident for incident in patient.incidents)


def test_a_client_that_hangs_or_raises_or_eats_all_memory_is_left_out_with_its_reason(
    patient, tmp_path
):
    began = time.monotonic()
    clients = [FINE, HANGS, RAISES, HUNGRY]
    sums, weight, failed = reduced(patient, clients, tmp_path)
    assert time.monotonic() - began < 60  # two tries of two seconds, and workers that start
    assert (sums, weight) == ([1.0, 1.0], 1)
    assert failed[HANGS] == "no reply within 2 s"
    assert "does not want to" in failed[RAISES]
    assert "Traceback" in failed[RAISES]
    assert failed[HUNGRY].splitlines()[-1].startswith("out of memory")


def test_a_worker_that_cannot_even_answer_is_replaced_too(patient, tmp_path, monkeypatch):
    monkeypatch.setattr("fedssl.engine.ray.pool.ANSWER_TIMEOUT", 1.0)
    sums, _, failed = reduced(patient, [SPINS, FINE], tmp_path)
    assert sums == [1.0, 1.0]
    assert set(failed) == {SPINS}


def test_single_replies_are_as_patient(patient, tmp_path):
    replies = patient.send_and_receive(requests([DIES_ONCE, FINE, RAISES], tmp_path))
    assert [reply.has_error() for reply in replies] == [False, False, True]


def test_a_round_ends_in_time_whatever_its_clients_do(patient, tmp_path):
    patient.describe_workers()
    began = time.monotonic()
    _, weight, failed = reduced(patient, [HANGS, SPINS, FINE], tmp_path, timeout=1)
    assert time.monotonic() - began < 20
    assert weight == 0
    assert set(failed) == {HANGS, SPINS, FINE}
    assert all("within 1 s" in reason for reason in failed.values())
    assert reduced(patient, [FINE, RAISES], tmp_path)[1] == 1  # and the next one runs


def test_a_function_runs_on_the_workers_and_its_error_ends_the_run(patient):
    assert patient.map(divided, [(7, 2), (9, 4), (5, 5)]) == [(3, 1), (2, 1), (1, 0)]
    with pytest.raises(RunFailed, match=r"divided failed(.|\n)*ZeroDivisionError"):
        patient.map(divided, [(1, 0)])


def test_an_iterator_that_nobody_reads_to_its_end_leaves_the_grid_usable(patient, tmp_path):
    replies = patient.stream(requests([FINE, FINE, FINE, FINE], tmp_path))
    next(replies)
    replies.close()
    assert not any(reply.has_error() for reply in patient.stream(requests([FINE], tmp_path)))


def test_a_plan_that_is_refused_leaves_no_ray_behind():
    out = in_a_process_of_its_own("""
        import ray
        from fedssl.engine.local_grid import Apps
        from fedssl.engine.plan import Wish
        from fedssl.engine.ray.grid import RayGrid
        from fedssl.core.errors import InputError

        try:
            RayGrid(Apps(print), 4, Wish(gpus_per_worker=64))
        except InputError as error:
            print(error, ray.is_initialized())
    """)
    assert "gpus_per_worker: is 64" in out
    assert "False" in out


def test_workers_that_cannot_start_end_the_run():
    out = in_a_ray_of_its_own("""
        from fedssl.engine.ray import pool as ray_pool
        from fedssl.engine.local_grid import Apps
        from fedssl.engine.plan import Wish
        from fedssl.engine.ray.grid import RayGrid
        from fedssl.core.errors import RunFailed
        from tests.engine.ray.test_grid import Unreadable, divided

        ray_pool.MOST_STARTS = 2
        grid = RayGrid(Apps(Unreadable()), 4, Wish(1))
        for attempt in range(2):  # and whoever comes next on the same grid is told too
            try:
                grid.map(divided, [(1, 1)])
            except RunFailed as error:
                print(attempt, error)
    """)
    assert out.count("workers do not start") == 2
    assert "cannot be read here" in out


def test_a_worker_that_does_not_become_ready_is_told_of_and_not_waited_for():
    out = in_a_ray_of_its_own("""
        import time
        from types import SimpleNamespace

        import ray
        from fedssl.engine.ray import pool as ray_pool
        from fedssl.engine.local_grid import Apps
        from fedssl.engine.plan import Wish
        from fedssl.engine.ray.grid import RayGrid
        from tests.engine.ray.test_grid import nap, naughty

        @ray.remote(num_cpus=3)
        class Greedy:
            def here(self):
                return True

        greedy = Greedy.remote()  # one of four cores is left
        assert ray.get(greedy.here.remote())
        grid = RayGrid(Apps(naughty), 4, Wish(2))
        print(grid.map(nap, [(0.0,)]))  # one is ready; and now three minutes pass
        later = SimpleNamespace(monotonic=lambda: time.monotonic() + ray_pool.START_TIMEOUT)
        ray_pool.time = later
        for _ in range(2):
            print(grid.map(nap, [(0.0,)] * 3))
        print(len(grid.incidents), grid.incidents)
    """)
    assert out.count("[None, None, None]") == 2
    assert "was not ready within 180 s; 0 of 4 CPUs are free" in out.partition("1 ['worker ")[2]


class Unreadable:
    """An app that no worker can unpickle."""

    def __reduce__(self):
        return _raise, ()

    def __call__(self, message, context):
        raise AssertionError("never")


def _raise():
    raise ImportError("cannot be read here")


def in_a_ray_of_its_own(code):
    """Run code against a Ray of its own that believes in two GPUs."""
    # Without "local", Ray joins any cluster it finds on this machine: that of another test.
    start = """
import ray
from fedssl.engine.ray.start import _start_lean_nodes

with _start_lean_nodes():  # as a run's own Ray starts, in half of the time
    ray.init("local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False,
             _system_config={"prestart_worker_first_driver": False})
"""
    return in_a_process_of_its_own(start + textwrap.dedent(code))


def in_a_process_of_its_own(code):
    """Run code in a fresh interpreter, which must end well, and return what it printed."""
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_actor_gets_its_share_of_the_gpus_ray_sees():
    """Ray's pretended resources: auto takes both GPUs, four workers pack two on each.

    What an actor has, Ray decides by the options with which it is made, so only the first two are those of a run.
    """
    out = in_a_ray_of_its_own("""
        from collections import Counter
        from fedssl.engine.local_grid import Apps, Patience
        from fedssl.engine.plan import Wish
        from fedssl.engine.ray import pool
        from fedssl.engine.ray.grid import RayGrid
        from fedssl.core.errors import InputError
        from tests.engine.ray.test_grid import naughty

        class Light:  # an actor that imports nothing
            def __init__(self, apps, cpus_per_client):
                pass

            def describe(self):
                return {"gpu_ids": ray.get_gpu_ids()}

            @ray.method(concurrency_group="watch")
            def progress(self):
                pass

        for workers, share in (("auto", None), (4, None), (1, 0)):
            if workers != "auto":
                pool.Actor = Light
            grid = RayGrid(Apps(naughty), 4, Wish(workers, share))
            print(grid.plan.workers, sorted(Counter(i for w in grid.describe_workers() for i in w["gpu_ids"]).items()))
            grid.close()
        try:
            RayGrid(Apps(naughty), 4, Wish(3, 1))
        except InputError as error:
            print(error)
    """)
    lines = out.strip().splitlines()
    assert lines == [
        "2 [(0, 1), (1, 1)]",
        "4 [(0, 2), (1, 2)]",
        "1 []",
        "engine.workers: 3 workers x 1 GPUs = 3 do not fit 2 GPUs; at most 2 workers",
    ]


def test_a_function_that_hangs_ends_in_time(patient):
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"nap failed: no reply within 2 s"):
        patient.map(nap, [(600,)])
    assert time.monotonic() - began < 60
    with pytest.raises(RunFailed, match=r"nap failed: no reply within 1 s"):
        patient.map(nap, [(600,)], timeout=1)
    assert patient.map(divided, [(7, 2)]) == [(3, 1)]
