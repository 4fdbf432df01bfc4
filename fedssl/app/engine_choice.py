"""Choose the engine of an experiment that leaves it open (`engine.kind = "auto"`).

Ray's workers take some seconds to start. They pay if the run is long enough, and if there is more than one of them. The
run's length follows from sizes alone: no step is tried. A wrong estimate costs some seconds and no bit, because all
engines give the same bits.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedssl.data.federation import Federation
from fedssl.exchange.census import Census
from fedssl.experiment.experiment import Experiment, PhasePlan
from fedssl.models.cost import multiplications
from fedssl.server.virtual_time import steps_of, times_asked, work_of
from fedssl.strategies.base import strategy_of

START = 5.0
"""Ray takes about this many seconds longer to start than the serial engine (two cores)."""

PROCESS = 3.0
"""A process for runs beside other runs takes about this many seconds to start; it imports torch."""

STEP = 1.5e-3
"""A step takes about this many seconds beside the passes over its images: batches, views, the optimizer."""

IMAGE = 4e-5
"""An image's views take about this many seconds."""

RATE = 1e10
"""A core makes about this many multiplications in a second, in convolutions of small images."""

BOTH_WAYS = 3
"""A pass with gradients takes as long as three passes without gradients."""


@dataclass(frozen=True)
class Choice:
    """An engine for an experiment, and why.

    Args:
        experiment: The experiment, whose `engine.kind` is the chosen engine.
        reason: Why, for people, after the word "because"; empty if the experiment's file names the engine.
    """

    experiment: Experiment
    reason: str = ""


def choose_engine(
    experiment: Experiment, federation: Federation, count_workers: Callable[[], int]
) -> Choice:
    """Return an experiment with the engine on which it should run.

    Args:
        experiment: The experiment; the engine that its file names is kept.
        federation: The federation that it describes.
        count_workers: Returns the number of workers for which this machine has room. It is asked only if the number matters:
            counting may train a client, and the room of a cluster is not known here.
    """
    engine = experiment.engine
    if engine.kind != "auto":
        return Choice(experiment)
    asked = {"workers": "auto", "cpu_workers": 0, "address": None, "memory_per_worker": None}
    named = [name for name, default in asked.items() if getattr(engine, name) != default]
    if named:
        return _chosen(experiment, "ray", f"engine.{named[0]} is set")
    if importlib.util.find_spec("ray") is None:
        return _chosen(experiment, "serial", "ray is not installed")
    workers = count_workers()
    if workers < 2:
        return _chosen(experiment, "serial", "there is room for one worker")
    seconds = estimate_seconds(experiment, federation)
    saved = seconds * (1 - 1 / workers)
    pays = saved > START
    return _chosen(
        experiment,
        "ray" if pays else "serial",
        f"the clients train for about {_rounded(seconds)} s on one core; {workers} workers would save {_rounded(saved)} s, "
        f"{'and' if pays else 'but'} take {START:g} s to start",
    )


def estimate_seconds(experiment: Experiment, federation: Federation) -> float:
    """Return about how many seconds the clients of a whole run train, one after the other on one core."""
    census = Census.of_simulation(federation)
    return sum(_seconds_of_phase(phase, federation, census) for phase in experiment.plans)


def _seconds_of_phase(phase: PhasePlan, federation: Federation, census: Census) -> float:
    spec = federation.data.spec
    network = phase.model.build(spec.shape, spec.num_classes)
    image = IMAGE + BOTH_WAYS * multiplications(network, spec.shape) / RATE
    client = STEP * steps_of(phase, census) + image * work_of(phase, census)
    asked = times_asked(phase, census)
    share = phase.federation.sample / len(census)
    often = asked.mean(0) if strategy_of(phase).repeats_clients else share * asked[0]
    return float(phase.num_rounds * np.sum(often * client))


def on_engine(experiment: Experiment, kind: str) -> Experiment:
    """Return an experiment that names its engine; the engine changes no result."""
    engine = experiment.engine.model_copy(update={"kind": kind})
    return experiment.model_copy(update={"engine": engine})


def _chosen(experiment: Experiment, kind: str, why: str) -> Choice:
    return Choice(on_engine(experiment, kind), why)


def _rounded(seconds: float) -> str:
    return f"{seconds:.1f}" if seconds < 10 else f"{seconds:,.0f}"
