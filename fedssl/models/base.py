"""The base class of model sections, which build a classifier from the data's shape, and layers that models share."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin
from fedssl.models.group_norm import GroupNorm
from fedssl.models.modes import evaluation_mode
from fedssl.models.static_norm import StaticBatchNorm

Norm = Literal["group", "batch", "static", "none"]
"""Normalization after a convolution; static uses the batch in training and measured statistics in evaluation."""


class WithFeatures(nn.Module):
    """A module that maps images to logits (B, num_classes), and that has features to judge or to go on from."""

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the features of normalized images (B, C, H, W), shape (B, number of features)."""


class Classifier(WithFeatures):
    """A classifier in two parts: a trunk that makes features of images, and a head that makes logits of them.

    Args:
        trunk: Module that maps normalized images (B, C, H, W) to features (B, width) or to maps (B, width, h, w).
        head: Module that maps what the trunk returns to logits (B, num_classes), most often one linear layer.
        width: Number of features.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, width: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head
        self.width = width

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images (B, C, H, W), shape (B, num_classes)."""
        logits: Tensor = self.head(self.trunk(images))
        return logits

    def features(self, images: Tensor) -> Tensor:
        """Return the features of normalized images (B, C, H, W), shape (B, width); maps are averaged over their pixels."""
        return _averaged(self.trunk(images))

    def logits_and_features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `forward` and `features` return, from one pass through the trunk."""
        seen = self.trunk(images)
        return self.head(seen), _averaged(seen)


def _averaged(seen: Tensor) -> Tensor:
    """Return features (B, width) as they are, and the mean over the pixels of maps (B, width, h, w)."""
    return seen.mean((2, 3)) if seen.dim() == 4 else seen


class Model(Plugin):
    """A section that builds a classifier.

    Example:
        A new model defines `build`:

        >>> class Linear(Model):
        ...     def build(self, image_shape, num_classes):
        ...         channels, height, width = image_shape
        ...         size = channels * height * width
        ...         return Classifier(nn.Flatten(), nn.Linear(size, num_classes), width=size)
        >>> network = Linear().build((1, 8, 8), num_classes=10)
        >>> tuple(network(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
    """

    is_abstract: ClassVar[bool] = True

    paths: ClassVar[frozenset[str]] = frozenset({"weights"})
    """Names of settings that hold the path of a file or folder as text."""

    weights: str | None = Field(
        None,
        description="weights with which the first phase begins: a .safetensors file, the folder of a finished run (its moving "
        "average), or torchvision:NAME for weights of torchvision that are on this machine; unset: the seed draws them",
    )
    new_head: bool = Field(
        False,
        description="whether the head of the weights is left out, such as for other classes; it begins anew",
    )

    @abstractmethod
    def build(self, image_shape: Sequence[int], num_classes: int) -> nn.Module:
        """Return a module that maps normalized images (B, C, H, W) to logits (B, num_classes).

        A module that is no `Classifier` is made one by `as_classifier`: its last linear layer is the head.

        Args:
            image_shape: (C, H, W).
            num_classes: Width of the output.

        Raises:
            InputError: The architecture cannot take images of this shape.
        """


MODELS = Family("model", "fedssl.models", Model, "model", default="cnn")


def as_classifier(network: nn.Module, image_shape: Sequence[int]) -> Classifier:
    """Return a classifier of the same weights, split before its last linear layer.

    If the last linear layer does not make the network's output, the network is a trunk without a head, and its features
    are its logits.

    Args:
        network: Module that maps images to logits; it becomes a part of the result and must not be used alone.
        image_shape: (C, H, W) of its images.
    """
    if isinstance(network, Classifier):
        return network
    images = torch.linspace(-1, 1, 2 * math.prod(image_shape)).view(2, *image_shape)
    with torch.no_grad(), evaluation_mode(network):
        logits = network(images)
        linear = [name for name, m in network.named_modules() if isinstance(m, nn.Linear)]
        if linear and linear[-1]:
            parent, _, child = linear[-1].rpartition(".")
            head = network.get_submodule(linear[-1])
            setattr(network.get_submodule(parent), child, nn.Identity())
            features = network(images)
            width = features.shape[-1]
            if features.dim() == 2 and torch.equal(head(features), logits):
                return Classifier(network, head, width)
            setattr(network.get_submodule(parent), child, head)
    return Classifier(network, nn.Identity(), logits.shape[-1])


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
        return GroupNorm(min(groups, channels), channels)
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
