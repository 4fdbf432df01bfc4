"""Weak and strong views: every image its own draw, by an explicit generator."""

import pytest
import torch

from fedssl.augment.base import AUGMENTATIONS
from fedssl.augment.randaugment import OPERATIONS, RandAugment
from fedssl.augment.weak import Weak

NAMES = AUGMENTATIONS.names()


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3, count: int = 64) -> torch.Tensor:
    one = torch.rand(1, channels, 16, 16, generator=stream(9))
    return one.expand(count, -1, -1, -1).contiguous()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_views_keep_shape_range_and_input(name, channels):
    policy = AUGMENTATIONS.build(name)
    given = images(channels)
    before = given.clone()
    views = policy(given, stream(), flips=True)
    assert views.shape == given.shape
    assert views.min() >= 0
    assert views.max() <= 1
    assert torch.equal(given, before)


@pytest.mark.parametrize("name", NAMES)
def test_views_depend_on_the_generator_alone(name):
    policy = AUGMENTATIONS.build(name)
    torch.manual_seed(1)
    first = policy(images(), stream(3), flips=True)
    torch.manual_seed(2)
    again = policy(images(), stream(3), flips=True)
    assert torch.equal(first, again)
    if name != "identity":
        assert not torch.equal(first, policy(images(), stream(4), flips=True))


@pytest.mark.parametrize("policy", [Weak(), RandAugment()])
def test_every_image_has_its_own_draw(policy):
    """One image shown 64 times gives many different views, not one for the whole batch."""
    views = policy(images(), stream(), flips=True)
    distinct = {view.numpy().tobytes() for view in views}
    assert len(distinct) > 30


def test_no_flip_where_orientation_is_the_class():
    still = Weak(translate=0)
    given = images()
    assert torch.equal(still(given, stream(), flips=False), given)
    flipped = still(given, stream(), flips=True)
    mirrored = (flipped == given.flip(3)).flatten(1).all(1).float().mean()
    assert 0.25 < mirrored < 0.75
    assert torch.equal(Weak(translate=0, flip=False)(given, stream(), flips=True), given)


def test_weak_shifts_are_uniform_over_the_whole_range():
    marked = torch.zeros(20_000, 1, 16, 16)
    marked[:, :, 8, 8] = 1
    views = Weak()(marked, stream(), flips=False)
    at = views.flatten(1).argmax(1)
    shifts = torch.stack([at // 16 - 8, at % 16 - 8])
    for axis in shifts:
        counts = torch.bincount(axis + 2, minlength=5)
        assert len(counts) == 5  # 12.5 % of 16 is two pixels either way
        assert ((counts / 4000 - 1).abs() < 0.08).all()


def test_operations_and_levels_are_drawn_evenly(monkeypatch):
    """What the policy hands to `_apply`: 14 operations within five standard deviations of even, levels uniform."""
    drawn = []

    def spy(self, images, operation, level):
        drawn.append((operation, level))
        return images

    monkeypatch.setattr(RandAugment, "_apply", spy)
    RandAugment()(torch.zeros(14_000, 1, 4, 4), stream(), flips=False)
    chosen, levels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert len(drawn) == 2
    counts = torch.bincount(chosen, minlength=14)
    assert len(counts) == len(OPERATIONS) == 14
    assert ((counts - 2000).abs() < 5 * 43.1).all()
    assert ((torch.histc(levels, 10, 0, 1) - 2800).abs() < 5 * 50.2).all()


def test_each_operation_changes_only_the_images_that_drew_it():
    policy = RandAugment()
    given = torch.rand(14, 3, 16, 16, generator=stream(5))
    views = policy._apply(given, torch.arange(14), torch.full((14,), 0.2))
    for i, name in enumerate(OPERATIONS):
        alone = policy._apply(given[i : i + 1], torch.tensor([i]), torch.tensor([0.2]))
        assert torch.allclose(views[i], alone[0], atol=1e-6), name
        assert torch.equal(views[i], given[i]) == (name == "identity"), name
