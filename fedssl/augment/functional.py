"""Image operations on batches, each image with its own magnitude.

Every function takes float images in [0, 1] of shape (B, C, H, W) and one magnitude an image, shape (B,), in
torchvision's units, and returns a new tensor of the same shape. They follow the definitions of PIL, as
torchvision's functional operations do, so that a policy of the literature means the same here.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Return ``factor * images + (1 - factor) * other``, clipped to [0, 1]."""
    return torch.lerp(other, images, factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def grayscale(images: Tensor) -> Tensor:
    """Return ITU-R 601 luma, shape (B, 1, H, W); a single channel is its own luma."""
    if images.shape[1] == 1:
        return images
    weights = images.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black; factor 1 is the identity."""
    return (images * factor.view(-1, 1, 1, 1)).clamp_(0, 1)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the gray image (saturation); one channel has no color and stays as it is."""
    if images.shape[1] == 1:
        return images
    return _blend(images, grayscale(images).expand_as(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the mean luma of each image."""
    mean = grayscale(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, mean.expand_as(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3x3 smoothing; the outermost pixels stay as they are."""
    channels, height, width = images.shape[1:]
    if height <= 2 or width <= 2:
        return images
    kernel = images.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    smooth = images.clone()
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(images, kernel.expand(channels, 1, 3, 3), groups=channels)
    return _blend(images, smooth, factor)


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest ``bits`` of the 8 of every pixel; 8 is the identity."""
    step = torch.exp2(8 - bits.round()).view(-1, 1, 1, 1)
    return torch.floor((images * 255).round() / step) * step / 255


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert every pixel at or above the threshold, which is in [0, 1]."""
    return torch.where(images >= threshold.view(-1, 1, 1, 1), 1 - images, images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel to the whole range; a flat channel stays as it is."""
    low = images.amin(dim=(2, 3), keepdim=True)
    span = images.amax(dim=(2, 3), keepdim=True) - low
    flat = span == 0
    return torch.where(flat, images, (images - low) / span.masked_fill(flat, 1)).clamp_(0, 1)


def equalize(images: Tensor) -> Tensor:
    """Flatten every channel's histogram of 256 levels, as PIL does."""
    levels = (images * 255).round().long().flatten(2)  # (B, C, H*W)
    counts = levels.new_zeros(*levels.shape[:2], 256)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    last = 255 - (counts.flip(2) > 0).int().argmax(2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, last)).div(255, rounding_mode="floor")
    before = counts.cumsum(2) - counts
    table = (before + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp_(0, 255)
    equalized = table.gather(2, levels).view_as(images).to(images.dtype) / 255
    return torch.where(step.view(*step.shape[:2], 1, 1) == 0, images, equalized)


def affine_matrices(
    *,
    degrees: Tensor | None = None,
    shear_x: Tensor | None = None,
    shear_y: Tensor | None = None,
    shift_x: Tensor | None = None,
    shift_y: Tensor | None = None,
) -> Tensor:
    """Return inverse maps in pixels about the image's center, shape (B, 2, 3).

    Args:
        degrees: Rotation, counter-clockwise, in degrees.
        shear_x, shear_y: Shear as the tangent of its angle.
        shift_x, shift_y: Shift in pixels, right and down positive.
    """
    given = [degrees, shear_x, shear_y, shift_x, shift_y]
    like = next(value for value in given if value is not None)
    zero = torch.zeros_like(like)
    angle = zero if degrees is None else degrees * (math.pi / 180)
    by_x, by_y, right, down = (zero if value is None else value for value in given[1:])
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [cos, by_x - sin, -right, sin + by_y, cos, -down]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


def warp(images: Tensor, matrices: Tensor, mode: str = "bilinear") -> Tensor:
    """Resample every image through its own inverse map; what comes from outside is black.

    Args:
        images: Shape (B, C, H, W).
        matrices: Maps from output to input pixels about the center, shape (B, 2, 3).
        mode: ``"bilinear"`` or ``"nearest"``.
    """
    height, width = images.shape[2:]
    size = images.new_tensor([width, height])
    linear = matrices[:, :, :2] * (size.view(1, 1, 2) / size.view(1, 2, 1))
    shift = matrices[:, :, 2:] * 2 / size.view(1, 2, 1)
    grid = F.affine_grid(torch.cat([linear, shift], dim=2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def shift_by_pixels(images: Tensor, right: Tensor, down: Tensor, padding: int) -> Tensor:
    """Shift every image by whole pixels, mirroring the border (reflect pad, then crop).

    Args:
        images: Shape (B, C, H, W).
        right, down: Integer shifts in [-padding, padding], shape (B,).
        padding: Widest shift in pixels; below the image's size.
    """
    num_images, _, height, width = images.shape
    padded = F.pad(images, [padding] * 4, mode="reflect")
    rows = torch.arange(height, device=images.device) + (padding - down).view(-1, 1)
    columns = torch.arange(width, device=images.device) + (padding - right).view(-1, 1)
    which = torch.arange(num_images, device=images.device).view(-1, 1, 1)
    picked = padded.permute(0, 2, 3, 1)[which, rows.unsqueeze(2), columns.unsqueeze(1)]
    return picked.permute(0, 3, 1, 2).contiguous()


def cutout(images: Tensor, size: Tensor, center_x: Tensor, center_y: Tensor) -> Tensor:
    """Paint a gray (0.5) square over every image; what lies outside the image is cut off.

    Args:
        images: Shape (B, C, H, W).
        size: Side of the square in pixels, shape (B,).
        center_x, center_y: Its center in pixels, shape (B,).
    """
    height, width = images.shape[2:]
    half = (size / 2).view(-1, 1)
    rows = torch.arange(height, device=images.device) + 0.5
    columns = torch.arange(width, device=images.device) + 0.5
    in_rows = (rows - center_y.view(-1, 1)).abs() < half
    in_columns = (columns - center_x.view(-1, 1)).abs() < half
    covered = (in_rows.unsqueeze(2) & in_columns.unsqueeze(1)).unsqueeze(1)
    return images.masked_fill(covered, 0.5)
