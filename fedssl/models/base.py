"""What every model section is: hyper-parameters that build a module from the data's shape."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import nn

from fedssl.errors import InputError
from fedssl.registry import Family, Plugin

Norm = Literal["group", "batch", "none"]


class Model(Plugin):
    """A section that builds a classifier."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def build(self, image_shape: Sequence[int], num_classes: int) -> nn.Module:
        """Return a module from normalized images (B, C, H, W) to logits (B, num_classes).

        Args:
            image_shape: (C, H, W).
            num_classes: Width of the output.

        Raises:
            InputError: The architecture cannot take images of this shape.
        """


MODELS = Family("model", "fedssl.models", Model, "model", default="cnn")


def norm_layer(norm: Norm, channels: int, groups: int = 8) -> nn.Module:
    """Return the normalization of one layer.

    Group normalization is the default of a federation: batch statistics of skewed clients do not average
    (Hsieh et al., "The Non-IID Data Quagmire of Decentralized Machine Learning", ICML 2020, arXiv:1910.00189).
    """
    if norm == "group":
        return nn.GroupNorm(min(groups, channels), channels)
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    return nn.Identity()


def check_fits(network: nn.Module, image_shape: Sequence[int], kind: str) -> None:
    """Raise `InputError` if a network cannot take two images of this shape."""
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(2, *image_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(
            "model.kind",
            f"{kind} cannot take images of {tuple(image_shape)}: {error}",
            "set model.resize, or take another model",
        ) from None
    finally:
        network.train(training)
