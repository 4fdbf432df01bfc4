"""Any classifier of ``torchvision.models`` by name, with fresh weights: ``kind = "torchvision:resnet18"``."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.extras import require
from fedssl.core.known_names import is_torchvision_model
from fedssl.models.base import Classifier, Model, Norm, norm_layer
from fedssl.models.modes import evaluation_mode

SQUEEZENET_WIDTH = 512
"""Channels of the maps before SqueezeNet's last convolution."""

LARGEST_SIDE = 384
"""Side in pixels up to which the least side that an architecture can take is looked for; each takes 224 or 299."""


class TorchVision(Model):
    """Build a named torchvision classifier for the data's classes and channels.

    Its last layer is the head, and what comes before it is the trunk: the last linear layer, or SqueezeNet's last
    convolution. Inception v3 and GoogLeNet are built without their auxiliary heads, because a method has one loss of one
    output. A vision transformer is built for the images' side, which must be a multiple of its patches' side.
    """

    knows_name: ClassVar[Callable[[str], bool]] = is_torchvision_model

    name: str = Field(description="name of the classifier, as torchvision lists it")
    resize: int | None = Field(
        None,
        ge=8,
        description="side in pixels to which images are scaled first; unset: they keep their size",
    )
    norm: Norm | None = Field(
        None,
        description="normalization that replaces every batch normalization; unset: the architecture keeps its own",
    )
    groups: int = Field(
        8,
        ge=1,
        description="most groups of group normalization; a layer gets the largest number that divides its channels",
    )

    def build(self, image_shape: Sequence[int], num_classes: int) -> nn.Module:
        """Return the classifier behind an adapter for the images' size and channels.

        Raises:
            InputError: There is no such classifier, it has nothing that `norm` could replace, or it cannot take images
                of this size; the message then says the least side that it takes.
        """
        require("torchvision", "model.kind", f"{self.kind!r}")
        from torchvision import models  # takes a second, which other models save

        known = models.list_models(module=models)
        if self.name not in known:
            raise InputError(
                "model.kind",
                f"torchvision has no classifier {self.name!r}",
                suggest_nearest(self.name, known),
            )
        options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
        if self.name in ("inception_v3", "googlenet"):
            options |= {"aux_logits": False, "init_weights": True}
        height, width = image_shape[1:] if self.resize is None else (self.resize, self.resize)
        if self.name.startswith("vit_"):
            options |= {"image_size": self._side_of_patches(height, width)}
        backbone = models.get_model(self.name, **options)
        self._check_size(backbone, height, width)
        if self.norm is not None:
            self._replace_norms(backbone, self.norm)
        if isinstance(backbone, models.SqueezeNet):
            head = nn.Sequential(backbone.classifier, nn.Flatten())
            return Classifier(_Adapted(backbone.features, self.resize), head, SQUEEZENET_WIDTH)
        return _Adapted(backbone, self.resize)

    def _side_of_patches(self, height: int, width: int) -> int:
        """Return the side of images for a vision transformer, whose name ends with the side of its patches."""
        patch = int(self.name.rpartition("_")[2])
        if height != width or height % patch:
            raise InputError(
                "model.kind",
                f"{self.kind} cannot take images of {height}x{width} pixels, because it cuts squares into patches of "
                f"{patch}x{patch}",
                f"set model.resize to a multiple of {patch}",
            )
        return height

    def _check_size(self, backbone: nn.Module, height: int, width: int) -> None:
        """Refuse images that the backbone cannot take, with the least side that it can take."""
        shapes = copy.deepcopy(backbone).to("meta")
        problem = _why_not(shapes, height, width)
        if problem is None:
            return
        # The least side lies between a side that is too small and a side that is large enough.
        small, large = min(height, width), LARGEST_SIDE
        if _why_not(shapes, large, large) is not None:
            small, large = 0, 224
        while large - small > 1:
            middle = (small + large) // 2
            if _why_not(shapes, middle, middle) is None:
                large = middle
            else:
                small = middle
        raise InputError(
            "model.kind",
            f"{self.kind} cannot take images of {height}x{width} pixels ({problem})",
            f"set model.resize to {large} or take another model",
        )

    def _replace_norms(self, backbone: nn.Module, norm: Norm) -> None:
        """Replace every `BatchNorm2d` by a fresh normalization of as many channels, in place.

        A normalization draws no random weights, so the seed gives the other weights whatever the normalization is.
        """
        found = [
            (parent, name, child)
            for parent in backbone.modules()
            for name, child in parent.named_children()
            if isinstance(child, nn.BatchNorm2d)
        ]
        if not found:
            raise InputError(
                "model.norm",
                f"is {norm!r}, but {self.name} has no batch normalization to replace",
                "leave norm out",
            )
        for parent, name, child in found:
            channels = child.num_features
            setattr(parent, name, norm_layer(norm, channels, _num_groups(channels, self.groups)))


def _why_not(shapes: nn.Module, height: int, width: int) -> str | None:
    """Return why a backbone cannot take images of this size, or None if it can.

    Args:
        shapes: The backbone on torch's ``meta`` device, where only shapes are computed.
        height, width: Size of the images in pixels.
    """
    try:
        with torch.no_grad(), evaluation_mode(shapes):
            shapes(torch.zeros(2, 3, height, width, device="meta"))
    except (RuntimeError, ValueError, AssertionError) as error:
        return str(error).partition("\n")[0]
    return None


def _num_groups(channels: int, most: int) -> int:
    """Return the largest divisor of a number of channels that is not above `most`."""
    return max(groups for groups in range(1, most + 1) if channels % groups == 0)


class _Adapted(nn.Module):
    """A backbone that is given three channels and, if `resize` is set, images of this side."""

    def __init__(self, backbone: nn.Module, resize: int | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.resize = resize

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if self.resize is not None:
            images = F.interpolate(
                images, size=(self.resize, self.resize), mode="bilinear", align_corners=False
            )
        logits: Tensor = self.backbone(images)
        return logits
