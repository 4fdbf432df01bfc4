"""The connection between the processes of a team: they meet in a folder and sum tensors up."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fedssl.training.team import Team

HANG = 60.0
"""A process that waits this many seconds for another one gives up. All have the same work between two sums."""

LOOPBACK = "127.0.0.1"


def join(place: Path, rank: int, devices: Sequence[str], patience: float = HANG) -> Team:
    """Return this process's end of a team, once all its processes have joined; gloo reads `place` no more then.

    Processes that each have a GPU of their own use NCCL. All others use gloo, over connections of this machine to itself.

    Args:
        place: A file, not there yet, in a folder that all processes of the team see.
        rank: Number of this process, from 0.
        devices: Device of each process.
        patience: Seconds that this process waits for another one, here and in every sum.

    Raises:
        RuntimeError: Not all processes joined in time. The team's sums raise it, too, if a process is lost or hangs.
    """
    group = _connected(place, rank, devices, timedelta(seconds=patience))

    def reduce(tensor: Tensor) -> None:
        group.allreduce([tensor]).wait()

    team = Team(rank, len(devices), reduce)
    team.sum(torch.zeros(1, device=devices[rank]))
    return team


def uses_nccl(devices: Sequence[str]) -> bool:
    """Return whether each process has a GPU of its own."""
    return len(set(devices)) == len(devices) and all(d.startswith("cuda") for d in devices)


def _connected(place: Path, rank: int, devices: Sequence[str], patience: timedelta) -> Any:
    """Return a process group. It is no default group, so that nothing else in the process meets it."""
    size = len(devices)
    if devices[rank].startswith("cuda"):
        torch.cuda.set_device(devices[rank])
    store = dist.FileStore(str(place), size)  # type: ignore[attr-defined]
    store.set_timeout(patience)
    if uses_nccl(devices):
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = patience
        return dist.ProcessGroupNCCL(store, rank, size, nccl)
    gloo = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = patience
    gloo._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    return dist.ProcessGroupGloo(store, rank, size, gloo)
