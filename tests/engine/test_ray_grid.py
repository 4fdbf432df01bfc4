"""What only the Ray grid does: devices by Ray's count, lost workers, deadlines."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedssl import protocol
from fedssl.engine.local_grid import Apps
from fedssl.engine.ray_grid import RayGrid

naughty = ClientApp()


@naughty.query()
def query(message: Message, context: Context) -> Message:
    client = int(context.node_config["partition-id"])
    if client == 1:
        os._exit(1)
    if client == 2:
        time.sleep(60)
    return Message(
        content=RecordDict({"metrics": MetricRecord({"client": client})}), reply_to=message
    )


@pytest.fixture
def grid():
    grid = RayGrid(Apps(naughty), 4, workers=2)
    yield grid
    grid.close()


def ask(grid, clients, timeout=None):
    content = RecordDict({"config": ConfigRecord()})
    messages = [protocol.new_message("query", protocol.node_of(c), content) for c in clients]
    return list(grid.send_and_receive(messages, timeout=timeout))


def test_a_lost_worker_is_replaced_and_its_clients_are_errors(grid):
    before = {worker["pid"] for worker in grid.describe_workers()}
    replies = ask(grid, [0, 1, 3])
    assert [r.has_error() for r in replies][1:] == [True, False]
    assert "worker lost" in replies[1].error.reason
    again = ask(grid, [0, 3])
    assert not any(r.has_error() for r in again)
    assert len({worker["pid"] for worker in grid.describe_workers()} & before) == 1


def test_a_client_that_hangs_is_an_error_in_time(grid):
    grid.describe_workers()  # both are up: what follows is not their start
    began = time.monotonic()
    replies = ask(grid, [0, 2, 3], timeout=3)
    assert time.monotonic() - began < 20
    assert replies[1].has_error()
    assert "no reply within 3 s" in replies[1].error.reason
    assert not any(r.has_error() for r in ask(grid, [0, 3]))


def run_with_gpus(code):
    """Run code against a Ray of its own that believes in two GPUs."""
    whole = "import ray\nray.init(num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)\n"
    whole += textwrap.dedent(code)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-c", whole], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_every_actor_gets_its_share_of_the_gpus_ray_sees():
    """Ray's pretended resources: auto takes both GPUs, a fraction packs two actors on each."""
    out = run_with_gpus("""
        from collections import Counter
        from fedssl.engine.local_grid import Apps
        from fedssl.engine.ray_grid import RayGrid
        from fedssl.errors import InputError
        from tests.engine.test_ray_grid import naughty

        for workers, share in (("auto", None), ("auto", 0.5), (4, None), ("auto", 0)):
            grid = RayGrid(Apps(naughty), 4, workers=workers, gpus_per_worker=share)
            print(grid.plan.workers, sorted(Counter(i for w in grid.describe_workers() for i in w["gpu_ids"]).items()))
            grid.close()
        try:
            RayGrid(Apps(naughty), 4, workers=3, gpus_per_worker=1)
        except InputError as error:
            print(error)
    """)
    lines = out.strip().splitlines()
    assert lines == [
        "2 [(0, 1), (1, 1)]",
        "4 [(0, 2), (1, 2)]",
        "4 [(0, 2), (1, 2)]",
        "4 []",
        "engine.workers: 3 workers x 1 GPUs = 3 do not fit 2 GPUs; at most 2 workers",
    ]
