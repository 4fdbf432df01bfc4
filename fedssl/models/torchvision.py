"""Any classifier of ``torchvision.models`` by name, with fresh weights: ``kind = "torchvision:resnet18"``."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.extras import require
from fedssl.models.base import Model, Norm, norm_layer


class TorchVision(Model):
    """Build a named torchvision classifier for the data's classes and channels."""

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
        """Return the classifier behind an adapter for the images' size and channels."""
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
        backbone = models.get_model(self.name, **options)
        if self.norm is not None:
            self._replace_norms(backbone, self.norm)
        return _Adapted(backbone, self.resize)

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
