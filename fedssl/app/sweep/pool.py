"""Processes that take run after run, several at a time.

Why processes that stay: starting one imports torch, which takes as long as a small run, and `fedssl run` too gives run
after run to one engine. Why not forked from a preloaded one: with CUDA and threads a fork is only safe while nobody has
used either, which the user's own modules decide. Each has a session of its own, so that Ctrl-C reaches the sweep alone.
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
from fedssl.core.processes import import_path

PATIENCE = 60.0
"""Seconds that a process has to write its checkpoint and end."""


class Pool:
    """So many processes, each with the GPUs that it may see; use it as a context manager.

    Args:
        gpus: One process each: ``CUDA_VISIBLE_DEVICES``; None: what this process sees.
    """

    def __init__(self, gpus: Sequence[str | None]) -> None:
        self._free = list(reversed(gpus))
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def run(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Message]]:
        """Run all tasks, and yield what is said of each, by number, as it comes; the last word is its end or failure."""
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
        """Let all processes end; those that are at a run write its checkpoint first."""
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
        environment = {**os.environ, "PYTHONPATH": import_path()}
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        with theirs:
            # -P: the current folder is found where it is in our path, and not before the standard library.
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
        with suppress(ConnectionError):  # it is lost; `receive` says why
            self.pipe.send(task)

    def receive(self) -> tuple[int, Message]:
        """Return the next message and the number of its task; that it is lost, if it is."""
        number = self._task
        try:
            message = self.pipe.recv()
        except (EOFError, OSError):  # between two messages, and within one
            message = Failed(self._epitaph())
        if isinstance(message, Ended | Failed):
            self._task = -1
        return number, message

    def _epitaph(self) -> str:
        how = self._how_it_ended()
        self._output.seek(0)
        output = self._output.read().decode(errors="replace").strip()
        return f"{output}\n{how}".strip()

    def _how_it_ended(self) -> str:
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
        """Wait until it has ended; kill it if it does not."""
        self.pipe.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._kill()
        self._output.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()
