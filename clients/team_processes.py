"""The processes of a team: started with the first client that trains in it, and ended with the process that asked for them."""

import atexit
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import TypeVar

from flwr.app import Context, Message

from fedssl.clients.team_group import HANG, join, meeting_file, meeting_place
from fedssl.core.processes import path_for_other_processes
from fedssl.training.team import SumLost, Team, in_team

Answer = TypeVar("Answer")

START = 300.0
"""A process of a team should be ready for a client within this many seconds: it imports torch and reads the images."""


class TeamLost(RuntimeError):
    """A process of a team ended, hangs, or failed; the client may be tried again, with a new team."""


@dataclass(frozen=True)
class _Member:
    process: subprocess.Popen[bytes]
    link: Connection


class TeamProcesses:
    """The other processes of a team whose process 0 is this one.

    Args:
        devices: Device of each process; this one has the first.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = tuple(devices)
        self._meeting = meeting_file()
        self._members: list[_Member] = []
        self._team: Team | None = None
        try:
            for rank in range(1, len(devices)):
                self._members.append(self._start(rank))
        except BaseException:
            self.close()
            raise

    def run(self, message: Message, context: Context, work: Callable[[], Answer]) -> Answer:
        """Return what `work` returns; every other process of the team does the same work on its own device.

        Args:
            message: The request to train.
            context: The client's context before the work.
            work: Trains the client in the current team.

        Raises:
            TeamLost: Another process ended, hangs or failed. The team cannot be used again.
        """
        order = pickle.dumps((message.metadata, message.content, context))
        for member in self._members:
            self._send(member, order)
        for member in self._members:  # they have read their images, and wait for this process
            self._hear(member, START)
        for member in self._members:
            self._send(member, b"go")
        try:
            if self._team is None:
                self._team = join(meeting_place(self._meeting), 0, self._devices)
            with in_team(self._team):
                answer = work()
        except RuntimeError as error:  # which a sum raises if another process is lost
            said = [said for member in self._members if (said := self._last_words(member))]
            if said:
                # A process whose sum was lost failed because of another one.
                said.sort(key=lambda text: SumLost.__name__ in text)
                raise TeamLost(f"a process of the client's team failed: {said[0]}") from error
            raise
        for member in self._members:
            self._hear(member, HANG)
        return answer

    def is_whole(self) -> bool:
        """Return whether the other processes live. They end with the thread that started them."""
        return all(member.process.poll() is None for member in self._members)

    def close(self) -> None:
        """End the other processes."""
        for member in self._members:
            member.process.kill()
            member.process.wait()
            member.link.close()
            assert member.process.stdin is not None
            with suppress(OSError):
                member.process.stdin.close()
        self._members = []
        self._team = None
        with suppress(FileNotFoundError):  # the team's connection may have removed a named file
            self._meeting.close()

    def _start(self, rank: int) -> _Member:
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(HANG), 0))
        with theirs:
            # -P: the current folder does not come before the standard library, but at its place in our path.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "fedssl.clients.team_member", str(theirs.fileno())],
                stdin=subprocess.PIPE,  # its end is this process's end
                pass_fds=[theirs.fileno(), self._meeting.fileno()],
                env=os.environ | {"PYTHONPATH": path_for_other_processes()},
                start_new_session=True,  # what ends this process's group must not end the one that cleans up
            )
        link = Connection(ours.detach())
        link.send((meeting_place(self._meeting), rank, self._devices))
        return _Member(process, link)

    def _send(self, member: _Member, order: bytes) -> None:
        try:
            member.link.send_bytes(order)
        except BlockingIOError as error:
            raise TeamLost(
                f"a process of the client's team did not take its work within {HANG:g} s"
            ) from error
        except OSError as error:
            raise TeamLost(f"a process of the client's team ended: {_how(member)}") from error

    def _hear(self, member: _Member, patience: float) -> None:
        """Wait for a process's word that it is ready or done."""
        try:
            if not member.link.poll(patience):
                raise TeamLost(
                    f"a process of the client's team did not answer within {patience:g} s"
                )
            said = member.link.recv()
        except (OSError, EOFError) as error:
            raise TeamLost(f"a process of the client's team ended: {_how(member)}") from error
        if said is not None:
            raise TeamLost(f"a process of the client's team failed: {said}")

    def _last_words(self, member: _Member) -> str | None:
        """Return why a process ended or failed, if it has; a process that goes on waits for this one's sums."""
        try:
            while member.link.poll(0.2):
                said = member.link.recv()
                if said is not None:
                    return str(said)
        except (OSError, EOFError):
            return _how(member)
        return None


def _how(member: _Member) -> str:
    """Return how a process that has closed its link ended."""
    with suppress(subprocess.TimeoutExpired):
        return f"exit status {member.process.wait(5)}"
    return "it closed its connection"


_teams: dict[tuple[str, ...], TeamProcesses] = {}
"""The team of this process, by its devices: one at most."""


def run_in_team(
    devices: Sequence[str], message: Message, context: Context, work: Callable[[], Answer]
) -> Answer:
    """Return what `work` returns, done by a team of processes; see `TeamProcesses.run`.

    The team stays for the next client. After any error it ends, and the next client gets a new one.
    """
    key = tuple(devices)
    if key not in _teams or not _teams[key].is_whole():
        end_team()
        _teams[key] = TeamProcesses(devices)
    try:
        return _teams[key].run(message, context, work)
    except BaseException:
        end_team()
        raise


@atexit.register
def end_team() -> None:
    """End the team of this process, if there is one."""
    while _teams:
        _teams.popitem()[1].close()
