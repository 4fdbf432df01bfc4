"""Compare images per second of fedssl's augmentation with torchvision's, on one core, in one run, in turns.

fedssl's side is the whole strong view with its defaults: flip, shift, RandAugment (2 of 14 operations), cutout. A call
takes a batch of bytes and returns floats in [0, 1]. torchvision's side is the same recipe, one image at a time, as in
its data loaders: RandomHorizontalFlip, RandomCrop with reflected borders, RandAugment(num_ops=2) with the same
resampling, conversion to floats, RandomErasing (gray, up to a quarter of the area). It is measured twice, on PIL images
and on uint8 tensors (v2). Each side holds the images in memory in its own format, and nothing is collated. The printed
ratio is to the faster of torchvision's two.

The measured time is the process time on the core (`time.process_time`), so that other processes disturb less.

    python benchmarks/augment.py [--repeats 9]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torchvision import transforms as v1
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.functional import to_pil_image

from fedssl.augment.base import Augmentation
from fedssl.augment.ctaugment import CTAugment
from fedssl.augment.randaugment import RandAugment

NUM_REFERENCE = 128
"""The number of images in one repeat of torchvision's pipelines."""


def photos(count: int, channels: int, size: int) -> torch.Tensor:
    """Return smooth random images as bytes; their content has no influence on fedssl's time and little on PIL's."""
    coarse = torch.rand(count, channels, size // 4, size // 4)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp_(0, 1)
    return smooth.mul_(255).to(torch.uint8)


def ours(policy: Augmentation, count: int, channels: int, size: int) -> Callable[[], int]:
    """Return a function that shows `count` images per call, in enough calls for the clock, and returns their number."""
    images, generator = photos(count, channels, size), torch.Generator().manual_seed(0)
    calls = max(1, 1024 // count)

    def repeat() -> int:
        for _ in range(calls):
            policy(images, generator, flips=True)
        return calls * count

    return repeat


def torchvision_pil() -> Callable[[], int]:
    """Return a function that runs torchvision's pipeline on PIL images once, and returns the number of images."""
    bilinear = InterpolationMode.BILINEAR
    pipeline = v1.Compose(
        [
            v1.RandomHorizontalFlip(),
            v1.RandomCrop(32, padding=4, padding_mode="reflect"),
            v1.RandAugment(num_ops=2, interpolation=bilinear),
            v1.ToTensor(),
            v1.RandomErasing(p=1, scale=(0.01, 0.25), ratio=(1, 1), value=0.5),
        ]
    )
    images = [to_pil_image(image) for image in photos(NUM_REFERENCE, 3, 32)]
    return lambda: len([pipeline(image) for image in images])


def torchvision_tensors() -> Callable[[], int]:
    """Return a function that runs torchvision's v2 pipeline on uint8 tensors, one by one, and returns their number."""
    bilinear = InterpolationMode.BILINEAR
    pipeline = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandAugment(num_ops=2, interpolation=bilinear),
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomErasing(p=1, scale=(0.01, 0.25), ratio=(1, 1), value=0.5),
        ]
    )
    images = list(photos(NUM_REFERENCE, 3, 32))
    return lambda: len([pipeline(image) for image in images])


def main() -> None:
    """Measure all sides in turn, several times, and print medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sides = {
        "torchvision, PIL": torchvision_pil(),
        "torchvision v2, tensors": torchvision_tensors(),
        "RandAugment, 1024 x 3x32x32": ours(RandAugment(), 1024, 3, 32),
        "RandAugment, 256 x 3x32x32": ours(RandAugment(), 256, 3, 32),
        "RandAugment, 32 x 3x32x32": ours(RandAugment(), 32, 3, 32),
        "CTAugment, 1024 x 3x32x32": ours(CTAugment(), 1024, 3, 32),
    }
    small = {
        "RandAugment, 1024 x 1x8x8": ours(RandAugment(), 1024, 1, 8),
        "RandAugment, 96 x 1x8x8": ours(RandAugment(), 96, 1, 8),
        "CTAugment, 96 x 1x8x8": ours(CTAugment(), 96, 1, 8),
    }
    rates: dict[str, list[float]] = {name: [] for name in (*sides, *small)}
    for _ in range(repeats + 1):
        for name, side in (*sides.items(), *small.items()):
            began = time.process_time()
            count = side()
            rates[name].append(count / (time.process_time() - began))
    medians = {name: statistics.median(found[1:]) for name, found in rates.items()}
    reference = max(medians[name] for name in list(sides)[:2])
    print(f"{'one core':30} {'images/s':>9} {'x torchvision':>14}")
    for name in sides:
        print(f"{name:30} {medians[name]:9,.0f} {medians[name] / reference:14.1f}")
    for name in small:
        print(f"{name:30} {medians[name]:9,.0f}")


if __name__ == "__main__":
    main()
