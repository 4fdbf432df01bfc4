"""The base class of model sections, which build a classifier from the data's shape, and layers that models share."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.models.modes import evaluation_mode
from fedssl.models.static_norm import StaticBatchNorm

Norm = Literal["group", "batch", "static", "none"]
"""Normalization after a convolution; static uses the batch in training and measured statistics in evaluation."""


class Model(Plugin):
    """A section that builds a classifier.

    Example:
        A new model defines `build`:

        >>> class Linear(Model):
        ...     def build(self, image_shape, num_classes):
        ...         channels, height, width = image_shape
        ...         layer = nn.Linear(channels * height * width, num_classes)
        ...         return nn.Sequential(nn.Flatten(), layer)
        >>> network = Linear().build((1, 8, 8), num_classes=10)
        >>> tuple(network(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def build(self, image_shape: Sequence[int], num_classes: int) -> nn.Module:
        """Return a module that maps normalized images (B, C, H, W) to logits (B, num_classes).

        Args:
            image_shape: (C, H, W).
            num_classes: Width of the output.

        Raises:
            InputError: The architecture cannot take images of this shape.
        """


MODELS = Family("model", "fedssl.models", Model, "model", default="cnn")


def norm_layer(norm: Norm, channels: int, groups: int = 8) -> nn.Module:
    """Return the normalization of one layer of images (B, channels, H, W).

    Group normalization is the default in a federation, because batch statistics of skewed clients do not average
    (Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020, arXiv:1910.00189).

    Args:
        norm: Kind of normalization.
        channels: Channels of the layer.
        groups: Groups of group normalization; a layer of fewer channels has one group per channel.
    """
    if norm == "group":
        return nn.GroupNorm(min(groups, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "static":
        return StaticBatchNorm(channels)
    return nn.Identity()


def check_groups(norm: Norm, groups: int, widths: Iterable[int]) -> None:
    """Raise `ValueError` if group normalization cannot divide one of a model's widths (in channels) into groups."""
    for width in widths:
        if norm == "group" and width % min(groups, width):
            raise ValueError(
                f"a width of {width} is not divisible into {groups} groups; change the width or groups"
            )


def conv_layer(
    channels: int, out: int, size: int, norm: Norm, *, stride: int = 1, padding: int | None = None
) -> nn.Conv2d:
    """Return a convolution beside a normalization, which makes the convolution's bias redundant.

    Args:
        channels, out: Channels in and out.
        size: Side of the kernel, odd.
        norm: The normalization beside it; only ``"none"`` keeps the bias.
        stride: As in torch.
        padding: Zeros on each side; None pads so that the image keeps its size at stride 1.
    """
    if padding is None:
        padding = size // 2
    return nn.Conv2d(channels, out, size, stride, padding, bias=norm == "none")


def init_he(network: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / fan_out) and set their biases to 0, in place; other layers keep theirs.

    Reference: He et al., "Delving Deep into Rectifiers", ICCV 2015, arXiv:1502.01852, equation 14.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_takes_images(network: nn.Module, image_shape: Sequence[int], kind: str) -> None:
    """Raise `InputError` if a network cannot take two images of this shape."""
    try:
        with torch.no_grad(), evaluation_mode(network):
            network(torch.zeros(2, *image_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            "model.kind",
            f"{kind} cannot take images of {tuple(image_shape)}: {error}",
            "set model.resize, or take another model",
        ) from None
