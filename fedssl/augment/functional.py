"""Operations on the pixels of a batch, each image with its own magnitude.

Every function takes float images in [0, 1], shape (B, C, H, W), and one magnitude for each image, shape (B,), in
torchvision's units. Only a function whose name ends in ``_`` writes to the images. The functions follow the
definitions of PIL, as torchvision's functional operations do, so that a policy of the literature means the same here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor * images + (1 - factor) * other``, clipped to [0, 1].

    Args:
        images: Shape (B, C, H, W).
        other: The result at factor 0, of a shape that broadcasts to that of the images.
        factor: Shape (B,); a factor above 1 leads away from ``other``.
    """
    return torch.lerp(other, images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """Return ITU-R 601 luma, shape (B, 1, H, W); a single channel is its own luma."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).unsqueeze(1)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; factor 1 is the identity."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image (saturation); an image of one channel stays as it is."""
    return images if images.shape[1] == 1 else blend(images, grayscale(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image."""
    mean = grayscale(images.mean(dim=(2, 3), keepdim=True))
    factor = factor.view(-1, 1, 1, 1)
    return (images * factor).add_((1 - factor) * mean).clamp_(0, 1)


def hue(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the color circle, in [-0.5, 0.5]; an image of one channel stays as it is."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    value, low = images.amax(1), images.amin(1)
    chroma = value - low
    # Where chroma is 0, the hue does not matter: it is multiplied by 0 below.
    scale = 1 / chroma.masked_fill(chroma == 0, 1)
    is_red = torch.eq(value, red, out=torch.empty_like(value))
    is_green = torch.eq(value, green, out=torch.empty_like(value))
    sixths = torch.lerp((red - green) * scale + 4, (blue - red) * scale + 2, is_green)
    sixths = torch.lerp(sixths, (green - blue) * scale, is_red)
    offsets = images.new_tensor([5, 3, 1]).view(1, 3, 1, 1)  # of red, green and blue
    place = (sixths + 6 * turn.view(-1, 1, 1)).unsqueeze(1) + offsets
    place -= 6 * (place / 6).floor_()
    share = torch.minimum(place, 4 - place).clamp_(0, 1)
    return (value.unsqueeze(1) - chroma.unsqueeze(1) * share).clamp_(0, 1)


def smooth(images: Tensor) -> Tensor:
    """Average 3x3 pixels, the middle pixel with weight 5 (PIL's SMOOTH); border pixels stay as they are."""
    result = images.clone()
    if min(images.shape[2:]) > 2:
        inner = images[:, :, 1:-1, 1:-1]
        result[:, :, 1:-1, 1:-1] = _sum_windows(images, 3).add_(inner, alpha=4).div_(13)
    return result


def blur(images: Tensor) -> Tensor:
    """Average the rim of 5x5 pixels (PIL's BLUR); pixels within two of the border stay as they are."""
    result = images.clone()
    if min(images.shape[2:]) > 4:
        rim = _sum_windows(images, 5).sub_(_sum_windows(images[:, :, 1:-1, 1:-1], 3))
        result[:, :, 2:-2, 2:-2] = rim.div_(16)
    return result


def gaussian_kernels(sigma: Tensor, radius: int) -> Tensor:
    """Return one Gaussian kernel for each standard deviation; each kernel sums to 1.

    Args:
        sigma: Standard deviations in pixels, shape (B,).
        radius: Pixels on either side of the middle.

    Returns:
        Shape (B, 2 radius + 1).
    """
    away = torch.arange(-radius, radius + 1, device=sigma.device) / sigma.view(-1, 1)
    # The exponent of the middle is 0, so no sum underflows to 0.
    kernels = torch.exp(-0.5 * away.square())
    return kernels / kernels.sum(1, keepdim=True)


def gaussian_blur(images: Tensor, along: Tensor, across: Tensor) -> Tensor:
    """Average pixels by kernels, along the height and then across the width; borders are reflected.

    Args:
        images: Shape (B, C, H, W).
        along, across: Kernels of each image along its height and its width, as `gaussian_kernels` returns them, shape
            (B, taps) each. Half of the taps must be fewer than the side's pixels.
    """
    y, x = along.shape[1] // 2, across.shape[1] // 2
    padded = F.pad(images, (x, x, y, y), mode="reflect")
    return _sum_taps(_sum_taps(padded, along, 2), across, 3).clamp_(0, 1)


def _sum_taps(images: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Return weighted sums along an axis; additions of whole images give an image the same bits in any batch."""
    size = images.shape[axis] - kernels.shape[1] + 1
    weights = kernels.view(*kernels.shape, 1, 1, 1)
    total = images.narrow(axis, 0, size) * weights[:, 0]
    for i in range(1, kernels.shape[1]):
        total += images.narrow(axis, i, size) * weights[:, i]
    return total


def _sum_windows(images: Tensor, side: int) -> Tensor:
    """Return sums over square windows; two passes of additions are faster than a depthwise convolution."""
    height, width = (size - side + 1 for size in images.shape[2:])
    rows = images[:, :, :height] + images[:, :, 1 : 1 + height]
    for i in range(2, side):
        rows += images[:, :, i : i + height]
    sums = rows[..., :width] + rows[..., 1 : 1 + width]
    for i in range(2, side):
        sums += rows[..., i : i + width]
    return sums


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the smoothed image; border pixels stay as they are."""
    return blend(images, smooth(images), factor)


def invert(images: Tensor) -> Tensor:
    """Turn black into white and white into black."""
    return 1 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of the 8 bits of every pixel; 8 is the identity."""
    step = torch.exp2(8 - bits.round()).view(-1, 1, 1, 1)
    return (images * 255).round_().div_(step).floor_().mul_(step).div_(255)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert every pixel at or above the threshold, which is in [0, 1]."""
    # A blend by 0 or 1 is exact, and ten times faster than a choice by a boolean mask.
    above = torch.ge(images, threshold.view(-1, 1, 1, 1), out=torch.empty_like(images))
    return torch.lerp(images, 1 - images, above)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to [0, 1]; a channel of one value stays as it is."""
    low = images.amin(dim=(2, 3), keepdim=True)
    span = images.amax(dim=(2, 3), keepdim=True) - low
    flat = span == 0
    low, span = low.masked_fill(flat, 0), span.masked_fill(flat, 1)
    return (images - low).div_(span).clamp_(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Flatten every channel's histogram of 256 levels, as PIL does."""
    pixels = (images * 255).round_().flatten(2)
    levels = pixels.long()
    # Counts are kept as floats, which are fast and exact below 2^24 pixels.
    counts = pixels.new_zeros(*levels.shape[:2], 256)
    counts.scatter_add_(2, levels, torch.ones_like(pixels))
    last = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - last).div_(255).floor_()
    flat = step == 0
    before = counts.cumsum(2).sub_(counts).add_((step / 2).floor_())
    table = before.div_(step.masked_fill(flat, 1)).floor_().clamp_(0, 255)
    table = torch.lerp(
        table, torch.arange(256.0, dtype=table.dtype, device=images.device), flat.to(table.dtype)
    )
    return table.gather(2, levels).div_(255).view_as(images)


def cutout_(images: Tensor, size: Tensor, center_x: Tensor, center_y: Tensor) -> Tensor:
    """Paint a gray (0.5) square over every image, in place; parts of the square outside the image have no effect.

    Args:
        images: Shape (B, C, H, W); written to.
        size: Side of the square in pixels, shape (B,).
        center_x, center_y: Center of the square in pixels, shape (B,) each.
    """
    height, width = images.shape[2:]
    half = (size / 2).view(-1, 1)
    rows = torch.arange(height, device=images.device) + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    in_rows = ((rows - center_y.view(-1, 1)).abs_() < half).to(images.dtype)
    in_columns = ((columns - center_x.view(-1, 1)).abs_() < half).to(images.dtype)
    covered = (in_rows.unsqueeze(2) * in_columns.unsqueeze(1)).unsqueeze(1)
    # Multiplying by 0 or 1 is exact, and ten times faster than filling under a mask.
    return images.mul_(1 - covered).add_(covered.mul_(0.5))
