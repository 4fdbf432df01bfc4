"""fedssl on one of its engines, run as by `fedssl run`; the variant is the engine's settings, or none for the default."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.contenders.job import Job, Stopwatch
from fedssl.app.simulation import Engine, check_experiment
from fedssl.record.rows import Observer, RoundEnd


class _Watched(Observer):
    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch

    def round_ended(self, end: RoundEnd) -> None:
        """Note the time."""
        self._watch.round_ended()


def run(job: Job, watch: Stopwatch, **engine: Any) -> dict[str, Tensor]:
    """Run the job, and return the final weights.

    Raises:
        InputError: This version of fedssl does not know a setting of the variant.
    """
    if engine:
        engine["workers"] = job.workers
    experiment = job.experiment(**engine)
    check_experiment(experiment)
    with Engine() as machine:
        outcome = machine.run(experiment, [_Watched(watch)])
    return {name: torch.from_numpy(array) for name, array in outcome.model.arrays.items()}
