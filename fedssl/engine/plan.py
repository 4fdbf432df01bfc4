"""How many workers run and what each of them gets: arithmetic over cores, GPUs and memory, without Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedssl.core.errors import InputError
from fedssl.core.machine import MB

MANY = 1_000_000
"""A resource that does not limit the workers counts as room for this many."""


@dataclass(frozen=True)
class Node:
    """The resources of one machine.

    Args:
        cpus: Number of cores.
        gpus: Number of GPUs.
        memory: Bytes that workers may use.
    """

    cpus: float
    gpus: float = 0.0
    memory: float = math.inf


@dataclass(frozen=True)
class Wish:
    """The workers that an experiment asks for.

    Args:
        workers: Number of workers, or ``"auto"``.
        gpus_per_worker: GPUs of each worker; below 1, several workers share a GPU; None: the workers share all GPUs.
        cpu_workers: Number of further workers without a GPU.
        memory_per_worker: Bytes of memory for each worker; None: memory is not counted.
        cpus_per_client: Processes that train a client together, where a worker has no GPU.
    """

    workers: int | Literal["auto"] = "auto"
    gpus_per_worker: float | None = None
    cpu_workers: int = 0
    memory_per_worker: float | None = None
    cpus_per_client: int = 1


AS_MANY_AS_FIT = Wish()


@dataclass(frozen=True)
class WorkerPlan:
    """The workers, and the share of the machines that each worker gets.

    Args:
        workers: Number of workers that get the share `gpus` each, which is 0 where there are no GPUs.
        cpus: Cores of each worker, possibly a fraction.
        gpus: GPUs of each of the `workers`, possibly a fraction.
        cpu_workers: Number of further workers without a GPU.
        memory: Bytes of memory for each worker; 0: memory is not counted.
        warning: A warning to show the user; empty if there is nothing to warn of.
        cpus_per_client: Processes that train a client together, where a worker has no GPU.
    """

    workers: int
    cpus: float
    gpus: float
    cpu_workers: int = 0
    memory: float = 0.0
    warning: str = ""
    cpus_per_client: int = 1

    def __len__(self) -> int:
        return self.workers + self.cpu_workers

    def describe(self) -> str:
        """Return the plan as one line for people."""
        parts = [f"{self.workers} workers, {self.cpus:g} cores and {self.gpus:g} GPUs each"]
        if self.cpu_workers:
            parts.append(f"{self.cpu_workers} more without a GPU")
        if self.memory:
            parts.append(f"{self.memory / MB:,.0f} MB each")
        together = int(self.gpus) if self.gpus > 1 else self.cpus_per_client
        if together > 1:
            parts.append(f"{together} processes train a client together")
        return "; ".join([*parts, self.warning] if self.warning else parts)

    def gpus_of(self, worker: int) -> float:
        """Return how many GPUs the worker with a number gets."""
        return self.gpus if worker < self.workers else 0.0


def plan_workers(wish: Wish, nodes: Sequence[Node], most: int | None = None) -> WorkerPlan:
    """Decide how many workers run and what each of them gets.

    ``auto`` takes as many workers as fit: one for each GPU slot where there are GPUs (but no more than cores), else one
    for each core, and no more than the memory allows. A given number of workers is cut to the number that is of use.
    They share the cores if there are fewer cores than workers, and the GPUs if the wish names no share. No worker's
    share is spread over two GPUs or two machines.

    Args:
        wish: The workers that the experiment asks for.
        nodes: The machines.
        most: No more workers than this are of use: the clients of a round. None: there is no limit.

    Raises:
        InputError: The wish asks for more cores, GPUs or memory than there are. The error shows the arithmetic.
    """
    # A worker whose clients have several processes takes as many cores: count in such bundles of cores.
    bundle = wish.cpus_per_client
    if bundle > 1:
        most_cores = max(int(node.cpus) for node in nodes)
        if bundle > most_cores:
            raise InputError(
                "engine.cpus_per_client",
                f"is {bundle}, but no machine here has more than {most_cores} cores",
                f"at most {most_cores}",
            )
        nodes = [replace(node, cpus=node.cpus // bundle) for node in nodes]
    # Refuse a share of a GPU that fits no GPU.
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    share = wish.gpus_per_worker
    slots = _count_gpu_slots(share if share is not None else 1.0, nodes)
    if share and slots == 0:
        raise InputError(
            "engine.gpus_per_worker",
            f"is {share:g}, but there are {gpus:g} GPUs here",
            "set engine.gpus_per_worker = 0 to run on cores",
        )
    # Count the workers: for "auto", as many as cores, GPUs and memory have room for on each machine.
    fit = _count_memory_slots(wish.memory_per_worker, nodes)
    wanted = 0.0 if gpus == 0 else 1.0 if share is None else share
    if bundle > 1 and wanted and not wish.cpu_workers:
        raise InputError(
            "engine.cpus_per_client",
            f"is {bundle}, but clients train on GPUs here",
            "set engine.gpus_per_worker = 0 to train on cores, or to 2 or more for several GPUs in a client",
        )
    if wish.workers == "auto":
        rooms = [_count_workers_that_fit(node, wanted, wish.memory_per_worker) for node in nodes]
        together = sum(min(int(node.cpus), room) for node, room in zip(nodes, rooms, strict=True))
        count = max(1, min(together, most or together, fit - wish.cpu_workers))
    else:
        count = min(wish.workers, most or wish.workers)
    cpu_workers = min(wish.cpu_workers, max(0, most - count)) if most else wish.cpu_workers
    # Find each worker's share of a GPU: an even one, unless the wish names it.
    if share is None:
        share = 0.0 if gpus == 0 else min(1.0, _round_down(1 / math.ceil(count / gpus)))
    elif share and count > slots:
        raise InputError(
            "engine.workers",
            f"{count} workers x {share:g} GPUs = {count * share:g} do not fit {gpus:g} GPUs",
            f"at most {slots} workers",
        )
    # Find each worker's share of the cores, which all workers have in common.
    total = count + cpu_workers
    _refuse_too_little_memory(total, wish.memory_per_worker, fit, nodes)
    on_gpus = 0.0 if cpu_workers else share  # workers without a GPU run wherever there are cores
    rooms = [_count_workers_that_fit(node, on_gpus, wish.memory_per_worker) for node in nodes]
    each = _largest_core_share(total, nodes, rooms)
    # Warn where the user gets fewer workers, or less of a core for each, than expected.
    warnings = []
    asked = (count if wish.workers == "auto" else wish.workers) + wish.cpu_workers
    if total < asked:
        warnings.append(
            f"{asked} workers were asked for, but a round has only {most} clients: {total} start"
        )
    if total > cpus:
        warnings.append(
            f"{total} workers share {cpus * bundle:g} cores: each gets {each * bundle:g}, and together they do no more work"
        )
    memory = wish.memory_per_worker or 0.0
    return WorkerPlan(count, each * bundle, share, cpu_workers, memory, "; ".join(warnings), bundle)


def devices_of_worker(gpus: float, cpus_per_client: int, has_cuda: bool) -> str:
    """Return the device of a worker, or the devices of a client's team with commas between them.

    Args:
        gpus: GPUs that the worker has, possibly a fraction of one.
        cpus_per_client: Processes that train a client together on cores.
        has_cuda: Whether torch can use the GPUs; if not, cores stand in for them.
    """
    if gpus > 1:
        return ",".join(f"cuda:{gpu}" if has_cuda else "cpu" for gpu in range(int(gpus)))
    if gpus and has_cuda:
        return "cuda:0"
    return ",".join(["cpu"] * cpus_per_client)


def slots_on_a_gpu(client_bytes: float, gpu_bytes: float, reserve: float = 0.1) -> int:
    """Return how many workers fit on a GPU, by the memory that one client was measured to take.

    Args:
        client_bytes: Peak memory (bytes) of a worker that trains one client, with its CUDA context.
        gpu_bytes: Memory of the GPU (bytes).
        reserve: Share of the GPU's memory that stays free, because clients differ.

    Raises:
        InputError: Not even one worker fits.
    """
    usable = gpu_bytes * (1 - reserve)
    slots = int(usable // client_bytes)
    if slots < 1:
        raise InputError(
            "engine.memory_per_worker",
            f"one client took {client_bytes / MB:,.0f} MB, but a GPU has only {usable / MB:,.0f} MB for workers",
            "lower train.batch_size, or take a smaller model",
        )
    return slots


def _refuse_too_little_memory(
    count: int, each: float | None, fit: int, nodes: Sequence[Node]
) -> None:
    if each is None or count <= fit:
        return
    there = sum(node.memory for node in nodes)
    raise InputError(
        "engine.memory_per_worker",
        f"{count} workers x {each / MB:,.0f} MB = {count * each / MB:,.0f} MB do not fit {there / MB:,.0f} MB",
        f"at most {fit} workers" if fit else "lower engine.memory_per_worker",
    )


def _count_memory_slots(each: float | None, nodes: Sequence[Node]) -> int:
    if each is None:
        return MANY
    return sum(int(min(node.memory / each, MANY)) for node in nodes)


def _count_gpu_slots(share: float, nodes: Sequence[Node]) -> int:
    if share == 0:
        return 0
    if share >= 1:
        return sum(int(node.gpus // share) for node in nodes)
    return sum(int(node.gpus) for node in nodes) * int(1 / share + 1e-9)


def _count_workers_that_fit(node: Node, share: float, memory: float | None) -> int:
    """Return for how many workers a machine has GPUs and memory, whatever its cores."""
    gpus = _count_gpu_slots(share, [node]) if share else MANY
    return min(gpus, _count_memory_slots(memory, [node]))


def _largest_core_share(count: int, nodes: Sequence[Node], rooms: Sequence[int]) -> float:
    """Return the largest share of a core, at most one, such that `count` workers with that share fit the machines."""
    shares = {1.0} | {_round_down(node.cpus / k) for node in nodes for k in range(1, count + 1)}
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


def _round_down(value: float) -> float:
    """Round down to Ray's granularity of 1/10,000."""
    return math.floor(value * 10_000) / 10_000
