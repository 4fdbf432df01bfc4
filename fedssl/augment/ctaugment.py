"""CTAugment: an augmentation that learns, while training, how strongly each operation may distort.

Berthelot et al., "ReMixMatch: Semi-Supervised Learning with Distribution Matching and Augmentation Anchoring",
ICLR 2020, arXiv:1911.09785, section 3.2 and appendix D; as FixMatch uses it (Sohn et al., NeurIPS 2020,
arXiv:2001.07685, appendix D, Table 13), with a cutout at the end. The range of every parameter is divided into bins,
and every bin has a weight that follows how well the network recognizes labeled images that were distorted by it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fedssl.augment import functional as ops
from fedssl.augment.base import LearnedAugmentation, Probe
from fedssl.augment.geometry import FILTERS, rescale
from fedssl.augment.grouped import AFFINE, affine, apply_grouped_, single
from fedssl.augment.weak import Weak
from fedssl.core.slots import Tensors

_Operation = Callable[[Tensor, Tensor], Tensor]


def _enhance(function: _Operation) -> _Operation:
    """By a factor between .1 and 2, as the official code; the paper's table says between 0 and 1."""
    return lambda images, levels: function(images, 0.1 + 1.9 * levels[:, 0])


def _mixed(function: Callable[[Tensor], Tensor]) -> _Operation:
    """A blend: level 0 is the image, level 1 what the function makes of it."""
    return lambda images, levels: ops.blend(function(images), images, levels[:, 0])


def _cutout(images: Tensor, levels: Tensor) -> Tensor:
    height, width = images.shape[2:]
    size = levels[:, 0] * (0.5 * min(height, width))
    return ops.cutout_(images, size, levels[:, 2] * width, levels[:, 3] * height)


def _rescale(images: Tensor, levels: Tensor) -> Tensor:
    return rescale(images, 1 - 0.5 * levels[:, 0], (len(FILTERS) * levels[:, 1]).long())


POINTWISE = (
    single("identity", lambda images, levels: images),
    single("autocontrast", _mixed(ops.autocontrast)),
    single("blur", _mixed(ops.blur)),
    single("brightness", _enhance(ops.brightness)),
    single("color", _enhance(ops.color)),
    single("contrast", _enhance(ops.contrast)),
    single("cutout", _cutout),
    single("equalize", _mixed(ops.equalize)),
    single("invert", _mixed(ops.invert)),
    single(
        "posterize", lambda images, levels: ops.posterize(images, 1 + (8 * levels[:, 0]).floor())
    ),
    single("rescale", _rescale),
    single("sharpness", _enhance(ops.sharpness)),
    single("smooth", _mixed(ops.smooth)),
    single("solarize", lambda images, levels: ops.solarize(images, levels[:, 0])),
)
OPERATIONS = (*(name for group in POINTWISE for name in group.names), *AFFINE)
"""The 19 operations; the last five are affine."""

MAX_PARAMETERS, MAX_BINS = 2, 17
_BINS = {"identity": (0, 0), "posterize": (8, 0), "rescale": (17, len(FILTERS))}
NUM_BINS = tuple(_BINS.get(name, (17, 0)) for name in OPERATIONS)
"""Bins of both parameters of each operation; 0 where it has no such parameter."""


class CTAugment(LearnedAugmentation):
    """Give every image a weak view's flip and shift, operations as strong as is still recognized, and a cutout.

    Deviations from the official code: it adds 1 - decay to every weight before it compares a bin with the best one,
    which moves where a bin falls out by .002; and it judges probes by its moving average of the network, here it is the
    network that is being trained.
    """

    depth: int = Field(2, ge=0, le=8, description="operations an image")
    threshold: float = Field(
        0.8, gt=0, le=1, description="a bin is used at this share of its parameter's best weight"
    )
    decay: float = Field(0.99, ge=0, le=1, description="how much of a weight stays at each update")
    weak: Weak = Field(Weak(), description="flip and shift that come first")
    cutout: float = Field(
        0.5, ge=0, le=1, description="cutout square at the end, as a share of the image's side"
    )
    max_degrees: float = Field(45.0, ge=0, le=180, description="widest rotation, degrees")
    max_shear: float = Field(0.3, ge=0, le=1, description="widest shear, tangent of the angle")
    max_translate: float = Field(
        0.3, ge=0, le=1, description="widest shift, as a share of the image's side"
    )
    interpolation: Literal["nearest", "bilinear"] = Field(
        "bilinear",
        description="how affine operations resample; the official code takes the nearest pixel, which tears small images",
    )

    def initial(self) -> Tensors:
        """Return a weight of 1 for every bin: ``weights``, shape (operations, parameters, bins).

        Places beyond an operation's bins hold a 1 that never changes.
        """
        return {"weights": torch.ones(len(OPERATIONS), MAX_PARAMETERS, MAX_BINS)}

    def show(
        self, images: Tensor, generator: torch.Generator, state: Tensors, *, flips: bool
    ) -> Tensor:
        """Return views by bins drawn in proportion to the weights that reach the threshold, then the cutout."""
        views = self.weak(images, generator, flips=flips)
        operation, uniform = self._draw(views, generator)
        odds = self.odds(state["weights"])[operation].view(-1, MAX_BINS)
        drawn = torch.multinomial(odds, 1, generator=generator).view(
            *operation.shape, MAX_PARAMETERS
        )
        num_bins = _num_bins(views.device)[operation]
        inside = (drawn + uniform[..., :MAX_PARAMETERS]) / num_bins.clamp(min=1)
        # 5 + .9999999 rounds to 6, which is no bin of six.
        inside.clamp_(max=1 - torch.finfo(inside.dtype).eps)
        levels = torch.cat([inside, uniform[..., MAX_PARAMETERS:]], dim=2)
        for i in range(self.depth):
            self._apply_(views, operation[:, i], levels[:, i])
        x, y = torch.rand((2, len(views)), generator=generator, device=views.device)
        height, width = views.shape[2:]
        size = x.new_full(x.shape, self.cutout * min(height, width))
        return ops.cutout_(views, size, x * width, y * height)

    def probe(self, images: Tensor, generator: torch.Generator, *, flips: bool) -> Probe:
        """Return views by bins drawn evenly, without the cutout at the end.

        Returns:
            Views, and the chosen ``operation``, shape (B, depth), and ``bin`` of its parameters,
            shape (B, depth, parameters).
        """
        views = self.weak(images, generator, flips=flips)
        operation, uniform = self._draw(views, generator)
        for i in range(self.depth):
            self._apply_(views, operation[:, i], uniform[:, i])
        bins = uniform[..., :MAX_PARAMETERS] * _num_bins(views.device)[operation]
        return Probe(views, {"operation": operation, "bin": bins.long()})

    def learn(self, state: Tensors, probe: Probe, match: Tensor) -> Tensors:
        """Return weights moved towards how well the views were recognized.

        Where several choices of a probe met in one bin, its weight is updated once for each, image after image:
        w <- decay * w + (1 - decay) * match, as the official code does.
        """
        weights, operation = state["weights"], probe.chosen["operation"]
        device, size = weights.device, weights.numel()
        parameter = operation.unsqueeze(2) * MAX_PARAMETERS + torch.arange(
            MAX_PARAMETERS, device=device
        )
        bins = parameter * MAX_BINS + probe.chosen["bin"]
        used = _num_bins(device)[operation] > 0
        hit, order = bins.where(used, size).flatten().sort(stable=True)  # what is unused, last
        counts = torch.bincount(hit, minlength=size + 1)
        later = counts.cumsum(0)[hit] - 1 - torch.arange(len(hit), device=device)
        matches = match.double().view(-1, 1, 1).expand(bins.shape).flatten()[order]
        moved = self.decay ** counts.double()
        moved[:size] *= weights.flatten()
        added = (1 - self.decay) * self.decay ** later.double() * matches
        moved.index_put_((hit,), added, accumulate=True)
        return {"weights": moved[:size].view_as(weights).to(weights.dtype)}

    def odds(self, weights: Tensor) -> Tensor:
        """Return how likely each bin is, up to a factor, shape (operations, parameters, bins).

        Args:
            weights: Shape (operations, parameters, bins). A parameter whose weights all vanished starts anew.
        """
        num_bins = _num_bins(weights.device).clamp(min=1).unsqueeze(2)
        exists = torch.arange(MAX_BINS, device=weights.device) < num_bins
        existing = weights * exists
        best = existing.amax(2, keepdim=True)
        shares = torch.where(best > 0, existing / best, exists.to(weights.dtype))
        return shares * (shares >= self.threshold)

    def _draw(self, views: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return operations, shape (B, depth), and numbers in [0, 1): two parameters, then two of a place."""
        shape, device = (len(views), self.depth), views.device
        operation = torch.randint(len(OPERATIONS), shape, generator=generator, device=device)
        return operation, torch.rand((*shape, 4), generator=generator, device=device)

    def _apply_(self, images: Tensor, operation: Tensor, levels: Tensor) -> Tensor:
        """Apply in place to image i operation[i], shape (B,), at levels[i], shape (B, 4)."""
        moved = affine(self.max_degrees, self.max_shear, self.max_translate, self.interpolation)
        return apply_grouped_(images, operation, levels, (*POINTWISE, moved))


def _num_bins(device: torch.device) -> Tensor:
    return torch.tensor(NUM_BINS, device=device)
