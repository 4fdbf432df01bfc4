"""Operations that move the pixels of a batch, each image by its own amount.

Every function takes images of shape (B, C, H, W) and returns a new tensor of the same shape.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_matrices(
    *,
    degrees: Tensor | None = None,
    shear_x: Tensor | None = None,
    shear_y: Tensor | None = None,
    shift_x: Tensor | None = None,
    shift_y: Tensor | None = None,
) -> Tensor:
    """Return affine maps from output to input pixels about the image's center, shape (B, 2, 3).

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
    """Resample every image through its own inverse map; pixels from outside the image are black.

    Args:
        images: Floats, shape (B, C, H, W).
        matrices: Maps from output to input pixels about the center, shape (B, 2, 3).
        mode: ``"bilinear"`` or ``"nearest"``.
    """
    height, width = images.shape[2:]
    columns = torch.arange(width, device=images.device) - (width - 1) / 2
    rows = torch.arange(height, device=images.device) - (height - 1) / 2
    # grid_sample measures in halves of the image from its center. Separate planes for x and y are faster to write and
    # to read than pairs, and faster than affine_grid.
    matrices = matrices * images.new_tensor([2 / width, 2 / height]).view(1, 2, 1)
    by_x, by_y, shift = matrices.unsqueeze(2).unbind(3)  # (B, 2, 1) each
    along = (by_y * rows + shift).unsqueeze(3)
    grid = (along + (by_x * columns).unsqueeze(2)).permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode=mode, padding_mode="zeros", align_corners=False)


def enlarge_crops(images: Tensor, crops: Tensor, mirrored: Tensor) -> Tensor:
    """Enlarge a part of every image to the size of the whole image, bilinearly; no pixel outside the part is looked at.

    Args:
        images: Floats in [0, 1], shape (B, C, H, W).
        crops: Top, left, height and width of each part, in whole pixels, shape (B, 4).
        mirrored: Whether each enlarged part is mirrored, left for right, shape (B,).
    """
    top, left, crop_height, crop_width = crops.unsqueeze(2).unbind(1)  # (B, 1) each
    rows = _source_pixels(images.shape[2], top, crop_height)
    columns = _source_pixels(images.shape[3], left, crop_width)
    columns = torch.where(mirrored.view(-1, 1), columns.flip(1), columns)
    # grid_sample measures in halves of the image from its center.
    across = (2 * columns + 1) / images.shape[3] - 1
    along = (2 * rows + 1) / images.shape[2] - 1
    shape = (len(images), images.shape[2], images.shape[3])
    grid = torch.stack([across.unsqueeze(1).expand(shape), along.unsqueeze(2).expand(shape)], dim=3)
    shown = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return shown.clamp_(0, 1)


def _source_pixels(size: int, start: Tensor, length: Tensor) -> Tensor:
    """Return the place in the input, in pixels, of each output pixel of an enlarged part, shape (B, size).

    Args:
        size: Pixels of the output along this axis.
        start, length: First pixel of the part and its number of pixels, shape (B, 1) each.
    """
    centers = torch.arange(size, device=start.device) + 0.5
    inside = torch.minimum((centers * length / size - 0.5).clamp(min=0), length - 1)
    return start + inside


def flip_and_shift(images: Tensor, mirrored: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """Mirror some images and shift every image by whole pixels, reflecting at the border.

    Args:
        images: Images of any type, shape (B, C, H, W).
        mirrored: Whether each image is mirrored, left for right, before it is shifted, shape (B,).
        right, down: Shifts in whole pixels, shape (B,) each; a shift beyond the image reflects again.
    """
    num_images, channels, height, width = images.shape
    device = images.device
    rows = _reflect(torch.arange(height, device=device) - down.view(-1, 1), height)
    columns = _reflect(torch.arange(width, device=device) - right.view(-1, 1), width)
    columns = torch.where(mirrored.view(-1, 1), width - 1 - columns, columns)
    # Copying whole rows and then picking columns takes a third of the time of picking both at once.
    planes = torch.arange(num_images * channels, device=device).view(num_images, channels, 1)
    which = (planes * height + rows.unsqueeze(1)).flatten()
    picked = images.reshape(-1, width).index_select(0, which).view_as(images)
    return picked.gather(3, columns.view(-1, 1, 1, width).expand(images.shape))


def _reflect(positions: Tensor, size: int) -> Tensor:
    """Fold whole positions back into [0, size) without repeating the border pixel."""
    period = max(2 * (size - 1), 1)
    folded = positions.abs() % period
    return torch.minimum(folded, period - folded)


FILTERS = ("lanczos", "bicubic", "bilinear", "box", "hamming", "nearest")
"""PIL's resampling filters, in the order in which CTAugment numbers them."""


def rescale(images: Tensor, share: Tensor, method: Tensor) -> Tensor:
    """Enlarge the middle of every image to the size of the whole image.

    Args:
        images: Floats in [0, 1], shape (B, C, H, W).
        share: Side of the enlarged part, as a share of the image's side, in (0, 1], shape (B,).
        method: Index into `FILTERS`, shape (B,). When they enlarge, box and nearest are the same.
    """
    height, width = images.shape[2:]
    rows = _resampling_weights(height, share, method)
    columns = rows if height == width else _resampling_weights(width, share, method)
    return (rows.unsqueeze(1) @ images @ columns.transpose(1, 2).unsqueeze(1)).clamp_(0, 1)


def _resampling_weights(size: int, share: Tensor, method: Tensor) -> Tensor:
    """Return the weight of each input pixel in each output pixel, shape (B, size, size)."""
    pixels = torch.arange(size, device=share.device) + 0.5
    centers = size / 2 + (pixels - size / 2) * share.view(-1, 1)
    signed = pixels - centers.unsqueeze(2)
    away = signed.abs().clamp_(min=1e-6)  # sin(x) / x rounds to 1 at 1e-6, as at 0
    angle = math.pi * away
    sinc = angle.sin() / angle
    within_1, within_2 = (1 - away).clamp_(min=0), (2 - away).clamp_(min=0)
    box = ((signed > -0.5) & (signed <= 0.5)).to(away.dtype)
    kernels = [
        sinc * (angle / 3).sin() / (angle / 3) * (away < 3),
        # Keys' cubic with a = -1/2, with its two pieces written as one sum.
        within_2.square() * (1 - away) / 2 + within_1.square() * (2 * away - 1),
        within_1,
        box,
        sinc * (0.54 + 0.46 * angle.cos()) * (away < 1),
        box,
    ]
    each = torch.arange(len(method), device=method.device)
    chosen = torch.stack(kernels, dim=1)[each, method]
    return chosen / chosen.sum(2, keepdim=True)
