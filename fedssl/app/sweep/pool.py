"""A pool of processes that run the points of a sweep, several at a time.

A process runs many points one after another, because a new process must import torch, which takes as long as a small
run. (`fedssl run` also gives all its runs to one engine.) Processes are not forked from a preloaded process: a fork is
safe only if neither CUDA nor threads were used, and a user's own modules may use both. Each process has its own
session, so that Ctrl-C reaches only the sweep.
"""

import os
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

from fedssl.app.sweep.messages import Ended, Failed, Message, Task
from fedssl.core.processes import path_for_other_processes

PATIENCE = 60.0
"""A process may take this long (seconds) to write its checkpoint and end; then it is killed."""


class Pool:
    """Several processes, each with the GPUs that it may use; use it as a context manager.

    Args:
        gpus: The value of ``CUDA_VISIBLE_DEVICES`` of each process; None: the value of this process.
    """

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self._free = list(reversed(gpus))
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Message]]:
        """Run all tasks; yield (number of the task, message) as messages come, up to the task's `Ended` or `Failed`."""
        left = deque(enumerate(tasks))
        while left or any(worker.is_busy for worker in self._workers):
            self._hand_out(left)
            by_pipe = {worker.pipe: worker for worker in self._workers if worker.is_busy}
            for pipe in wait(list(by_pipe)):
                worker = by_pipe[pipe]  # type: ignore[index]
                task, message = worker.receive()
                if isinstance(message, Failed):
                    self._replace(worker)
                yield task, message

    def _hand_out(self, left: "deque[tuple[int, Task]]") -> None:
        while left:
            worker = next((worker for worker in self._workers if not worker.is_busy), None)
            if worker is None:
                if not self._free:
                    return
                worker = _Worker(self._free.pop())
                self._workers.append(worker)
            worker.give(*left.popleft())

    def _replace(self, worker: "_Worker") -> None:
        worker.end()
        self._workers.remove(worker)
        self._free.append(worker.gpus)

    def close(self) -> None:
        """End all processes; a process that is running a point writes a checkpoint first."""
        for worker in self._workers:
            worker.pipe.close()
        while self._workers:
            self._workers.pop().end()


class _Worker:
    def __init__(self, gpus: str | None) -> None:
        self.gpus = gpus
        self._task = -1
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        ours, theirs = Pipe()
        self.pipe: Connection[Task, Message] = ours
        environment = {**os.environ, "PYTHONPATH": path_for_other_processes()}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        with theirs:
            # -P: the current folder does not come before the standard library, but at its place in our path.
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "fedssl.app.sweep.worker",
                    str(theirs.fileno()),
                    *sys.argv,
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    @property
    def is_busy(self) -> bool:
        return self._task >= 0

    def give(self, number: int, task: Task) -> None:
        self._task = number
        with suppress(ConnectionError):  # the process is lost; `receive` reports why
            self.pipe.send(task)

    def receive(self) -> tuple[int, Message]:
        """Return the number of the task and its next message; the message is `Failed` if the process is lost."""
        number = self._task
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):  # the pipe closed between messages, or within one
            message = Failed(self._describe_loss())
        if isinstance(message, Ended | Failed):
            self._task = -1
        return number, message

    def _describe_loss(self) -> str:
        """Return the output of the lost process, and how the process ended."""
        how = self._describe_end()
        self._output.seek(0)
        output = self._output.read().decode(errors="replace").strip()
        return f"{output}\n{how}".strip()

    def _describe_end(self) -> str:
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
            return f"its process fell silent, had not ended {PATIENCE:g} s later, and was killed"
        if code >= 0:
            return f"its process ended with exit code {code}"
        hint = "; perhaps memory ran out" if code == -signal.SIGKILL else ""
        return f"its process was killed by {signal.Signals(-code).name}{hint}"

    def end(self) -> None:
        """Wait until the process has ended; kill it if it does not end in time."""
        self.pipe.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
        self._output.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
