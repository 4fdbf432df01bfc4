"""Compare the time of fedssl's FixMatch step with that of a straightforward step: one run, one core, 32x32x3, fp32.

The reference is a typical first implementation. Every image is a PIL image, and torchvision's transforms augment each
image separately (flip, reflect-padded crop, RandAugment of two operations, an erased square). All views of a step pass
through one graph in one batch, and pseudo-labels come from that batch's detached logits. fedssl's side is
`fedssl.training.loop.fit`. Both sides use the same model and normalization, B labeled and mu B unlabeled images, and
SGD with Nesterov momentum.

The passes alone set a limit: the reference runs B (1 + 2 mu) images forward and backward; fedssl runs the same number
forward, but only B (1 + mu) backward. If a backward pass costs twice a forward pass, the ratio is
3 (1 + 2 mu) / (3 (1 + mu) + mu).

    python benchmarks/step.py [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from fedssl.augment.policy import Augment
from fedssl.data.shard import ImageSpec, Shard
from fedssl.methods.fixmatch import FixMatch
from fedssl.models.base import MODELS
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

SPEC = ImageSpec((3, 32, 32), 10, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26), flips=True)
WORKLOADS = {
    "WRN-28-2, B=8, mu=7": ({"kind": "wrn", "norm": "batch"}, 8, 7, 4),
    "cnn, B=32, mu=3": ({"kind": "cnn", "norm": "batch"}, 32, 3, 8),
}
"""Name -> model, B, mu, number of steps that are timed together."""


def shard_of_photos(count: int = 1024, labeled: int = 256, spec: ImageSpec = SPEC) -> Shard:
    """Return a shard of smooth random images; their content has no influence on the time."""
    stream = torch.Generator().manual_seed(0)
    channels, *size = spec.shape
    coarse = torch.rand(count, channels, 8, 8, generator=stream)
    images = F.interpolate(coarse, size=size, mode="bicubic").clamp(0, 1).mul(255).to(torch.uint8)
    labels = torch.randint(10, (count,), generator=stream)
    seen = torch.where(torch.arange(count) < labeled, labels, -1)
    return Shard(images, seen, labels, spec)


class Straightforward:
    """The reference: augmentation of one image at a time, then one graph for all views."""

    def __init__(self, shard: Shard, network: nn.Module, batch_size: int, ratio: int) -> None:
        self.images = [Image.fromarray(x) for x in shard.images.permute(0, 2, 3, 1).numpy()]
        self.labels = shard.labels
        self.labeled = shard.labeled.numpy()
        self.network = network.train()
        self.batch_size = batch_size
        self.ratio = ratio
        self.draws = np.random.default_rng(0)
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=0.03, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
        flip_and_crop = [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(32, padding=4, padding_mode="reflect"),
        ]
        to_tensor = [transforms.ToTensor(), transforms.Normalize(SPEC.mean, SPEC.std)]
        self.weak = transforms.Compose([*flip_and_crop, *to_tensor])
        self.strong = transforms.Compose(
            [*flip_and_crop, transforms.RandAugment(2), *to_tensor, transforms.RandomErasing(p=1.0)]
        )

    def view(self, rows: np.ndarray, transform: Callable[[Image.Image], Tensor]) -> Tensor:
        """Return a batch of views, augmented image by image."""
        return torch.stack([transform(self.images[row]) for row in rows])

    def step(self) -> None:
        """Take one step of FixMatch."""
        labeled = self.draws.choice(self.labeled, self.batch_size)
        unlabeled = self.draws.choice(len(self.images), self.batch_size * self.ratio)
        views = [
            self.view(labeled, self.weak),
            self.view(unlabeled, self.weak),
            self.view(unlabeled, self.strong),
        ]
        logits = self.network(torch.cat(views))
        of_labeled, of_weak, of_strong = logits.split([len(view) for view in views])
        confidence, pseudo_labels = of_weak.detach().softmax(1).max(1)
        each = F.cross_entropy(of_strong, pseudo_labels, reduction="none")
        loss = F.cross_entropy(of_labeled, self.labels[torch.from_numpy(labeled)])
        loss = loss + (each * (confidence >= 0.95)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def measure(name: str, repeats: int) -> None:
    """Time both sides in turn, and print their medians and ratio."""
    table, batch_size, ratio, steps = WORKLOADS[name]
    shard, model, method = shard_of_photos(), MODELS.build(table), FixMatch(unlabeled_ratio=ratio)
    recipe = Recipe(method, Train(local_steps=steps, batch_size=batch_size), Augment())
    ours = build_network(model, method, SPEC, 0)
    theirs = Straightforward(shard, model.build(SPEC.shape, 10), batch_size, ratio)
    times: dict[str, list[float]] = {"reference": [], "fedssl": []}
    for turn in range(repeats + 1):
        began = time.perf_counter()
        for _ in range(steps):
            theirs.step()
        middle = time.perf_counter()
        fit(
            ours, shard, recipe, {},
            seed=0, server_round=turn + 1, client=0, phase_round=turn + 1, phase_rounds=repeats + 1,
        )  # fmt: skip
        ended = time.perf_counter()
        if turn:  # the first turn warms up
            times["reference"].append((middle - began) / steps)
            times["fedssl"].append((ended - middle) / steps)
    reference, fedssl = (statistics.median(times[side]) for side in ("reference", "fedssl"))
    ratios = [a / b for a, b in zip(times["reference"], times["fedssl"], strict=True)]
    floor = 3 * (1 + 2 * ratio) / (3 * (1 + ratio) + ratio)
    print(
        f"{name}: reference {reference * 1e3:.0f} ms a step, fedssl {fedssl * 1e3:.0f} ms; "
        f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"the passes alone: {floor:.2f}x",
        flush=True,
    )


def main() -> None:
    """Measure every workload."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in WORKLOADS:
        measure(name, repeats)


if __name__ == "__main__":
    main()
