"""Check a GPU against the CPU, count how often a step waits for the GPU, and time steps beside a plain loop.

    python -m benchmarks.gpu [--device cuda] [--repeats 5]

For each case:

- Agreement: the loss and the gradient of the same batch on the CPU and on the device, in single precision without TF32;
  the largest distance as a share of the gradient's length. The script fails if it is above 1e-3.
- Waits: how many synchronizations torch's debug mode counts in a step, without those of a round's begin and end.
- Times: milliseconds a step of `fit`, of the plain step on views that are ready, and of a client in a group that is fused;
  medians.

It has never run on a GPU. With ``--device cpu`` it compares the CPU with itself, which only shows that the script works.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import local_step
from benchmarks.step import shard_of_photos
from fedssl.augment.policy import Augment
from fedssl.data.shard import ImageSpec, Shard
from fedssl.fusion.fit import fit_together
from fedssl.fusion.fusible import way_to_fuse
from fedssl.methods.base import Batch, Progress
from fedssl.methods.fixmatch import FixMatch
from fedssl.models.base import MODELS
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

TOLERANCE = 1e-3
"""The largest distance between the CPU's gradient and the device's, as a share of the gradient's length."""

FEW, MANY = 4, 12
"""The numbers of steps whose waits are compared, so that those of a round's begin and end cancel."""

GROUP = 16
"""The clients of a fused group."""

SMALL_CNN = {"kind": "cnn", "widths": [16, 32], "hidden": 64, "norm": "none"}


@dataclass(frozen=True)
class Case:
    """A client's step.

    Args:
        model: The ``[model]`` section.
        shape: Shape of an image, (C, H, W).
        labeled: B, labeled images of a step.
        ratio: mu, unlabeled images for each labeled one.
    """

    model: Mapping[str, Any]
    shape: tuple[int, int, int]
    labeled: int
    ratio: int

    @property
    def spec(self) -> ImageSpec:
        """The properties of the images."""
        channels = self.shape[0]
        return ImageSpec(self.shape, 10, (0.4,) * channels, (0.3,) * channels, flips=False)

    @property
    def method(self) -> FixMatch:
        """FixMatch, whose pseudo-labels all count, so that the gradient has both parts."""
        return FixMatch(unlabeled_ratio=self.ratio, threshold=0.0)

    def recipe(self, steps: int) -> Recipe:
        """Return how a client learns for some steps."""
        return Recipe(self.method, Train(local_steps=steps, batch_size=self.labeled), Augment())

    def network(self, device: torch.device) -> nn.Module:
        """Return the network with its initial weights."""
        model = MODELS.build(dict(self.model))
        return build_network(model, self.method, self.spec, 0).to(device)

    def shard(self, device: torch.device) -> Shard:
        """Return a client, a quarter of whose images is labeled."""
        count = 2 * self.labeled * (1 + self.ratio)
        return shard_of_photos(count, max(1, count // 4), self.spec).to(device)


CASES = {
    "S": Case(SMALL_CNN, (1, 8, 8), 4, 3),
    "M": Case(SMALL_CNN, (1, 8, 8), 1, 1),
    "L": Case(SMALL_CNN, (1, 28, 28), 8, 3),
    "WRN-28-2": Case({"kind": "wrn", "norm": "group"}, (3, 32, 32), 8, 7),
}
WHEN = {"seed": 0, "server_round": 1, "phase_round": 1, "phase_rounds": 1}


def distance(case: Case, device: torch.device) -> float:
    """Return how far the device's gradient of one batch is from the CPU's, as a share of its length."""
    cpu = torch.device("cpu")
    gradients = [
        _gradient(case, case.network(cpu).to(where), where).cpu() for where in (cpu, device)
    ]
    return float((gradients[0] - gradients[1]).norm() / gradients[0].norm())


def _gradient(case: Case, network: nn.Module, device: torch.device) -> Tensor:
    stream = torch.Generator().manual_seed(1)

    def views(count: int) -> Tensor:
        images = torch.randn(count, *case.shape, generator=stream)
        return images.to(device, memory_format=torch.channels_last)

    few, many = case.labeled, case.labeled * case.ratio
    labels = torch.randint(10, (few,), generator=stream).to(device)
    weak, strong = views(many), views(many)
    ids = torch.zeros(many, dtype=torch.int64, device=device)
    batch = Batch((views(few),), labels, labels, (weak, strong), ids, torch.Generator())
    loss = case.method.loss(network.train(), batch, {}, Progress(1, 1, 0, 1))
    found = torch.autograd.grad(loss.total, list(network.parameters()))
    return torch.cat([gradient.flatten() for gradient in found])


def waits_a_step(case: Case, device: torch.device) -> float:
    """Return how often a step waits for the device; NaN on the CPU."""
    if device.type != "cuda":
        return float("nan")
    few, many = (_waits(case, device, steps) for steps in (FEW, MANY))
    return (many - few) / (MANY - FEW)


def _waits(case: Case, device: torch.device, steps: int) -> int:
    network, shard, recipe = case.network(device), case.shard(device), case.recipe(steps)
    fit(
        network, shard, recipe, {}, client=0, **WHEN
    )  # the first call also builds what later calls use
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            fit(network, shard, recipe, {}, client=0, **WHEN)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(warning.message) for warning in heard)


def milliseconds(trial: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the median duration of a trial (ms); the first call does not count."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        trial()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(1e3 * (time.perf_counter() - began))
    return statistics.median(taken[1:])


def times(case: Case, device: torch.device, repeats: int) -> tuple[float, float, float]:
    """Return milliseconds a step of `fit`, of the plain step, and of a client in a fused group; NaN if none is fused."""
    steps, network, shard = FEW, case.network(device), case.shard(device)
    recipe = case.recipe(steps)
    optimizers = recipe.optimizers(network)
    ours = milliseconds(
        lambda: fit(network, shard, recipe, {}, client=0, optimizers=optimizers, **WHEN),
        device,
        repeats,
    )
    images = torch.randn(case.labeled * case.ratio, *case.shape, device=device)
    shown = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(case.labeled, dtype=torch.int64, device=device)
    batch = local_step.Batch(shown[: case.labeled], labels, shown, shown)
    plain = milliseconds(lambda: local_step.train(network, [batch] * steps), device, repeats)
    way = way_to_fuse(recipe, network, case.spec)
    if isinstance(way, str) or case.model["kind"] != "cnn":
        return ours / steps, plain / steps, float("nan")
    group, clients = [shard] * GROUP, range(GROUP)
    together = milliseconds(
        lambda: fit_together(network, group, recipe, [{}] * GROUP, way, clients=clients, **WHEN),
        device,
        repeats,
    )
    return ours / steps, plain / steps, together / steps / GROUP


def main() -> None:
    """Check and time every case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    given = parser.parse_args()
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "there is no GPU that torch can use; --device cpu only shows that the script works"
        )
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}")
    print("case        distance  waits/step   ms/step: fit    plain    fused")
    worst = 0.0
    for case_name in given.cases:
        case = CASES[case_name]
        apart = distance(case, device)
        worst = max(worst, apart)
        waits = waits_a_step(case, device)
        ours, plain, fused = times(case, device, given.repeats)
        row = f"{case_name:10} {apart:9.1e} {waits:11.1f} {ours:15.2f} {plain:8.2f} {fused:8.2f}"
        print(row, flush=True)
    if not worst <= TOLERANCE:
        sys.exit(f"the device's gradient is {worst:.1e} from the CPU's, more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
