"""Decides how many runs go side by side, on which engine, and which GPUs each run may use."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.app.engine_choice import on_engine
from fedssl.app.simulation import count_runs_that_fit, plan_workers_here
from fedssl.core.errors import InputError
from fedssl.engine.plan import WorkerPlan
from fedssl.experiment.experiment import Experiment

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Environment variable that names the GPUs a process may use."""


@dataclass(frozen=True)
class Packing:
    """A plan of how the runs of a sweep share a machine.

    Args:
        gpus: For each run that goes at a time, the GPUs that the run may use; None: all GPUs.
        warning: A warning for the user; empty if there is none.
    """

    gpus: tuple[str | None, ...]
    warning: str = ""

    @property
    def jobs(self) -> int:
        """Number of runs at a time. A single run has the engine that its file names, and so the whole machine."""
        return len(self.gpus)

    def as_run(self, experiment: Experiment) -> Experiment:
        """Return an experiment with the engine on which the sweep runs it; the engine does not change results."""
        if self.jobs == 1:
            return experiment
        return on_engine(experiment, "serial")


ONE_BY_ONE = Packing((None,))
"""The runs go one after the other, each with the engine that its file names."""


def pack(experiments: Sequence[Experiment], jobs: int | None = None) -> Packing:
    """Decide how many runs go at a time.

    Runs go side by side if they keep at least as many cores or GPUs busy as one run alone would. If fewer runs are left
    than one run has use for workers, runs go one after another.

    Args:
        experiments: The experiments that are left to run; at least one.
        jobs: Number of runs at a time; None: as many as the machine has room for.

    Raises:
        InputError: The machine has no room for `jobs` runs, or an engine runs only one run at a time.
    """
    kinds = list({experiment.engine: experiment for experiment in experiments}.values())
    alone = next((e for e in kinds if e.engine.kind == "flower" or e.engine.address), None)
    if alone is not None:
        if (jobs or 1) > 1:
            what = f"a cluster at {alone.engine.address}" if alone.engine.address else "flower"
            raise InputError("--jobs", f"is {jobs}, but {what} runs one at a time", "leave it out")
        return ONE_BY_ONE
    wanted = min(jobs or len(experiments), len(experiments))
    room = min(
        (count_runs_that_fit(each, jobs and wanted) for each in kinds),
        key=lambda plan: plan.workers,
    )
    count = min(wanted, room.workers)
    if count == 1 or (jobs is None and count < max(len(plan_workers_here(each)) for each in kinds)):
        return ONE_BY_ONE
    return Packing(visible_gpus(room, count), room.warning)


def visible_gpus(room: WorkerPlan, count: int) -> tuple[str | None, ...]:
    """Return the GPUs that each of `count` runs may use; several runs share a GPU if a run's share is below one GPU."""
    if room.gpus == 0:
        return (None,) * count
    if room.gpus >= 1:
        each = int(room.gpus)
        return tuple(_names(range(i * each, (i + 1) * each)) for i in range(count))
    on_one = int(1 / room.gpus + 1e-9)
    return tuple(_names([i // on_one]) for i in range(count))


def _names(numbers: Sequence[int]) -> str:
    """Return the names of GPUs by their numbers; if the environment names GPUs, numbers count these names."""
    names = os.environ.get(VISIBLE, "").split(",")
    return ",".join(names[i] if names != [""] else str(i) for i in numbers)
