"""ResNet-9, the small residual network of fast CIFAR-10 training.

Page, "How to Train Your ResNet", 2018-2019; it became known through DAWNBench (Coleman et al., "DAWNBench:
An End-to-End Deep Learning Benchmark and Competition", 2017). FedMatch (Jeong et al., ICLR 2021, arXiv:2006.12097) is
measured on a ResNet-9.
"""

from collections.abc import Sequence

from pydantic import Field, model_validator
from torch import Tensor, nn

from fedssl.models.base import (
    Classifier,
    Model,
    Norm,
    check_groups,
    conv_layer,
    init_he,
    norm_layer,
)


class ResNet9(Model):
    """Eight 3x3 convolutions with ReLU, four of them in two residual blocks, global max pooling, one linear layer.

    Deviations from Page's network: He normal convolutions instead of torch's default, and no factor on the logits.
    """

    width: int = Field(64, ge=1, description="channels of the first convolution; 64 is usual")
    norm: Norm = Field("group", description="normalization after every convolution")
    groups: int = Field(8, ge=1, description="groups of group normalization")

    @model_validator(mode="after")
    def _check(self) -> "ResNet9":
        check_groups(self.norm, self.groups, [self.width * 2**i for i in range(4)])
        return self

    def build(self, image_shape: Sequence[int], num_classes: int) -> Classifier:
        """Return the network, 6.57 million weights at width 64; pooling stops at one pixel."""
        channels, height, width = image_shape
        side = min(height, width)
        narrow, middle, wide, widest = (self.width * 2**i for i in range(4))
        layers: list[nn.Module] = [self._conv(channels, narrow)]

        def convolve_and_pool(channels: int, out: int) -> None:
            nonlocal side
            layers.append(self._conv(channels, out))
            if side >= 2:
                layers.append(nn.MaxPool2d(2))
                side //= 2

        convolve_and_pool(narrow, middle)
        layers.append(_Residual(self._conv(middle, middle), self._conv(middle, middle)))
        convolve_and_pool(middle, wide)
        convolve_and_pool(wide, widest)
        layers.append(_Residual(self._conv(widest, widest), self._conv(widest, widest)))
        trunk = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        network = Classifier(trunk, nn.Linear(widest, num_classes), widest)
        init_he(network)
        return network

    def _conv(self, channels: int, out: int) -> nn.Sequential:
        return nn.Sequential(
            conv_layer(channels, out, 3, self.norm),
            norm_layer(self.norm, out, self.groups),
            nn.ReLU(inplace=True),
        )


class _Residual(nn.Module):
    """A residual block x + f(x), where x and f(x) are activated already."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.residual = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.residual(x)
        return total
