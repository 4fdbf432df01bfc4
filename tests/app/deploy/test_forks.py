"""The process beside a SuperNode: a fork of its own for every message, without what the process itself holds."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedssl.app.deploy import supernode
from fedssl.app.deploy.services import LOST
from tests.app.deploy.test_keeper import is_alive, until

FORKING = """
import os, sys
from flwr.supercore.constant import TaskType
from flwr.supercore.exit import add_exit_handler
from flwr.supercore.exit.exit_handler import trigger_exit_handlers
from flwr.supercore.superexec.executor import ExecutionSpec
from fedssl.app.deploy.forks import ForkingExecutor

here = os.getpid()

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())  # in one piece, whoever else writes

def handler():
    say("handler of the parent in", "itself" if os.getpid() == here else "a fork")

def run(**settings):
    say("message", settings["token"], settings["parent_pid"] == here, "torch" in sys.modules)
    trigger_exit_handlers(run_before_force_exit=False)
    sys.exit(3 if settings["token"] == "bad" else 0)

add_exit_handler(handler)
executor = ForkingExecutor(run)
for task, token in enumerate(("good", "bad"), 1):
    spec = ExecutionSpec(TaskType.CLIENT_APP, "127.0.0.1:1", token, True, None, False, here, False, task)
    say(executor.launch(spec).status)
    code = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT).si_status
    executor.reconcile()
    say("ended with", code, "and left", len(open(f"/proc/self/task/{here}/children").read().split()))
executor.reconcile()
trigger_exit_handlers(run_before_force_exit=False)
"""


@pytest.fixture(scope="module")
def said():
    """Return the lines of a process that runs two messages, the second of which fails."""
    done = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def starting_with(said, word):
    return [line for line in said if line.startswith(word)]


def test_every_message_has_a_fork_with_what_the_process_has_imported(said):
    assert starting_with(said, "accepted") == ["accepted"] * 2
    assert starting_with(said, "message") == ["message good True True", "message bad True True"]


def test_forks_that_ended_leave_nothing(said):
    assert starting_with(said, "ended") == ["ended with 0 and left 0", "ended with 3 and left 0"]


def test_a_fork_closes_nothing_of_its_parents(said):
    assert starting_with(said, "handler") == ["handler of the parent in itself"]


STAND_IN = """
from fedssl.app.deploy import supernode
supernode.SHARE = supernode.LEAST_SHARE = 1.0  # in place of its loop, one long pause
supernode.flower_supernode = lambda: supernode.loop.time.sleep(600)
supernode.main()
"""


def executor_of(supernode):
    """Return the number of the process beside a SuperNode, once it has begun."""
    children = Path(f"/proc/{supernode.pid}/task/{supernode.pid}/children")
    found = []

    def is_there():
        for number in children.read_text().split():  # others come and go as modules are imported
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{number}/cmdline").read_text().split("\0")
                if words[-3:-1] == ["127.0.0.1:9094", str(supernode.pid)]:
                    found.append(int(number))
        return found

    until(is_there, 60)
    return found[0]


def test_the_executor_ends_with_its_supernode_even_one_that_is_killed():
    process = subprocess.Popen([sys.executable, "-c", STAND_IN])
    try:
        executor = executor_of(process)
    finally:
        process.kill()
        process.wait()
    until(lambda: not is_alive(executor))


def test_a_supernode_whose_executor_was_killed_ends_and_says_so():
    """Alone it would stay connected and answer nothing. Its keeper starts both anew."""
    process = subprocess.Popen([sys.executable, "-c", STAND_IN], stderr=subprocess.PIPE, text=True)
    try:
        os.kill(executor_of(process), signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == LOST
    assert "the process that runs the client app has ended" in said


def test_the_pauses_of_a_supernode_grow_to_flowers_and_begin_anew_with_each_wait(monkeypatch):
    clock = [100.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(round(seconds, 3))
        clock[0] += seconds

    stand_in = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr(supernode, "time", stand_in)
    connected = []
    pace = supernode.Pace(lambda: connected.append(clock[0]))
    for _ in range(30):
        pace.sleep(3)
    assert connected == [100.0]  # once, before the first pause
    assert slept[:4] == [0.3] * 4  # a quarter of 1.2 s is 0.3 s
    assert slept[4:] == sorted(slept[4:])
    assert slept[4] < slept[9] < slept[-1] == 3
    assert sum(pause < 3 for pause in slept) < 20
    slept.clear()
    for pause in (0.5, 3.0, 0.5):
        pace.sleep(pause)
    assert slept == [0.05, 0.3, 0.05]
