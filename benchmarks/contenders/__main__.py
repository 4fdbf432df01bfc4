"""The process of one contender: `python -m benchmarks.contenders JOB`, where JOB is JSON."""

import importlib
import json
import sys
from pathlib import Path

import torch

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.job import Job, Stopwatch
from benchmarks.workloads import Plain
from fedssl.core.errors import InputError


def main(text: str) -> None:
    """Run a job, and write its times, memory and final accuracy, or why it cannot be run."""
    job = Job(**json.loads(text))
    torch.set_num_threads(1)
    contender, watch = CONTENDERS[job.contender], Stopwatch(job)
    module = importlib.import_module(f"benchmarks.contenders.{contender.module}")
    try:
        weights = module.run(job, watch, **contender.variant)
    except InputError as error:
        Path(job.result).write_text(json.dumps({"left_out": str(error)}))
        return
    if weights is None:  # a further process of torchrun: the first one writes the result
        return
    if job.weights is not None:
        torch.save(weights, job.weights)
    outcome = {
        "ends": watch.ends,
        "driver_mib": watch.driver_mib,
        "all_mib": watch.all_mib,
        "accuracy": Plain(job.experiment()).accuracy(weights),
    }
    Path(job.result).write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(sys.argv[1])
