"""Every image its own operation, and yet one call a kind of operation.

The images that drew the same operation are put side by side, treated together, and put back: the work of an image
is done once, and the time of a call is shared by many.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedssl.augment.geometry import affine_matrices, warp


@dataclass(frozen=True)
class Group:
    """Operations that one call can do.

    Args:
        names: Operations, in the order of their numbers.
        apply: Function of images (n, C, H, W), of which operation of the group each gets (n,), and of levels in
            [0, 1), shape (n, P), that returns the images after it, shape (n, C, H, W).
    """

    names: tuple[str, ...]
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]


def single(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Group:
    """Return the group of one operation, a function of images and levels."""
    return Group((name,), lambda images, which, levels: function(images, levels))


AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""Operations that one warp does."""


def affine(degrees: float, shear: float, translate: float, interpolation: str) -> Group:
    """Return the group of affine operations: the first level, from 0 to 1, leads from one end of a range to the other.

    Args:
        degrees: Widest rotation, degrees.
        shear: Widest shear, tangent of the angle.
        translate: Widest shift, as a share of the image's side.
        interpolation: ``"bilinear"`` or ``"nearest"``.
    """

    def apply(images: Tensor, which: Tensor, levels: Tensor) -> Tensor:
        height, width = images.shape[2:]
        reach = [degrees, shear, shear, translate * width, translate * height]
        amounts = torch.diag(images.new_tensor(reach)).index_select(0, which)
        turn, by_x, by_y, right, down = (amounts * (2 * levels[:, :1] - 1)).unbind(1)
        matrices = affine_matrices(
            degrees=turn, shear_x=by_x, shear_y=by_y, shift_x=right, shift_y=down
        )
        return warp(images, matrices, interpolation)

    return Group(AFFINE, apply)


_FLOATS_AT_ONCE = 2**18
"""A piece of 1 MiB stays in a core's cache from one step of an operation to the next."""


def apply_grouped_(
    images: Tensor, chosen: Tensor, levels: Tensor, groups: Sequence[Group]
) -> Tensor:
    """Replace every image by what its own operation makes of it.

    Args:
        images: Floats, shape (B, C, H, W); written to, for new memory would take longer than most operations.
        chosen: Number of each image's operation, counted through all groups, shape (B,).
        levels: How strongly, in [0, 1), shape (B, P).
        groups: All there are.

    Returns:
        The images given.
    """
    num_operations = sum(len(group.names) for group in groups)
    # The one wait for the device: how many images each group gets.
    counts = torch.bincount(chosen, minlength=num_operations).tolist()
    order = chosen.argsort(stable=True)
    chosen, levels = chosen.index_select(0, order), levels.index_select(0, order)
    at_once = max(1, _FLOATS_AT_ONCE // max(1, images[:1].numel()))
    first = start = 0
    for group in groups:
        last = first + len(group.names)
        stop = start + sum(counts[first:last])
        for begin in range(start, stop, at_once):
            piece = slice(begin, min(begin + at_once, stop))
            rows = order[piece]
            shown = group.apply(images.index_select(0, rows), chosen[piece] - first, levels[piece])
            images.index_copy_(0, rows, shown)
        first, start = last, stop
    return images
