"""Check that all contenders do the same work: compare the weights after local steps, and after a whole round."""

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.contenders import CONTENDERS
from benchmarks.local_step import Batch, Work, train
from benchmarks.processes import LeftOut, measure
from benchmarks.workloads import WORKLOADS, Plain, Workload
from fedssl.core import rng
from fedssl.experiment.experiment import Experiment
from fedssl.training.batches import BatchLoader, default_pools
from fedssl.training.loop import fit

TOLERANCE = 1e-5
"""The largest difference of equal weights; weights are about .1, and another order of sums moves them by about 1e-8."""
STEPS = 5

WHOLE_ROUND = Workload("everybody takes part", "digits", 20, 20, Work(4, 12, 2), 1)


def check(folder: Path, contenders: Sequence[str], workers: int) -> bool:
    """Print how far each contender's weights are from those of the plain step; return whether all agree."""
    differences = {
        f"step, sizes of {name}, fedssl": step_difference(workload, folder)
        for name, workload in WORKLOADS.items()
    }
    differences |= round_differences(folder, contenders, workers)
    for what, difference in differences.items():
        verdict = "agrees" if difference <= TOLERANCE else "DIFFERS"
        print(f"  {what:36} {verdict}, largest difference {difference:.1e}", flush=True)
    return all(difference <= TOLERANCE for difference in differences.values())


def step_difference(workload: Workload, folder: Path) -> float:
    """Train one network by fedssl's `fit` and one by the plain step on the same views; return the weights' difference.

    The sizes of the batches are the workload's, and the images are digits. Several steps are taken, so that momentum
    counts. The comparison is made for the client with the most labels and for the client with the fewest.
    """
    sizes = dataclasses.replace(workload.work, steps=STEPS)
    same = dataclasses.replace(workload, source="digits", clients=100, sample=1, work=sizes)
    experiment = Experiment.from_dict(same.table(folder, folder))
    plain = Plain(experiment)
    labeled = plain.federation.labeled_sizes
    return max(
        _step_difference(experiment, plain, client)
        for client in (int(labeled.argmax()), int(labeled.argmin()))
    )


def _step_difference(experiment: Experiment, plain: Plain, client: int) -> float:
    theirs, recipe, shard = plain.network(), experiment.recipe, plain.federation.shard(client)
    ours = copy.deepcopy(theirs)

    def stream(purpose: str) -> torch.Generator:
        return rng.make_generator(experiment.seed, purpose, round=1, client=client)

    size, steps = recipe.train.batch_size, plain.work.steps
    loader = BatchLoader(
        shard, default_pools(shard), recipe.method.views(), recipe.augment, {}, size, steps, stream
    )
    train(theirs, (Batch(*b.labeled, b.labels, *b.unlabeled) for b in loader))
    fit(
        ours, shard, recipe, {},
        seed=experiment.seed, server_round=1, client=client, phase_round=1, phase_rounds=1,
    )  # fmt: skip
    assert _distance(plain.network(), theirs) > TOLERANCE, "nothing was learned"
    return _distance(ours, theirs)


def _distance(one: nn.Module, other: nn.Module) -> float:
    return weight_difference(one.state_dict(), other.state_dict())


def weight_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest absolute difference of two models' weights."""
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def round_differences(folder: Path, contenders: Sequence[str], workers: int) -> dict[str, float]:
    """Let every contender run one round with all clients, and return how far its global model is from a reference.

    Random numbers derive from round and client, so all contenders that take the plain step must reach the plain loop's
    model. fedssl draws from its own streams, so its engines are compared with its serial engine.
    """
    table = WHOLE_ROUND.table(folder, folder)
    found: dict[str, dict[str, Tensor]] = {}
    for name in dict.fromkeys(["plain", "fedssl-serial", *contenders]):
        weights = folder / f"{name}.pt"
        try:
            measure(name, table, 1, workers, weights)
        except LeftOut as reason:
            print(f"  {name} left out: {reason}", flush=True)
        else:
            found[name] = torch.load(weights)
    return {
        f"round, {name}": weight_difference(
            weights, found["fedssl-serial" if CONTENDERS[name].module == "ours" else "plain"]
        )
        for name, weights in found.items()
    }
