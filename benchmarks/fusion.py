"""Compare the time of fused clients with that of the same clients one by one, in one run, on one core.

The clients train FixMatch on gray images of 8x8 and 28x28 (conv16-conv32-fc64): one step per client, SGD with Nesterov
momentum. "2 images" means one labeled and one unlabeled image per step, "16 images" four and twelve, and so on. Both sides
take turns. The output shows medians: milliseconds per client alone, and how many times as fast a client is in groups of 2 to
50.

    python benchmarks/fusion.py [--repeats 9] [--views default]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from fedssl.augment.policy import Augment
from fedssl.data.shard import ImageSpec, Shard
from fedssl.fusion.fit import fit_together
from fedssl.fusion.groups import group_size
from fedssl.methods.fixmatch import FixMatch
from fedssl.models.cnn import CNN
from fedssl.models.cost import multiplications
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

SIZES = (2, 5, 10, 16, 32, 50)
ALONE = 10
"""The number of clients that one turn times one by one."""

COHORT = 1_000
"""The clients of a round, for the rule that says how many are fused."""

BATCHES = {"2 images": (1, 1), "16 images": (4, 3), "64 images": (16, 3), "256 images": (32, 7)}
"""Name -> labeled images per step, unlabeled images for each labeled image."""

VIEWS = {
    "cheap": Augment.model_validate({"weak": {"kind": "identity"}, "strong": {"kind": "noise"}}),
    "default": Augment(),
}
WHEN = {"seed": 0, "server_round": 1, "phase_round": 1, "phase_rounds": 1}


def clients(side: int, labeled: int, unlabeled: int) -> list[Shard]:
    """Return the shards of clients that hold random images."""
    stream = torch.Generator().manual_seed(0)
    spec = ImageSpec((1, side, side), 10, (0.3,), (0.3,), flips=False)
    shards = []
    for _ in range(max(SIZES)):
        shape = (labeled + unlabeled, *spec.shape)
        images = torch.randint(256, shape, generator=stream, dtype=torch.uint8)
        labels = torch.randint(10, (len(images),), generator=stream)
        seen = torch.where(torch.arange(len(images)) < labeled, labels, -1)
        shards.append(Shard(images, seen, labels, spec))
    return shards


def medians(trials: dict[int, Callable[[], None]], repeats: int) -> dict[int, float]:
    """Return each trial's median milliseconds per client; the key is the group size, or 0 for clients one by one."""
    taken: dict[int, list[float]] = {size: [] for size in trials}
    for turn in range(repeats + 1):
        for size, trial in trials.items():
            began = time.perf_counter()
            trial()
            if turn:  # the first turn warms up
                taken[size].append((time.perf_counter() - began) * 1e3 / (size or ALONE))
    return {size: statistics.median(times) for size, times in taken.items()}


def measure(side: int, batch: str, norm: str, views: str, repeats: int) -> None:
    """Time one kind of client, alone and in groups of every size, and print the result."""
    batch_size, ratio = BATCHES[batch]
    shards = clients(side, batch_size, batch_size * ratio)
    method = FixMatch(unlabeled_ratio=ratio)
    recipe = Recipe(method, Train(local_steps=1, batch_size=batch_size), VIEWS[views])
    model = CNN.model_validate({"widths": (16, 32), "hidden": 64, "norm": norm})
    network = build_network(model, method, shards[0].spec, 0)

    optimizers = recipe.optimizers(network)

    def one_by_one() -> None:
        for client, shard in enumerate(shards[:ALONE]):
            fit(network, shard, recipe, {}, client=client, optimizers=optimizers, **WHEN)

    def together(size: int) -> Callable[[], None]:
        return lambda: fit_together(network, shards[:size], recipe, clients=range(size), **WHEN)

    found = medians({0: one_by_one} | {size: together(size) for size in SIZES}, repeats)
    gains = " ".join(f"{found[0] / found[size]:7.2f}" for size in SIZES)
    step = multiplications(network, shards[0].spec.shape) * method.images_per_step(
        batch_size, batch_size * ratio
    )
    chosen = group_size(step, 1, COHORT)
    print(
        f"{side}x{side}, {batch:9}, norm {norm:5}: {found[0]:7.2f} ms; {gains}; "
        f"{step / 1e6:.1f} million multiplications, the rule says {chosen}",
        flush=True,
    )


def main() -> None:
    """Measure all kinds of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--views", choices=VIEWS, default="cheap")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("clients in a group:".ljust(43) + " ".join(f"{size:7}" for size in SIZES))
    for side in (8, 28):
        for batch in BATCHES:
            for norm in ("none", "group"):
                measure(side, batch, norm, arguments.views, arguments.repeats)


if __name__ == "__main__":
    main()
