"""The process that outlives a run: it says what ended the run where the run itself no longer can.

Ray ends the process that uses it from C++ when one of Ray's own processes is lost: no line of Python runs after that. The
kernel does the same when memory runs out. This file is started as a script, by its path, and imports next to nothing, so
that it costs some milliseconds and a few megabytes.

It reads lines of JSON from its standard input. The keys of a line replace what the lines before said:

- ``processes``: Ray's processes (name: process id), whose deaths are watched;
- ``starting``: whether Ray is being started;
- ``folder``: Ray's temporary folder, which is removed when the run's process is lost;
- ``run``, ``events``, ``lock``: the folder of the run that goes on, as people call it, and two files in it; null between
  runs;
- ``goodbye``: the run's process ends in order, and there is nothing to say.
"""

import contextlib
import json
import os
import select
import time
from collections.abc import Iterator
from typing import Any

SHOW_CURSOR = b"\x1b[?25h"

AGENTS = {"DashboardAgent": "dashboard agent", "RuntimeEnvAgent": "runtime environment agent"}
"""The two agents that Ray's raylet starts, by a part of their command line; the raylet ends when one of them does."""

GRACE = 0.5
"""Seconds before the end of the run's process within which Ray's processes die of that end, and are not its cause."""

PATIENCE = 20.0
"""Seconds in which Ray's processes end once the run's process has ended; their folder is removed after that."""


class Watched:
    """The processes whose deaths are noticed (Linux; elsewhere none are)."""

    def __init__(self) -> None:
        self.alive: dict[int, str] = {}
        """Names by descriptor."""
        self._first: list[str] = []
        self._died_at = 0.0

    def add(self, processes: dict[str, int]) -> None:
        """Watch processes and, of the raylet, its agents."""
        if not hasattr(os, "pidfd_open"):
            return
        for name, pid in processes.items():
            if name == "raylet":
                for agent, child in _agents_of(pid):
                    self._add(agent, child)
            self._add(name, pid)

    def take(self, descriptors: list[int]) -> None:
        """Note that the processes behind some descriptors have ended."""
        names = [self.alive.pop(descriptor) for descriptor in descriptors]
        for descriptor in descriptors:
            os.close(descriptor)
        if names and not self._first:
            self._first, self._died_at = names, time.monotonic()

    def causes(self) -> list[str]:
        """Return the names of those that died first, unless they died of the end that the run's process comes to now.

        When the run's process is killed, the kernel kills the raylet and the control store with it, and the agents notice
        a second later. When an agent dies, the raylet ends, and the run's process a quarter of a second after it.
        """
        agents = [name for name in self._first if name in AGENTS.values()]
        if agents or time.monotonic() - self._died_at <= GRACE:
            return agents
        return self._first

    def _add(self, name: str, pid: int) -> None:
        with contextlib.suppress(OSError):
            self.alive[os.pidfd_open(pid)] = name


def _agents_of(raylet: int) -> Iterator[tuple[str, int]]:
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
"""What the command line of an agent holds until the agent has given itself a name."""


def watch(watched: Watched) -> dict[str, Any] | None:
    """Read until the run's process has ended, and return what it has told; None after a goodbye."""
    known: dict[str, Any] = {}
    unread = b""
    while True:
        readable, _, _ = select.select([0, *watched.alive], [], [])
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
    """Return the message to people, by what is known of the run and who has died; empty where nothing was lost."""
    run = known.get("run")
    if known.get("starting"):
        return (
            "the process of the run ended while it started Ray: memory, or the limits of this user (ulimit -a), may not "
            "suffice; --engine serial does without Ray"
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
        f"{what}; what was recorded is kept in {run}: run the same command again with --resume "
        "(in Python: resume=True), which also begins the runs that had not begun"
    )


def note_failure(events: str, lock: str, reason: str) -> None:
    """Append a ``failed`` line to a run's events, unless its last line says how it ended, or another process is at it."""
    import fcntl
    from datetime import UTC, datetime

    with open(events, "r+b") as file, open(lock, "ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        last = whole.splitlines()[-1] if whole else b"{}"
        with contextlib.suppress(ValueError):
            if json.loads(last).get("event") in ("failed", "ended"):
                return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": "failed", "reason": reason}) + "\n"
        file.seek(len(whole))
        file.write(line.encode())
        file.truncate()


def remove_when_unused(folder: str, watched: Watched) -> None:
    """Remove Ray's folder once Ray's processes have ended, which they do after the run's process."""
    import shutil

    deadline = time.monotonic() + PATIENCE
    while watched.alive and time.monotonic() < deadline:
        ended, _, _ = select.select([*watched.alive], [], [], deadline - time.monotonic())
        watched.take(ended)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Watch, and say what happened."""
    watched = Watched()
    known = watch(watched)
    if known is None:
        return
    run = known.get("run")
    message = describe(known, watched.causes())
    if run is not None:
        with contextlib.suppress(OSError):  # a folder that is gone, or a full disk: people are told
            note_failure(known["events"], known["lock"], message.partition(";")[0])
    with contextlib.suppress(OSError):
        for stream in (1, 2):
            if os.isatty(stream):
                os.write(stream, SHOW_CURSOR)  # the live screen hid it
    if message:
        with contextlib.suppress(OSError):
            os.write(2, f"\nerror: {message}\n".encode())
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):  # who reads our output need not wait for what follows
        os.dup2(nowhere, stream)
    if "folder" in known:
        remove_when_unused(known["folder"], watched)


if __name__ == "__main__":
    main()
