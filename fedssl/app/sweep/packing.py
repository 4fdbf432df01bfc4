"""How many runs go side by side, on which engine, and which GPUs each may see."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.app.simulation import plan_here, room_here
from fedssl.core.errors import InputError
from fedssl.engine.plan import WorkerPlan
from fedssl.experiment.experiment import Experiment

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Packing:
    """How the runs of a sweep share a machine.

    Args:
        gpus: One entry for each run that goes at a time: the GPUs that it may see; None: all.
        warning: What whoever asked for it should know; empty if nothing.
    """

    gpus: tuple[str | None, ...]
    warning: str = ""

    @property
    def jobs(self) -> int:
        """Runs at a time; a single one has the engine that its file names, and with it the whole machine."""
        return len(self.gpus)

    def as_run(self, experiment: Experiment) -> Experiment:
        """Return an experiment with the engine on which it runs here, which changes no result."""
        if self.jobs == 1:
            return experiment
        serial = experiment.engine.model_copy(update={"kind": "serial"})
        return experiment.model_copy(update={"engine": serial})


def pack(experiments: Sequence[Experiment], jobs: int | None = None) -> Packing:
    """Decide how many runs go at a time.

    Side by side wherever that keeps as many cores or GPUs busy as one run alone would, for it costs nothing to share
    them so: with fewer runs left than one of them has use for workers, one after the other.

    Args:
        experiments: What is left to run; at least one.
        jobs: How many at a time; None: as many as the machine has room for.

    Raises:
        InputError: The machine has no room for so many, or their engine runs one at a time.
    """
    kinds = list({experiment.engine: experiment for experiment in experiments}.values())
    alone = next((e for e in kinds if e.engine.kind == "flower" or e.engine.address), None)
    if alone is not None:
        if (jobs or 1) > 1:
            what = f"a cluster at {alone.engine.address}" if alone.engine.address else "flower"
            raise InputError("--jobs", f"is {jobs}, but {what} runs one at a time", "leave it out")
        return Packing((None,))
    wanted = min(jobs or len(experiments), len(experiments))
    room = min((room_here(each, jobs and wanted) for each in kinds), key=lambda plan: plan.workers)
    count = min(wanted, room.workers)
    if count == 1 or (jobs is None and count < max(len(plan_here(each)) for each in kinds)):
        return Packing((None,))
    return Packing(visible_gpus(room, count), room.warning)


def visible_gpus(room: WorkerPlan, count: int) -> tuple[str | None, ...]:
    """Return which GPUs each of so many runs may see: its share, a GPU to several runs where the share is below one."""
    if room.gpus == 0:
        return (None,) * count
    if room.gpus >= 1:
        each = int(room.gpus)
        return tuple(_names(range(i * each, (i + 1) * each)) for i in range(count))
    on_one = int(1 / room.gpus + 1e-9)
    return tuple(_names([i // on_one]) for i in range(count))


def _names(numbers: Sequence[int]) -> str:
    """Return GPUs by the names that they have in the environment, if it names them; they are counted from those."""
    names = os.environ.get(VISIBLE, "").split(",")
    return ",".join(names[i] if names != [""] else str(i) for i in numbers)
