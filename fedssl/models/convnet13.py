"""The 13-layer convolutional network of semi-supervised learning's first CIFAR-10 results.

Laine & Aila, "Temporal Ensembling for Semi-Supervised Learning", ICLR 2017, arXiv:1610.02242, table 5; Tarvainen &
Valpola, "Mean teachers are better role models", NeurIPS 2017, arXiv:1703.01780, table 5.
"""

from collections.abc import Sequence

from pydantic import Field, model_validator
from torch import nn

from fedssl.models.base import (
    Classifier,
    Model,
    Norm,
    check_groups,
    conv_layer,
    init_he,
    norm_layer,
)


class ConvNet13(Model):
    """Nine convolutions with LeakyReLU(0.1), two poolings with dropout, global average pooling, one linear layer.

    Deviations: a plain normalization replaces weight normalization with mean-only batch normalization. Gaussian noise
    on the input is left to augmentation.
    """

    width: int = Field(128, ge=1, description="channels of the first block; 128 in the papers")
    norm: Norm = Field("group", description="normalization after every convolution")
    groups: int = Field(8, ge=1, description="groups of group normalization")
    dropout: float = Field(0.5, ge=0, lt=1, description="dropout after each pooling")

    @model_validator(mode="after")
    def _check(self) -> "ConvNet13":
        check_groups(self.norm, self.groups, [self.width * 2**i for i in range(3)])
        return self

    def build(self, image_shape: Sequence[int], num_classes: int) -> Classifier:
        """Return the network, 3.1 million weights at width 128; He normal convolutions, as in the papers.

        Pooling stops when the image is down to one pixel. The convolution without padding is padded if the image is too
        small for it.
        """
        channels, height, width = image_shape
        side = min(height, width)
        layers: list[nn.Module] = []

        def convolve(out: int, size: int, padding: int | None = None) -> None:
            nonlocal channels
            layers.extend(
                [
                    conv_layer(channels, out, size, self.norm, padding=padding),
                    norm_layer(self.norm, out, self.groups),
                    nn.LeakyReLU(0.1, inplace=True),
                ]
            )
            channels = out

        for out in (self.width, 2 * self.width):
            for _ in range(3):
                convolve(out, 3)
            if side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            layers.append(nn.Dropout(self.dropout))
        convolve(4 * self.width, 3, padding=0 if side >= 3 else 1)
        convolve(2 * self.width, 1)
        convolve(self.width, 1)
        trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        network = Classifier(trunk, nn.Linear(channels, num_classes), channels)
        init_he(network)
        return network
