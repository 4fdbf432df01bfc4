"""How many workers, and what each gets: arithmetic over cores, GPUs and memory, without Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fedssl.core.errors import InputError
from fedssl.core.machine import MB

MANY = 1_000_000
"""Workers where nothing limits them."""


@dataclass(frozen=True)
class Node:
    """What one machine has.

    Args:
        cpus: Cores.
        gpus: GPUs.
        memory: Bytes that workers may use.
    """

    cpus: float
    gpus: float = 0.0
    memory: float = math.inf


@dataclass(frozen=True)
class Wish:
    """What workers are asked for.

    Args:
        workers: Number of workers, or ``"auto"``.
        gpus_per_worker: GPUs of each; below 1 several share one; None takes what there is.
        cpu_workers: Workers without a GPU beside those.
        memory_per_worker: Bytes of each; None: nobody counts.
    """

    workers: int | Literal["auto"] = "auto"
    gpus_per_worker: float | None = None
    cpu_workers: int = 0
    memory_per_worker: float | None = None


AS_MANY_AS_FIT = Wish()


@dataclass(frozen=True)
class WorkerPlan:
    """Workers and the share of the machines that each one is given.

    Args:
        workers: Number of actors that get a share of the GPUs, or of all if there are none.
        cpus: Cores of each, may be a fraction.
        gpus: GPUs of each of them, may be a fraction.
        cpu_workers: Further actors, without a GPU.
        memory: Bytes of each; 0: nobody counts.
        warning: What whoever asked for it should know; empty if nothing.
    """

    workers: int
    cpus: float
    gpus: float
    cpu_workers: int = 0
    memory: float = 0.0
    warning: str = ""

    def __len__(self) -> int:
        return self.workers + self.cpu_workers

    def describe(self) -> str:
        """Say it in a line."""
        parts = [f"{self.workers} workers, {self.cpus:g} cores and {self.gpus:g} GPUs each"]
        if self.cpu_workers:
            parts.append(f"{self.cpu_workers} more without a GPU")
        if self.memory:
            parts.append(f"{self.memory / MB:,.0f} MB each")
        return "; ".join([*parts, self.warning] if self.warning else parts)

    def gpus_of(self, worker: int) -> float:
        """Return the GPUs of a worker, by number."""
        return self.gpus if worker < self.workers else 0.0


def plan_workers(wish: Wish, nodes: Sequence[Node], most: int | None = None) -> WorkerPlan:
    """Decide how many workers run and what each is given.

    ``auto`` takes as many as fit: one a GPU slot where there are GPUs (no more than cores), else one a core, and no
    more than there is memory for. A given number of workers is cut to what is of use; it shares the cores when there are
    fewer of them, and the GPUs when no share was asked for. No share is spread over two GPUs or two machines.

    Args:
        wish: What is asked for.
        nodes: What there is.
        most: No more workers than this are of use: the clients of a round. None: there is no limit.

    Raises:
        InputError: More GPUs or memory are asked for than there are, with the arithmetic.
    """
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    share = wish.gpus_per_worker
    slots = _gpu_slots(share if share is not None else 1.0, nodes)
    if share and slots == 0:
        raise InputError(
            "engine.gpus_per_worker",
            f"is {share:g}, but there are {gpus:g} GPUs here",
            "set engine.gpus_per_worker = 0 to run on cores",
        )
    fit = _memory_slots(wish.memory_per_worker, nodes)
    wanted = 0.0 if gpus == 0 else 1.0 if share is None else share
    if wish.workers == "auto":
        rooms = [_room(node, wanted, wish.memory_per_worker) for node in nodes]
        together = sum(min(int(node.cpus), room) for node, room in zip(nodes, rooms, strict=True))
        count = max(1, min(together, most or together, fit - wish.cpu_workers))
    else:
        count = min(wish.workers, most or wish.workers)
    cpu_workers = min(wish.cpu_workers, max(0, most - count)) if most else wish.cpu_workers
    if share is None:
        share = 0.0 if gpus == 0 else min(1.0, _floor4(1 / math.ceil(count / gpus)))
    elif share and count > slots:
        raise InputError(
            "engine.workers",
            f"{count} workers x {share:g} GPUs = {count * share:g} do not fit {gpus:g} GPUs",
            f"at most {slots} workers",
        )
    total = count + cpu_workers
    _check_memory(total, wish.memory_per_worker, fit, nodes)
    on_gpus = 0.0 if cpu_workers else share  # those without one go wherever there are cores
    rooms = [_room(node, on_gpus, wish.memory_per_worker) for node in nodes]
    each = _core_share(total, nodes, rooms)
    warnings = []
    asked = (count if wish.workers == "auto" else wish.workers) + wish.cpu_workers
    if total < asked:
        warnings.append(
            f"{asked} workers were asked for, and a round has {most} clients: {total} start"
        )
    if total > cpus:
        warnings.append(
            f"{total} workers share {cpus:g} cores: each gets {each:g}, and all together do no more"
        )
    return WorkerPlan(
        count, each, share, cpu_workers, wish.memory_per_worker or 0.0, "; ".join(warnings)
    )


def slots_on_a_gpu(client_bytes: float, gpu_bytes: float, reserve: float = 0.1) -> int:
    """Return how many workers fit a GPU by what one client was measured to take.

    Args:
        client_bytes: Peak of a worker that trains one client, its CUDA context included.
        gpu_bytes: Memory of the GPU.
        reserve: Share that is left free, for clients are not all alike.

    Raises:
        InputError: Not even one fits.
    """
    usable = gpu_bytes * (1 - reserve)
    slots = int(usable // client_bytes)
    if slots < 1:
        raise InputError(
            "engine.memory_per_worker",
            f"one client took {client_bytes / MB:,.0f} MB, and a GPU has {usable / MB:,.0f} MB for it",
            "lower train.batch_size, or take a smaller model",
        )
    return slots


def _check_memory(count: int, each: float | None, fit: int, nodes: Sequence[Node]) -> None:
    if each is None or count <= fit:
        return
    there = sum(node.memory for node in nodes)
    raise InputError(
        "engine.memory_per_worker",
        f"{count} workers x {each / MB:,.0f} MB = {count * each / MB:,.0f} MB do not fit {there / MB:,.0f} MB",
        f"at most {fit} workers" if fit else "lower it",
    )


def _memory_slots(each: float | None, nodes: Sequence[Node]) -> int:
    if each is None:
        return MANY
    return sum(int(min(node.memory / each, MANY)) for node in nodes)


def _gpu_slots(share: float, nodes: Sequence[Node]) -> int:
    if share == 0:
        return 0
    if share >= 1:
        return sum(int(node.gpus // share) for node in nodes)
    return sum(int(node.gpus) for node in nodes) * int(1 / share + 1e-9)


def _room(node: Node, share: float, memory: float | None) -> int:
    """Return how many workers of a share of a GPU a machine has room for, whatever its cores."""
    gpus = _gpu_slots(share, [node]) if share else MANY
    return min(gpus, _memory_slots(memory, [node]))


def _core_share(count: int, nodes: Sequence[Node], rooms: Sequence[int]) -> float:
    """Return the largest share of a core, at most one, of which the machines have as many as are wanted."""
    shares = {1.0} | {_floor4(node.cpus / k) for node in nodes for k in range(1, count + 1)}
    fitting = (
        share
        for share in shares
        if 0 < share <= 1
        and sum(
            min(int(node.cpus / share + 1e-9), room)
            for node, room in zip(nodes, rooms, strict=True)
        )
        >= count
    )
    return max(fitting, default=0.0001)


def _floor4(value: float) -> float:
    """Round down to Ray's granularity of 1/10,000."""
    return math.floor(value * 10_000) / 10_000
