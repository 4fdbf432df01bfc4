"""A process of a sweep: it runs one task after another, reports to the sweep, and ends when the sweep is gone.

    python -m fedssl.app.sweep.worker PIPE COMMAND...

PIPE is the file descriptor of a socket to the sweep, the only connection between the two. When the sweep closes the
socket or dies, a thread of this process sends SIGTERM to the process itself, so that the run writes a checkpoint and
ends. COMMAND is the command of the sweep, for the records of the runs.
"""

import logging
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import TYPE_CHECKING

import filelock

from fedssl.app.interrupts import INTERRUPTED, Interrupts, interruptible
from fedssl.app.runs import Runs
from fedssl.app.simulation import Engine
from fedssl.app.sweep.messages import Began, Ended, Failed, Message, RoundDone, Said, Task
from fedssl.core.console import Console
from fedssl.core.errors import FedsslError
from fedssl.data.federation import Federation
from fedssl.experiment.experiment import Experiment
from fedssl.record.resume import outcome_of
from fedssl.record.rows import Observer, RoundEnd
from fedssl.record.run_path import LOCK
from fedssl.record.snapshot import Snapshot
from fedssl.views.screen.display import closing_line

PATIENCE = 60.0
"""A process waits at most this long (seconds) for a folder that a process of an earlier sweep still uses."""

if TYPE_CHECKING:  # `Connection` is generic only for type checkers
    Pipe = Connection[Message, Task]


class Teller:
    """Send messages to a sweep, from any thread."""

    def __init__(self, pipe: "Pipe") -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def __call__(self, message: Message) -> None:
        """Send a message; if the sweep is gone, nothing is sent, and `_listen` ends the run in order."""
        with self._lock, suppress(ConnectionError):
            self._pipe.send(message)


class Reporter(Observer):
    """Report to the sweep how a run goes."""

    def __init__(self, tell: Teller) -> None:
        self._tell = tell
        self._rounds = 0

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Report the number of rounds."""
        self._rounds = experiment.num_rounds
        self._tell(Began(self._rounds))

    def resumed(self, snapshot: Snapshot) -> None:
        """Report the number of finished rounds."""
        self._tell(Began(self._rounds, snapshot.round))

    def round_ended(self, end: RoundEnd) -> None:
        """Report a finished round."""
        row = end.row
        self._tell(RoundDone(row.round, row.ema_accuracy, row.pseudo_label_accuracy))


class _LogToSweep(logging.Handler):
    def __init__(self, tell: Teller) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Said(record.getMessage()))


def work(pipe: "Pipe", tell: Teller) -> int:
    """Run the tasks that the pipe brings until the pipe closes or a run fails; return the exit code.

    A process whose run failed is not used again: the failure may have left something behind, especially on a GPU.
    """
    tasks: SimpleQueue[Task] = SimpleQueue()
    with interruptible() as interrupts, Engine() as engine:
        threading.Thread(target=_listen, args=(pipe, tasks, interrupts), daemon=True).start()
        runs = Runs(
            engine,
            Console(quiet=True),
            interrupts,
            display=lambda: Reporter(tell),
            resume=True,
            complain=lambda error, where: tell(Said(f"{where}{error}")),
            warn=lambda text, where: tell(Said(f"warning: {where}{text}")),
            says_way_on=False,  # a sweep goes on by the sweep's own command
        )
        while True:
            result = _run(runs, tasks.get())
            tell(result)
            if isinstance(result, Failed):
                return 1


def _run(runs: Runs, task: Task) -> Ended | Failed:
    experiment = Experiment.from_dict(task.experiment)
    _wait_for_folder(task)
    try:
        finished, _ = runs.run([experiment], [task.folder])
    except FedsslError as error:
        return Failed("\n".join([str(error), *getattr(error, "__notes__", ())]))
    except Exception:
        return Failed(traceback.format_exc())
    named = experiment.model_copy(update={"name": task.label})
    return Ended(closing_line(named, outcome_of(finished[0])))


def _wait_for_folder(task: Task) -> None:
    """Wait until an earlier process has written its checkpoint into the task's folder.

    If the folder is still in use after `PATIENCE` seconds, the run itself reports it.
    """
    if (task.folder / LOCK).exists():
        with suppress(filelock.Timeout), filelock.FileLock(task.folder / LOCK, timeout=PATIENCE):
            pass


def _listen(pipe: "Pipe", tasks: "SimpleQueue[Task]", interrupts: Interrupts) -> None:
    with suppress(EOFError, ConnectionError):
        while True:
            tasks.put(pipe.recv())
    if not interrupts.asked:  # a second signal would end the process without a checkpoint
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Run tasks until the sweep is finished or gone; return the exit code."""
    pipe: Pipe = Connection(int(sys.argv[1]))
    tell = Teller(pipe)
    del sys.argv[:2]
    log = logging.getLogger("fedssl")
    log.addHandler(_LogToSweep(tell))
    log.setLevel(logging.INFO)
    try:
        return work(pipe, tell)
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
