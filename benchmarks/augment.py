"""Images a second of our augmentation beside torchvision's, on one core, in one run, taking turns.

Ours is the whole strong view at its defaults: flip, shift, RandAugment (2 of 14 operations), cutout; a call takes a
batch of bytes and returns floats in [0, 1]. Theirs is the same recipe put together from torchvision, an image at a
time, as its loaders do: RandomHorizontalFlip, RandomCrop with reflected borders, RandAugment(num_ops=2) with the same
resampling, conversion to floats, RandomErasing (gray, up to a quarter of the area). It is measured twice, on PIL
images and on uint8 tensors (v2); images are held in memory as each side wants them, and nothing is collated. The
ratio is to the faster of the two.

What counts is the time of this process on its core (`time.process_time`), so that others on the machine disturb less.

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
"""Images a repeat of torchvision's pipelines."""


def photos(count: int, channels: int, size: int) -> torch.Tensor:
    """Return smooth random images as bytes; the content has no influence on our time and little on PIL's."""
    coarse = torch.rand(count, channels, size // 4, size // 4)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bicubic").clamp_(0, 1)
    return smooth.mul_(255).to(torch.uint8)


def ours(policy: Augmentation, count: int, channels: int, size: int) -> Callable[[], int]:
    """Return one repeat: calls of `count` images, enough of them for the clock; returns the number of images."""
    images, generator = photos(count, channels, size), torch.Generator().manual_seed(0)
    calls = max(1, 1024 // count)

    def repeat() -> int:
        for _ in range(calls):
            policy(images, generator, flips=True)
        return calls * count

    return repeat


def torchvision_pil() -> Callable[[], int]:
    """Return one repeat of torchvision's pipeline on PIL images."""
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
    """Return one repeat of torchvision's second pipeline on uint8 tensors, an image at a time."""
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
    """Measure all in turn, several times, and print medians and ratios."""
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
