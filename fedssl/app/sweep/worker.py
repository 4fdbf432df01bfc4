"""A process of a sweep: takes run after run, tells how each goes, and ends by itself once nobody listens.

    python -m fedssl.app.sweep.worker PIPE COMMAND...

The pipe is a socket to the sweep, by its number. It is all that ties the two together: the sweep closes it, or dies and
leaves that to the system, and a thread here sends SIGTERM to its own process, so that the run writes a checkpoint and
ends. The command is that of the sweep, for the runs' records.
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
"""Seconds to wait for a folder that a process of an earlier sweep has not let go of yet."""

if TYPE_CHECKING:  # a class that is generic for type checkers only
    Pipe = Connection[Message, Task]


class Teller:
    """Send messages to a sweep, from any thread."""

    def __init__(self, pipe: "Pipe") -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def __call__(self, message: Message) -> None:
        """Send a message, unless nobody listens: then `_listen` ends the run, in order."""
        with self._lock, suppress(ConnectionError):
            self._pipe.send(message)


class Reporter(Observer):
    """Tell a sweep how a run goes."""

    def __init__(self, tell: Teller) -> None:
        self._tell = tell
        self._rounds = 0

    def began(self, experiment: Experiment, federation: Federation) -> None:
        """Tell how many rounds there are."""
        self._rounds = experiment.num_rounds
        self._tell(Began(self._rounds))

    def resumed(self, snapshot: Snapshot) -> None:
        """Tell how many of them are done."""
        self._tell(Began(self._rounds, snapshot.round))

    def round_ended(self, end: RoundEnd) -> None:
        """Tell of a round."""
        row = end.row
        self._tell(RoundDone(row.round, row.ema_accuracy, row.pseudo_label_accuracy))


class _LogToSweep(logging.Handler):
    def __init__(self, tell: Teller) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(Said(record.getMessage()))


def work(pipe: "Pipe", tell: Teller) -> int:
    """Run what the pipe brings until it closes or a run fails; return the exit code.

    A process whose run failed is not used again: nobody knows what the failure left behind, on a GPU above all.
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
        )
        while True:
            came = _run(runs, tasks.get())
            tell(came)
            if isinstance(came, Failed):
                return 1


def _run(runs: Runs, task: Task) -> Ended | Failed:
    experiment = Experiment.from_dict(task.experiment)
    _wait_for(task)
    try:
        finished, _ = runs.run([experiment], [task.folder])
    except FedsslError as error:
        return Failed("\n".join([str(error), *getattr(error, "__notes__", ())]))
    except Exception:
        return Failed(traceback.format_exc())
    named = experiment.model_copy(update={"name": task.label})
    return Ended(closing_line(named, outcome_of(finished[0])))


def _wait_for(task: Task) -> None:
    """Wait until the process that had the folder has written its checkpoint; who waits in vain is told so by the run."""
    if (task.folder / LOCK).exists():
        with suppress(filelock.Timeout), filelock.FileLock(task.folder / LOCK, timeout=PATIENCE):
            pass


def _listen(pipe: "Pipe", tasks: "SimpleQueue[Task]", interrupts: Interrupts) -> None:
    with suppress(EOFError, ConnectionError):
        while True:
            tasks.put(pipe.recv())
    if not interrupts.asked:  # a second signal would end it without a checkpoint
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Work until there is nothing more to do, or nobody to do it for."""
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
