"""The connection between the processes of a team: they meet by a file and sum tensors up."""

import os
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from torch import Tensor

from fedssl.training.team import SumLost, Team

HANG = 60.0
"""A process that waits this many seconds for another one gives up. All have the same work between two sums."""

DESCRIPTORS = Path("/proc/self/fd")
"""On Linux, this folder has a path for each file that a process has open, also for a file without a name."""

LOOPBACK = "127.0.0.1"


def meeting_file() -> IO[bytes]:
    """Return a new file by which the processes of a team meet.

    On Linux it has no name, so nothing is left of it however the processes end. Elsewhere, closing it removes it.
    """
    if DESCRIPTORS.is_dir():
        return tempfile.TemporaryFile()
    return tempfile.NamedTemporaryFile(prefix="fedssl-team-")


def meeting_place(file: IO[bytes]) -> str:
    """Return the path by which a process opens a meeting file; on Linux, the process must have inherited the file."""
    return str(DESCRIPTORS / str(file.fileno())) if DESCRIPTORS.is_dir() else file.name


def join(place: str, rank: int, devices: Sequence[str], patience: float = HANG) -> Team:
    """Return this process's end of a team, once all its processes have joined.

    Processes that each have a GPU of their own use NCCL. All others use gloo, over connections of this machine to itself.

    Args:
        place: Path of an empty file that all processes of the team see; see `meeting_place`.
        rank: Number of this process, from 0.
        devices: Device of each process.
        patience: Seconds that this process waits for another one, here and in every sum.

    Raises:
        RuntimeError: Not all processes joined in time. The team's sums raise `SumLost` if a process is lost or hangs.
    """
    group = _connected(place, rank, devices, timedelta(seconds=patience))

    def reduce(tensor: Tensor) -> None:
        try:
            group.allreduce([tensor]).wait()
        except RuntimeError as error:
            raise SumLost(str(error)) from error

    team = Team(rank, len(devices), reduce)
    team.sum(torch.zeros(1, device=devices[rank]))
    return team


def _uses_nccl(devices: Sequence[str]) -> bool:
    """Return whether each process has a GPU of its own."""
    return len(set(devices)) == len(devices) and all(d.startswith("cuda") for d in devices)


def _connected(place: str, rank: int, devices: Sequence[str], patience: timedelta) -> Any:
    """Return a process group. It is no default group, so that nothing else in the process meets it."""
    size = len(devices)
    if devices[rank].startswith("cuda"):
        torch.cuda.set_device(devices[rank])
    store = dist.FileStore(place, size)  # type: ignore[attr-defined]
    store.set_timeout(patience)
    if _uses_nccl(devices):
        # A lost process must raise here, and must not end this process.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = patience
        return dist.ProcessGroupNCCL(store, rank, size, nccl)
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = patience
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    return dist.ProcessGroupGloo(store, rank, size, gloo)
