"""Any classifier of ``torchvision.models`` by name, from scratch: ``kind = "torchvision:resnet18"``."""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.errors import InputError, nearest
from fedssl.models.base import Model


class TorchVision(Model):
    """Build a named torchvision classifier for the data's classes and channels."""

    name: str = Field(description="name of the classifier, as torchvision lists it")
    resize: int | None = Field(
        None, ge=8, description="side in pixels that images are scaled to first; unset: as they are"
    )

    def build(self, image_shape: Sequence[int], num_classes: int) -> nn.Module:
        """Return the classifier behind an adapter of size, channels and outputs."""
        from torchvision import models  # imported here: it takes a second that other models save

        known = models.list_models(module=models)
        if self.name not in known:
            raise InputError(
                "model.kind",
                f"torchvision has no classifier {self.name!r}",
                nearest(self.name, known),
            )
        options: dict[str, Any] = {"weights": None, "num_classes": num_classes}
        if self.name in ("inception_v3", "googlenet"):
            options |= {"aux_logits": False, "init_weights": True}
        return _Adapted(models.get_model(self.name, **options), self.resize)


class _Adapted(nn.Module):
    """Feed a backbone that wants three channels and perhaps larger images."""

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
