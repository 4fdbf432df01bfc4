"""Apply to every image its own operation, with one call for each kind of operation, or change some images only.

Images that drew the same operation are gathered, changed in one call, and put back. Every image is worked on once, and
many images share the cost of a call.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedssl.augment.geometry import affine_matrices, warp


@dataclass(frozen=True)
class Group:
    """A group of operations that one call can apply.

    Args:
        names: Names of the operations, in the order of their numbers.
        apply: Function that changes images. It is given the images, shape (n, C, H, W), the number within the group of
            each image's operation, shape (n,), and levels in [0, 1), shape (n, P). It returns the changed images,
            shape (n, C, H, W).
    """

    names: tuple[str, ...]
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]


def single_group(name: str, function: Callable[[Tensor, Tensor], Tensor]) -> Group:
    """Return a group of one operation, which is a function of images and levels."""
    return Group((name,), lambda images, which, levels: function(images, levels))


AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
"""Names of the affine operations; one warp applies any mix of them."""


def affine_group(degrees: float, shear: float, translate: float, interpolation: str) -> Group:
    """Return the group of affine operations; the first level maps [0, 1] to an operation's whole range.

    Args:
        degrees: Largest rotation either way, degrees.
        shear: Largest shear either way, as the tangent of its angle.
        translate: Largest shift either way, as a share of the image's side.
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
"""Images are changed in pieces of this many floats (1 MiB), which stay in a core's cache during an operation."""


def apply_grouped_(
    images: Tensor, chosen: Tensor, levels: Tensor, groups: Sequence[Group]
) -> Tensor:
    """Apply to every image its own operation, in place.

    Args:
        images: Floats, shape (B, C, H, W); written to, because new memory would take longer than most operations.
        chosen: Number of each image's operation, counted across all groups, shape (B,).
        levels: Levels of each image's operation, in [0, 1), shape (B, P).
        groups: The groups that `chosen` counts across.

    Returns:
        The given images.
    """
    num_operations = sum(len(group.names) for group in groups)
    # This is the only wait for the device: it reads how many images each group gets.
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


def apply_to_some_(
    images: Tensor, chosen: Tensor, change: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Change some of the images, in place.

    Args:
        images: Floats, shape (B, C, H, W); written to.
        chosen: Whether each image is changed, shape (B,).
        change: Function that returns the changed images, (n, C, H, W). It is given a copy of the chosen images and their
            rows in the batch, (n,).

    Returns:
        The given images.
    """
    rows = chosen.nonzero().squeeze(1)
    return images.index_copy_(0, rows, change(images.index_select(0, rows), rows))
