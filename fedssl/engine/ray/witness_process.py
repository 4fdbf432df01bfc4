"""The process that outlives a run: it reports what ended the run when the run itself no longer can.

When one of Ray's own processes is lost, Ray ends the process that uses it from C++, and no line of Python runs after
that. The kernel does the same when memory runs out. This file runs as a script, by its path, and imports next to
nothing, so that it costs some milliseconds and a few megabytes.

Now and then Ray does not end the process that uses it, and a run that has lost Ray waits for it forever. This script
ends such a run.

It reads lines of JSON from its standard input. The keys of a line replace the same keys of earlier lines:

- ``processes``: Ray's processes (name: process id), whose deaths the script watches;
- ``starting``: whether Ray is being started;
- ``folder``: Ray's temporary folder, which the script removes when the run's process is lost;
- ``run``, ``events``, ``lock``: the folder of the current run, as messages name it, and two files in it; null between
  runs;
- ``goodbye``: the run's process ends in order, and there is nothing to report.
"""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Iterator
from typing import Any

SHOW_CURSOR = b"\x1b[?25h"

AGENTS = {"DashboardAgent": "dashboard agent", "RuntimeEnvAgent": "runtime environment agent"}
"""The two agents that Ray's raylet starts, by a part of their command line; the raylet ends when an agent ends."""

GRACE = 0.5
"""If a process of Ray dies at most this many seconds before the run's process, then the latter's end killed it.

Agents are the exception: they outlive the run's process by a second, so a dead agent is a cause.
"""

LOOK_AGAIN = 0.5
"""Agents of a raylet that have not started yet are looked for again after this many seconds."""

LIMIT = 3.0
"""The run's process should end within this many seconds after the first death of a process of Ray's.

After an agent's death, it ends within a second. Without its control store, Ray itself would wait for a minute."""

PATIENCE = 3.0
"""Ray's processes get this many seconds to end after the run's process has ended; then they are killed, and their folder is removed.

They end within a second, but a raylet without its control store waits for half a minute."""


class Watched:
    """Watch processes and remember which of them died first (on Linux only; elsewhere no death is noticed)."""

    def __init__(self) -> None:
        self.alive: dict[int, str] = {}
        """Names of the living processes, by their descriptors."""
        self._raylet: int | None = None
        self._missing: set[str] = set()
        self._first: list[str] = []
        self._died_at = 0.0

    def add(self, processes: dict[str, int]) -> None:
        """Watch processes, and the raylet's agents with the raylet."""
        if not hasattr(os, "pidfd_open"):
            return
        for name, pid in processes.items():
            if name == "raylet":
                self._raylet, self._missing = pid, set(AGENTS.values())
            self._add(name, pid)
        self.look()

    def look(self) -> None:
        """Watch the raylet's agents that have started since the last look; on a busy machine, they start late."""
        if self._raylet is None or not self._missing:
            return
        for agent, pid in _find_agents(self._raylet):
            if agent in self._missing:
                self._missing.remove(agent)
                self._add(agent, pid)

    @property
    def patience(self) -> float | None:
        """Seconds after which there may be something to do: an agent to find, or a run to end; None if neither."""
        return LOOK_AGAIN if self._missing or self._first else None

    @property
    def is_overdue(self) -> bool:
        """Whether the run's process should have ended by now."""
        return bool(self._first) and time.monotonic() - self._died_at > LIMIT

    def take(self, descriptors: list[int]) -> None:
        """Note that the processes behind some descriptors have ended."""
        names = [self.alive.pop(descriptor) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        if names and not self._first:
            self._first, self._died_at = names, time.monotonic()

    def wait(self, seconds: float) -> None:
        """Wait until the watched processes have ended, but no more than some seconds."""
        deadline = time.monotonic() + seconds
        while self.alive and (left := deadline - time.monotonic()) > 0:
            ended, _, _ = select.select([*self.alive], [], [], left)
            self.take(ended)

    def causes(self) -> list[str]:
        """Return the names of the processes that died first, unless the end of the run's process killed them.

        When the run's process is killed, the kernel kills the raylet and the control store with it, and the agents
        notice that a second later. When an agent dies, the raylet ends, and a quarter of a second after the raylet the
        run's process ends.
        """
        agents = [name for name in self._first if name in AGENTS.values()]
        if agents or time.monotonic() - self._died_at <= GRACE:
            return agents
        return self._first

    def _add(self, name: str, pid: int) -> None:
        with contextlib.suppress(OSError):
            self.alive[os.pidfd_open(pid)] = name


def _find_agents(raylet: int) -> Iterator[tuple[str, int]]:
    """Yield the name and the process id of each agent of a raylet."""
    for entry in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            with open(f"/proc/{entry}/stat", "rb") as file:
                parent = int(file.read().rpartition(b")")[2].split()[1])
            if parent != raylet:
                continue
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read()
            for part, name in AGENTS.items():
                if part.encode() in words or _SCRIPTS[part] in words:
                    yield name, int(entry)


_SCRIPTS = {
    "DashboardAgent": b"dashboard/agent.py",
    "RuntimeEnvAgent": b"runtime_env/agent/main.py",
}
"""The command line of an agent holds this text until the agent has given itself a name."""


def watch(watched: Watched) -> dict[str, Any] | None:
    """Read until the run's process has ended, and return the facts that it told; None after a goodbye.

    A run that lives on without Ray is ended.
    """
    run = os.getppid()
    known: dict[str, Any] = {}
    unread = b""
    while True:
        readable, _, _ = select.select([0, *watched.alive], [], [], watched.patience)
        if watched.is_overdue and os.getppid() == run:
            os.kill(run, signal.SIGKILL)
        watched.look()
        data = os.read(0, 1 << 16) if 0 in readable else b""
        if 0 in readable and not data:
            return known
        watched.take([descriptor for descriptor in readable if descriptor])
        *lines, unread = (unread + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            known |= told
            if "goodbye" in told:
                return None
            watched.add(told.get("processes", {}))


def describe(known: dict[str, Any], dead: list[str]) -> str:
    """Return the message to people; empty if no run was lost.

    Args:
        known: The facts that the run's process told.
        dead: Names of Ray's processes that ended the run; empty if none did.
    """
    run = known.get("run")
    if known.get("starting"):
        return (
            "the process of the run ended while it started Ray: memory, or this user's limits (ulimit -a), may be too "
            "small; --engine serial does without Ray"
        )
    if dead:
        what = f"Ray's {' and '.join(dead)} died, and Ray ended the process of the run"
    elif run is not None:
        what = "the process of the run ended before the run did (killed, or out of memory)"
    else:
        return ""
    if run is None:
        return f"{what}; run the same command again"
    return (
        f"{what}; the record so far is kept in {run}: run the same command again with --resume "
        "(in Python: resume=True), which also begins the runs that had not begun"
    )


def note_failure(events: str, lock: str, reason: str) -> None:
    """Append a ``failed`` line to a run's events, unless its last line already says how the run ended.

    Raises:
        OSError: The files cannot be written, or another process has locked the run.
    """
    import fcntl
    from datetime import UTC, datetime

    with open(events, "r+b") as file, open(lock, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        last = whole.splitlines()[-1] if whole else b"{}"
        with contextlib.suppress(ValueError):
            if json.loads(last).get("event") in ("failed", "interrupted", "ended"):
                return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": "failed", "reason": reason}) + "\n"
        file.seek(len(whole))
        file.write(line.encode())
        file.truncate()


def remove_when_unused(folder: str, watched: Watched) -> None:
    """Remove Ray's folder once Ray's processes have ended; they end after the run's process, and those that do not are killed."""
    import shutil

    watched.wait(PATIENCE)
    for descriptor in watched.alive:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    watched.wait(PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Watch the run's process; if it is lost, report that and clean up."""
    watched = Watched()
    known = watch(watched)
    if known is None:
        return
    run = known.get("run")
    message = describe(known, watched.causes())
    if run is not None:
        with contextlib.suppress(
            OSError
        ):  # the folder is gone or the disk full; people still get the message
            note_failure(known["events"], known["lock"], message.partition(";")[0])
    with contextlib.suppress(OSError):
        for stream in (1, 2):
            if os.isatty(stream):
                os.write(stream, SHOW_CURSOR)  # the live screen hid it
    if message:
        with contextlib.suppress(OSError):
            os.write(2, f"\nerror: {message}\n".encode())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # a program that reads this output need not wait for the rest
        os.dup2(nowhere, stream)
    if "folder" in known:
        remove_when_unused(known["folder"], watched)


if __name__ == "__main__":
    main()
