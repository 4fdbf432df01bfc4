"""Contrastive views agree with torchvision image by image, and every image draws for itself."""

import pytest
import torch
from torchvision.transforms.v2 import RandomResizedCrop as Reference
from torchvision.transforms.v2 import functional as tv

from fedssl.augment import functional as ops
from fedssl.augment.color_jitter import GROUPS, ColorDistortion
from fedssl.augment.contrast import Contrast
from fedssl.augment.gaussian_blur import GaussianBlur
from fedssl.augment.geometry import enlarge_crops
from fedssl.augment.grayscale import Grayscale
from fedssl.augment.random_resized_crop import RandomResizedCrop
from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from tests.augment.photos import photos

KINDS = [RandomResizedCrop(), Grayscale(), GaussianBlur(), Contrast()]
STILL = {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def close(ours, theirs):
    assert (ours - theirs).abs().max() <= 1e-5


def within(count, successes, probability):
    """Return whether a number of successes is within five standard deviations of its mean."""
    return (
        abs(successes - count * probability) < 5 * (count * probability * (1 - probability)) ** 0.5
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mirrored", [False, True])
def test_crops_are_enlarged_as_torchvision_does(channels, mirrored):
    given = photos(channels)[..., :24]
    crops = torch.tensor(
        [
            [0, 0, 32, 24],
            [3, 5, 9, 11],
            [31, 23, 1, 1],
            [0, 4, 32, 2],
            [10, 0, 1, 24],
            [7, 7, 16, 16],
        ]
    )
    flags = torch.full((6,), mirrored)
    views = enlarge_crops(given, crops.float(), flags)
    for view, image, (top, left, height, width) in zip(views, given, crops.tolist(), strict=True):
        theirs = tv.resized_crop(image, top, left, height, width, [32, 24], antialias=False)
        close(view, theirs.flip(2) if mirrored else theirs)


@pytest.mark.parametrize("radius", [0, 1, 6])
def test_blur_is_torchvisions(radius):
    given, sigmas = photos(3), torch.tensor([0.1, 0.4, 0.7, 1.0, 1.5, 2.0])
    kernels = ops.gaussian_kernels(sigmas, radius)
    views = ops.gaussian_blur(given, kernels, kernels)
    for view, image, sigma in zip(views, given, sigmas.tolist(), strict=True):
        close(view, tv.gaussian_blur(image, [2 * radius + 1] * 2, [sigma] * 2))


def test_colors_change_as_in_torchvision():
    """Torchvision turns the hue by its own conversion; where an image has no color, both leave it as it is."""
    given, factor = photos(3), torch.tensor([0.6, 0.8, 1.0, 1.2, 1.4, 1.9])
    theirs = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation)
    for ours, reference in zip((ops.brightness, ops.contrast, ops.color), theirs, strict=True):
        for view, image, value in zip(ours(given, factor), given, factor.tolist(), strict=True):
            close(view, reference(image, value))
    turns = torch.tensor([-0.5, -0.1, 0.0, 0.03, 0.1, 0.5])
    for view, image, turn in zip(ops.hue(given, turns), given, turns.tolist(), strict=True):
        close(view, tv.adjust_hue(image, turn))
    views = Grayscale(probability=1)(given, stream(), flips=False)
    for view, image in zip(views, given, strict=True):
        close(view, tv.rgb_to_grayscale(image, num_output_channels=3))


def test_a_contrastive_view_is_its_operations_one_after_the_other():
    """Crop, jitter, grayscale, blur and flip, as in MoCo v2's code, by torchvision and image by image."""
    given, policy = photos(3, count=24), Contrast()
    draws = policy.draw(24, (3, 32, 32), stream(5), flips=True)
    views = policy.apply(given, draws)
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for i, image in enumerate(given):
        top, left, height, width = (int(value) for value in draws["crop"][i])
        own = tv.resized_crop(image, top, left, height, width, [32, 32], antialias=False)
        if draws["jittered"][i]:
            for turn in draws["turns"][i].tolist():
                own = adjust[turn](own, float(draws["factors"][i, turn]))
        if draws["gray"][i]:
            own = tv.rgb_to_grayscale(own, num_output_channels=3)
        if draws["blurred"][i]:
            middle, beside = draws["kernel_x"][i, 6], draws["kernel_x"][i, 7]
            sigma = float((2 * (middle / beside).log()) ** -0.5) if beside > 0 else 0.05
            own = tv.gaussian_blur(own, [13, 13], [sigma, sigma])
        own = own.flip(2) if draws["mirrored"][i] else own
        assert (views[i] - own).abs().max() <= 1e-4, i  # hue and sigma round more than once
    assert len(GROUPS) == len(adjust)
    for name in ("jittered", "gray", "blurred", "mirrored"):
        assert draws[name].any(), name


@pytest.mark.parametrize(("size", "area"), [((16, 16), 0.08), ((8, 24), 0.08), ((8, 24), 0.3)])
def test_crops_are_drawn_from_torchvisions_distribution(size, area):
    """Both draw 4000 crops; the means of top, left, height and width differ by rounding of the mean alone.

    In the last case, a quarter of the images falls back to the crop in the middle.
    """
    policy = RandomResizedCrop(min_area=area)
    ours = policy.draw(4000, (1, *size), stream(1), flips=False)["crop"]
    torch.manual_seed(0)
    reference, image = Reference(16, scale=(area, 1.0)), torch.zeros(1, *size)
    found = [reference.make_params([image]) for _ in range(4000)]
    theirs = torch.tensor([[f["top"], f["left"], f["height"], f["width"]] for f in found]).float()
    error = ((ours.var(0) + theirs.var(0)) / 4000).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 5 * error).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.1).all()
    top, left, height, width = ours.unbind(1)
    assert (torch.stack([top, left]) >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= size[0]).all()
    assert (left + width <= size[1]).all()


@pytest.mark.parametrize("size", [(2, 40), (41, 2), (2, 2)])
def test_where_no_draw_fits_the_crop_is_torchvisions_in_the_middle(size):
    """No crop of .95 of a strip has a ratio of 4/3 to 5/3, so every draw of both falls back, to the same crop."""
    ratios = {"min_ratio": 4 / 3, "max_ratio": 5 / 3}
    policy = RandomResizedCrop(min_area=0.95, **ratios)
    crops = policy.draw(20, (1, *size), stream(), flips=False)["crop"]
    found = Reference(16, scale=(0.95, 1), ratio=(4 / 3, 5 / 3)).make_params(
        [torch.zeros(1, *size)]
    )
    wanted = [found[name] for name in ("top", "left", "height", "width")]
    assert crops.tolist() == [wanted] * 20
    assert wanted[0] > 0 or wanted[1] > 0 or size == (2, 2)


def test_a_whole_crop_changes_nothing():
    given = photos(3)
    whole = RandomResizedCrop(min_area=1, min_ratio=1, max_ratio=1)
    close(whole(given, stream(), flips=False), given)


def test_operations_are_drawn_with_their_probabilities():
    count = 10_000
    draws = Contrast().draw(count, (1, 4, 4), stream(), flips=True)
    for name, probability in (
        ("jittered", 0.8),
        ("gray", 0.2),
        ("blurred", 0.5),
        ("mirrored", 0.5),
    ):
        assert within(count, int(draws[name].sum()), probability), name
    assert not Contrast().draw(count, (1, 4, 4), stream(), flips=False)["mirrored"].any()


def test_widths_of_blurs_are_uniform():
    """Two neighboring weights of a kernel are as exp(-1 / (2 sigma^2)), which tells sigma."""
    policy = GaussianBlur(min_sigma=0.5, max_sigma=1.5)
    kernels = policy.draw(10_000, (1, 32, 32), stream(), flips=False)["kernel_y"]
    middle = kernels.shape[1] // 2
    sigma = (2 * (kernels[:, middle] / kernels[:, middle + 1]).log()).rsqrt()
    assert ((torch.histc(sigma, 10, 0.5, 1.5) - 1000).abs() < 5 * 30).all()
    close(kernels.sum(1), torch.ones(10_000))


def test_images_that_an_operation_leaves_out_stay_as_they_are():
    given = photos(3)
    for policy in (Grayscale(probability=0), GaussianBlur(probability=0)):
        assert torch.equal(policy(given, stream(), flips=True), given)
    crop = RandomResizedCrop()
    bare = Contrast(
        crop=crop,
        jitter_probability=0,
        grayscale=Grayscale(probability=0),
        blur=GaussianBlur(probability=0),
    )
    draws = bare.draw(len(given), given.shape[1:], stream(), flips=True)
    assert torch.equal(bare.apply(given, draws), crop.apply(given, draws))
    close(ColorDistortion(**STILL)(given, stream(), flips=True), given)


def test_gray_images_have_no_saturation_no_hue_and_nothing_to_turn_gray():
    given = photos(1)
    assert torch.equal(Grayscale(probability=1)(given, stream(), flips=True), given)
    colors = ColorDistortion(**(STILL | {"saturation": 0.9, "hue": 0.5}))
    close(colors(given, stream(), flips=True), given)
    bright = ColorDistortion(**(STILL | {"brightness": 0.9}))
    assert not torch.allclose(bright(given, stream(), flips=True), given, atol=1e-2)


@pytest.mark.parametrize("policy", KINDS, ids=lambda policy: policy.kind)
def test_every_image_has_its_own_draw(policy):
    one = photos(3, count=1).expand(64, -1, -1, -1)
    distinct = {view.numpy().tobytes() for view in policy(one, stream(), flips=True)}
    assert len(distinct) > (1 if policy.kind == "grayscale" else 20)


@pytest.mark.parametrize("policy", KINDS, ids=lambda policy: policy.kind)
def test_an_image_alone_has_the_bits_that_it_has_in_a_batch(policy):
    given = photos(3, count=9)
    draws = policy.draw(9, given.shape[1:], stream(), flips=True)
    views = policy.apply(given, draws)
    for i in range(9):
        alone = policy.apply(given[i : i + 1], {k: v[i : i + 1] for k, v in draws.items()})
        assert torch.equal(alone[0], views[i])


@pytest.mark.parametrize(
    ("section", "field"),
    [
        ({"kind": "random_resized_crop", "min_area": 0.9, "max_area": 0.5}, "min_area"),
        ({"kind": "random_resized_crop", "min_ratio": 2.0}, "min_ratio"),
        ({"kind": "gaussian_blur", "min_sigma": 3.0}, "min_sigma"),
        ({"kind": "contrast", "crop": {"min_area": 0}}, r"augment\.contrast\.crop\.min_area"),
        (
            {"kind": "contrast", "blur": {"sigma": 1}},
            r"augment\.contrast\.blur\.sigma.*did you mean",
        ),
    ],
)
def test_wrong_ranges_are_refused(section, field):
    with pytest.raises(InputError, match=field):
        Experiment.from_dict({"data": "digits", "augment": {"contrast": section}})
