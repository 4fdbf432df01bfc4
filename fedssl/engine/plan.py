"""How many workers, and what each gets: arithmetic over cores and GPUs, without Ray."""

import math
import os
from dataclasses import dataclass
from typing import Literal

from fedssl.errors import InputError


@dataclass(frozen=True)
class WorkerPlan:
    """Workers and the share of the machine that each one is given.

    Args:
        workers: Number of actors.
        cpus: Cores of each, may be a fraction.
        gpus: GPUs of each, may be a fraction.
    """

    workers: int
    cpus: float
    gpus: float


def available_cores() -> int:
    """Return the number of cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan_workers(
    workers: int | Literal["auto"],
    gpus_per_worker: float | None,
    cpus: float,
    gpus: float,
    most: int | None = None,
) -> WorkerPlan:
    """Decide how many workers run and what each is given.

    ``auto`` takes as many as fit: one a GPU slot where there are GPUs (no more than cores), else one a core. A given
    number of workers shares the cores when there are fewer of them, and the GPUs when no share was asked for.

    Args:
        workers: Number of workers, or ``"auto"``.
        gpus_per_worker: GPUs of each; below 1 several share one; None takes what there is.
        cpus: Cores there are.
        gpus: GPUs there are.
        most: More workers than this are of no use to ``auto``, such as the clients of a round.

    Raises:
        InputError: More GPUs are asked for than there are, with the arithmetic.
    """
    slots = _gpu_slots(gpus_per_worker if gpus_per_worker is not None else 1.0, gpus)
    if gpus_per_worker and slots == 0:
        raise InputError(
            "engine.gpus_per_worker",
            f"is {gpus_per_worker:g}, but there are {gpus:g} GPUs here",
            "set engine.gpus_per_worker = 0 to run on cores",
        )
    if workers == "auto":
        count = max(1, min(slots or int(cpus), int(cpus), most or int(cpus)))
    else:
        count = workers
    if gpus_per_worker is None:
        each = 0.0 if gpus == 0 else min(1.0, _floor4(1 / math.ceil(count / gpus)))
    else:
        each = gpus_per_worker
        if each and count > slots:
            raise InputError(
                "engine.workers",
                f"{count} workers x {each:g} GPUs = {count * each:g} do not fit {gpus:g} GPUs",
                f"at most {slots} workers",
            )
    return WorkerPlan(count, min(1.0, _floor4(cpus / count)), each)


def _gpu_slots(share: float, gpus: float) -> int:
    """Return how many workers of a share fit; no share is spread over two GPUs."""
    if share == 0 or gpus == 0:
        return 0
    return int(gpus // share) if share >= 1 else int(gpus) * int(1 / share + 1e-9)


def _floor4(value: float) -> float:
    """Round down to Ray's granularity of 1/10,000."""
    return math.floor(value * 10_000) / 10_000
