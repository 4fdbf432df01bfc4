"""CTAugment: an augmentation that learns, while training, how strongly each operation may distort an image.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Matching and Augmentation Anchoring",
ICLR 2020, arXiv:1911.09785, section 3.2 and appendix D; as FixMatch uses it (Sohn et al., NeurIPS 2020,
arXiv:2001.07685, appendix D, Table 13), with a cutout at the end. The range of every parameter is divided into bins.
The weight of a bin follows how well the network recognizes labeled images that were distorted by values in this bin.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import LearnedAugmentation, Probe
from fedssl.augment.geometry import FILTERS, rescale
from fedssl.augment.grouped import AFFINE, affine_group, apply_grouped_, single_group
from fedssl.augment.weak import Weak
from fedssl.core.slots import Tensors

_Operation = Callable[[Tensor, Tensor], Tensor]


def _enhance(function: _Operation) -> _Operation:
    """Return the operation with a factor from .1 to 2, as in the official code; the paper's table says 0 to 1."""
    return lambda images, levels: function(images, 0.1 + 1.9 * levels[:, 0])


def _blend_by_level(function: Callable[[Tensor], Tensor]) -> _Operation:
    """Return an operation that blends: level 0 gives the image, level 1 gives the function's result."""
    return lambda images, levels: ops.blend(function(images), images, levels[:, 0])


def _cutout(images: Tensor, levels: Tensor) -> Tensor:
    height, width = images.shape[2:]
    size = levels[:, 0] * (0.5 * min(height, width))
    return ops.cutout_(images, size, levels[:, 2] * width, levels[:, 3] * height)


def _rescale(images: Tensor, levels: Tensor) -> Tensor:
    return rescale(images, 1 - 0.5 * levels[:, 0], (len(FILTERS) * levels[:, 1]).long())


POINTWISE = (
    single_group("identity", lambda images, levels: images),
    single_group("autocontrast", _blend_by_level(ops.autocontrast)),
    single_group("blur", _blend_by_level(ops.blur)),
    single_group("brightness", _enhance(ops.brightness)),
    single_group("color", _enhance(ops.color)),
    single_group("contrast", _enhance(ops.contrast)),
    single_group("cutout", _cutout),
    single_group("equalize", _blend_by_level(ops.equalize)),
    single_group("invert", _blend_by_level(ops.invert)),
    single_group(
        "posterize", lambda images, levels: ops.posterize(images, 1 + (8 * levels[:, 0]).floor())
    ),
    single_group("rescale", _rescale),
    single_group("sharpness", _enhance(ops.sharpness)),
    single_group("smooth", _blend_by_level(ops.smooth)),
    single_group("solarize", lambda images, levels: ops.solarize(images, levels[:, 0])),
)
OPERATIONS = (*(name for group in POINTWISE for name in group.names), *AFFINE)
"""Names of the 19 operations; the last five are affine."""

MAX_PARAMETERS, MAX_BINS = 2, 17
_BINS = {"identity": (0, 0), "posterize": (8, 0), "rescale": (17, len(FILTERS))}
NUM_BINS = tuple(_BINS.get(name, (17, 0)) for name in OPERATIONS)
"""Number of bins of both parameters of each operation; 0 where the operation lacks the parameter."""


class CTAugment(LearnedAugmentation):
    """Flip and shift every image, distort it as strongly as the network still recognizes it, and cut out a square.

    Deviations: the official code adds 1 - decay to every weight before it compares a bin with the best bin. This moves
    the share at which a bin is switched off by .002. The official code also judges probes by a moving average of the
    network; here, the network in training judges them.
    """

    depth: int = Field(2, ge=0, le=8, description="number of operations applied to each image")
    threshold: float = Field(
        0.8,
        gt=0,
        le=1,
        description="a bin is used if its weight is at least this share of its parameter's best weight",
    )
    decay: float = Field(
        0.99, ge=0, le=1, description="share of a bin's weight that stays at each update"
    )
    weak: Weak = Field(Weak(), description="flip and shift applied before the operations")
    cutout: float = Field(
        0.5,
        ge=0,
        le=1,
        description="side of the cutout square at the end, as a share of the image's shorter side",
    )
    max_degrees: float = Field(
        45.0, ge=0, le=180, description="largest rotation either way, degrees"
    )
    max_shear: float = Field(
        0.3, ge=0, le=1, description="largest shear either way, as the tangent of its angle"
    )
    max_translate: float = Field(
        0.3, ge=0, le=1, description="largest shift either way, as a share of the image's side"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        "bilinear",
        description="how affine operations resample; the official code uses nearest, which tears small images",
    )

    def initial(self) -> Tensors:
        """Return a weight of 1 for every bin: ``weights``, shape (operations, parameters, bins).

        Entries beyond an operation's bins hold a 1 that never changes.
        """
        return {"weights": torch.ones(len(OPERATIONS), MAX_PARAMETERS, MAX_BINS)}

    def show(
        self, images: Tensor, generator: torch.Generator, state: Tensors, *, flips: bool
    ) -> Tensor:
        """Return views by bins drawn in proportion to the weights that reach the threshold, with a final cutout."""
        views = self.weak(images, generator, flips=flips)
        operation, uniform = self._draw(views, generator)
        odds = self.odds(state["weights"])[operation].view(-1, MAX_BINS)
        drawn = torch.multinomial(odds, 1, generator=generator).view(
            *operation.shape, MAX_PARAMETERS
        )
        num_bins = _num_bins(views.device)[operation]
        inside = (drawn + uniform[..., :MAX_PARAMETERS]) / num_bins.clamp(min=1)
        # 5 + .9999999 rounds to 6, but the last of six bins is 5.
        inside.clamp_(max=1 - torch.finfo(inside.dtype).eps)
        levels = torch.cat([inside, uniform[..., MAX_PARAMETERS:]], dim=2)
        for i in range(self.depth):
            self._apply_(views, operation[:, i], levels[:, i])
        x, y = torch.rand((2, len(views)), generator=generator, device=views.device)
        height, width = views.shape[2:]
        size = x.new_full(x.shape, self.cutout * min(height, width))
        return ops.cutout_(views, size, x * width, y * height)

    def probe(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Probe:
        """Return views by bins drawn uniformly, without the cutout at the end.

        Returns:
            The views, each image's chosen ``operation``, shape (B, depth), and the chosen ``bin`` of each parameter,
            shape (B, depth, parameters).
        """
        views = self.weak(images, generator, flips=flips)
        operation, uniform = self._draw(views, generator)
        for i in range(self.depth):
            self._apply_(views, operation[:, i], uniform[:, i])
        bins = uniform[..., :MAX_PARAMETERS] * _num_bins(views.device)[operation]
        return Probe(views, {"operation": operation, "bin": bins.long()})

    def learn(self, state: Tensors, probe: Probe, match: Tensor) -> Tensors:
        """Return weights moved towards how well the network recognized the views.

        If several choices of a probe fall into one bin, its weight is updated once for each choice, image after image:
        w <- decay * w + (1 - decay) * match, as in the official code.
        """
        weights, operation = state["weights"], probe.chosen["operation"]
        device, size = weights.device, weights.numel()
        parameter = operation.unsqueeze(2) * MAX_PARAMETERS + torch.arange(
            MAX_PARAMETERS, device=device
        )
        bins = parameter * MAX_BINS + probe.chosen["bin"]
        used = _num_bins(device)[operation] > 0
        hit, order = (
            bins.where(used, size).flatten().sort(stable=True)
        )  # unused parameters sort last
        counts = torch.bincount(hit, minlength=size + 1)
        later = counts.cumsum(0)[hit] - 1 - torch.arange(len(hit), device=device)
        matches = match.double().view(-1, 1, 1).expand(bins.shape).flatten()[order]
        moved = self.decay ** counts.double()
        moved[:size] *= weights.flatten()
        added = (1 - self.decay) * self.decay ** later.double() * matches
        moved.index_put_((hit,), added, accumulate=True)
        return {"weights": moved[:size].view_as(weights).to(weights.dtype)}

    def odds(self, weights: Tensor) -> Tensor:
        """Return how likely each bin is relative to the others, shape (operations, parameters, bins).

        Args:
            weights: Shape (operations, parameters, bins). A parameter whose weights are all 0 starts anew.
        """
        num_bins = _num_bins(weights.device).clamp(min=1).unsqueeze(2)
        exists = torch.arange(MAX_BINS, device=weights.device) < num_bins
        existing = weights * exists
        best = existing.amax(2, keepdim=True)
        shares = torch.where(best > 0, existing / best, exists.to(weights.dtype))
        return shares * (shares >= self.threshold)

    def _draw(self, views: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return operations, shape (B, depth), and numbers in [0, 1), (B, depth, 4): two parameters, then x and y."""
        shape, device = (len(views), self.depth), views.device
        operation = torch.randint(len(OPERATIONS), shape, generator=generator, device=device)
        return operation, torch.rand((*shape, 4), generator=generator, device=device)

    def _apply_(self, images: Tensor, operation: Tensor, levels: Tensor) -> Tensor:
        """Apply operation[i] at levels[i] to image i, in place; shapes (B,) and (B, 4)."""
        moved = affine_group(
            self.max_degrees, self.max_shear, self.max_translate, self.interpolation
        )
        return apply_grouped_(images, operation, levels, (*POINTWISE, moved))


def _num_bins(device: torch.device) -> Tensor:
    return torch.tensor(NUM_BINS, device=device)
