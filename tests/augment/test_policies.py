"""Weak and strong views: every image has its own draw, from an explicit generator."""

import pytest
import torch

from fedssl.augment import ctaugment, grouped
from fedssl.augment.base import AUGMENTATIONS, LearnedAugmentation
from fedssl.augment.color_jitter import ColorJitter
from fedssl.augment.ctaugment import CTAugment
from fedssl.augment.randaugment import OPERATIONS, RandAugment
from fedssl.augment.rotation import Rotation
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


@pytest.mark.parametrize("name", NAMES)
def test_bytes_give_the_same_views_as_floats(name):
    policy = AUGMENTATIONS.build(name)
    levels = (images() * 255).round().to(torch.uint8)
    views = policy(levels, stream(), flips=True)
    assert views.dtype == torch.float32
    assert torch.equal(views, policy(levels.to(torch.float32) / 255, stream(), flips=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_view_does_not_depend_on_the_other_images(name):
    policy = AUGMENTATIONS.build(name)
    given = images()
    others = given.clone()
    others[1:] = torch.rand(63, 3, 16, 16, generator=stream(8))
    first = policy(given, stream(), flips=True)[0]
    assert torch.equal(first, policy(others, stream(), flips=True)[0])


@pytest.mark.parametrize("name", NAMES)
def test_everything_happens_where_the_images_are(name):
    """A tensor made without naming a device would land on the default one, and could not meet the images."""
    policy, given, generator = AUGMENTATIONS.build(name), images(count=200), stream()
    if not isinstance(policy, LearnedAugmentation):
        with torch.device("meta"):
            assert policy(given, generator, flips=True).device.type == "cpu"
        return
    state = policy.initial()
    match = torch.rand(200)
    with torch.device("meta"):
        assert policy.show(given, generator, state, flips=True).device.type == "cpu"
        probe = policy.probe(given, generator, flips=True)
        learned = policy.learn(state, probe, match)
    assert all(tensor.device.type == "cpu" for tensor in learned.values())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (5, 1, 1, 1), (9, 3, 2, 7), (1, 1, 28, 28)])
def test_any_number_of_images_of_any_size(name, shape):
    views = AUGMENTATIONS.build(name)(torch.rand(shape), stream(), flips=True)
    assert views.shape == shape
    assert ((views >= 0) & (views <= 1)).all()


@pytest.mark.parametrize(
    "policy", [Weak(), RandAugment(), CTAugment(), ColorJitter(), Rotation()], ids=str
)
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
    """What the policy hands to `_apply_`: 14 operations within five standard deviations of even, levels uniform."""
    drawn = []

    def spy(self, images, operation, level):
        drawn.append((operation, level))
        return images

    monkeypatch.setattr(RandAugment, "_apply_", spy)
    RandAugment()(torch.zeros(14_000, 1, 4, 4), stream(), flips=False)
    chosen, levels = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    assert len(drawn) == 2
    counts = torch.bincount(chosen, minlength=14)
    assert len(counts) == len(OPERATIONS) == 14
    assert ((counts - 2000).abs() < 5 * 43.1).all()
    assert ((torch.histc(levels, 10, 0, 1) - 2800).abs() < 5 * 50.2).all()
    for operation in range(14):
        own = levels[chosen == operation].mean()
        assert abs(own - 0.5) < 5 * 0.289 / 1900**0.5, OPERATIONS[operation]


def test_cutouts_are_uniform_up_to_half_the_side():
    """The square's side, seen where none of it lies outside, and how much of all images it covers."""
    policy = RandAugment(num_ops=0, weak=Weak(translate=0))
    covered = policy(torch.zeros(4000, 1, 64, 64), stream(), flips=False)[:, 0] == 0.5
    rows, columns = covered.any(2), covered.any(1)
    whole = ~(rows[:, [0, -1]].any(1) | columns[:, [0, -1]].any(1))
    sides = rows[whole].sum(1)
    assert (sides - columns[whole].sum(1)).abs().max() <= 1
    assert 31 <= sides.max() <= 33
    sizes = torch.linspace(0, 0.5, 2001)
    probability = float(((1 - sizes) ** 2).mean())  # a square of side s lies inside with (1 - s)^2
    assert abs(float(whole.float().mean()) - probability) < 5 * (0.25 / 4000) ** 0.5
    assert not RandAugment(num_ops=0, max_cutout=0)(
        torch.zeros(9, 1, 8, 8), stream(), flips=True
    ).any()


@pytest.mark.parametrize(
    ("policy", "operations", "num_levels"),
    [(RandAugment(), OPERATIONS, 1), (CTAugment(), ctaugment.OPERATIONS, 4)],
    ids=["randaugment", "ctaugment"],
)
def test_each_operation_changes_only_the_images_that_drew_it(policy, operations, num_levels):
    count = len(operations)
    given = torch.rand(count, 3, 16, 16, generator=stream(5))
    levels = torch.full((count, num_levels), 0.2)
    shuffled = torch.randperm(count, generator=stream(6))
    views = policy._apply_(given.clone(), shuffled, levels)
    for i, operation in enumerate(shuffled):
        name = operations[operation]
        alone = policy._apply_(given[i : i + 1].clone(), operation.view(1), levels[:1])
        assert torch.allclose(views[i], alone[0], atol=1e-6), name
        assert torch.equal(views[i], given[i]) == (name == "identity"), name


def test_how_many_images_a_call_takes_changes_nothing(monkeypatch):
    whole = RandAugment()(images(count=200), stream(), flips=True)
    monkeypatch.setattr(grouped, "_FLOATS_AT_ONCE", 3 * 16 * 16 * 2)
    assert torch.allclose(RandAugment()(images(count=200), stream(), flips=True), whole, atol=1e-6)


def still(**fields):
    none = {"weak": Weak(translate=0), "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}
    return ColorJitter(**(none | fields))


def test_color_jitter_draws_factors_from_the_whole_range():
    """Where nothing is clipped, a view is its image times a factor uniform in [1 - b, 1 + b], cut off at 0."""
    gray = torch.full((20_000, 3, 1, 1), 0.25)
    factors = still(brightness=0.5)(gray, stream(), flips=False)[:, 0, 0, 0] / 0.25
    assert ((torch.histc(factors, 10, 0.5, 1.5) - 2000).abs() < 5 * 42.4).all()
    wide = still(brightness=2.0)(gray, stream(), flips=False)[:, 0, 0, 0] / 0.25
    assert wide.min() < 0.01
    assert 2.99 < wide.max() <= 3


def test_color_jitter_draws_hues_both_ways():
    """Pure red turned by less than a sixth of the circle gains green one way and blue the other, six times the turn."""
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(20_000, -1, -1, -1)
    views = still(hue=0.1)(red, stream(), flips=False)[:, :, 0, 0]
    turns = (views[:, 1] - views[:, 2]) / 6
    assert ((torch.histc(turns, 10, -0.1, 0.1) - 2000).abs() < 5 * 42.4).all()


def test_color_jitter_with_no_range_changes_nothing():
    given = torch.rand(8, 3, 8, 8, generator=stream(1))
    assert torch.allclose(still()(given, stream(), flips=False), given, atol=1e-6)


def test_color_jitter_draws_an_order_for_every_image(monkeypatch):
    """Bright first clips at 1 and loses contrast; contrast first does not: with one factor each, order shows."""
    given = torch.tensor([0.2, 0.9]).view(1, 1, 1, 2).expand(4000, 3, -1, -1)
    factors = torch.tensor([[2.0, 0.5, 1, 0]]).expand(4000, -1)
    monkeypatch.setattr(ColorJitter, "_scale_to_ranges", lambda self, uniform: factors)
    views = still()(given, stream(), flips=False)[:, 0, 0]
    bright_first = (views - torch.tensor([0.55, 0.85])).abs().amax(1) < 1e-3
    contrast_first = (views - torch.tensor([0.75, 1.0])).abs().amax(1) < 1e-3
    assert (bright_first | contrast_first).all()
    assert abs(float(bright_first.float().mean()) - 0.5) < 5 * (0.25 / 4000) ** 0.5


def test_rotations_are_uniform_both_ways():
    """Where a bright pixel right of the center went to tells the angle; up is counter-clockwise."""
    dots = torch.zeros(5000, 1, 65, 65)
    dots[:, :, 32, 56:59] = 1
    views = Rotation(weak=Weak(translate=0), max_degrees=30)(dots, stream(), flips=False)[:, 0]
    place = torch.arange(65.0) - 32
    x = (views.sum(1) * place).sum(1)
    y = (views.sum(2) * place).sum(1)
    degrees = torch.rad2deg(torch.atan2(-y, x))
    assert degrees.abs().max() < 30.5
    counts = torch.histc(degrees, 6, -30, 30)
    assert ((counts - 5000 / 6).abs() < 5 * 26.4 + 30).all()
