"""Wide residual networks.

Zagoruyko & Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146. Semi-supervised methods are compared on
WRN-28-2 since Oliver et al., "Realistic Evaluation of Deep Semi-Supervised Learning Algorithms", NeurIPS 2018,
arXiv:1804.09170.
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


class WRN(Model):
    """Three groups of pre-activation residual blocks of 16, 32 and 64 times `width` channels.

    The activation is LeakyReLU(0.1) instead of the paper's ReLU, as in the official code of FixMatch. If a block
    changes the number of channels, its shortcut reads the activated input, as in the official code of the paper.
    """

    depth: int = Field(
        28, ge=10, description="number of convolutions, shortcuts included; it must be 6n + 4"
    )
    width: int = Field(2, ge=1, description="factor that multiplies the channels 16, 32 and 64")
    norm: Norm = Field("group", description="normalization before every convolution but the first")
    groups: int = Field(8, ge=1, description="groups of group normalization")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="dropout between the two convolutions of a block"
    )

    @model_validator(mode="after")
    def _check(self) -> "WRN":
        if (self.depth - 4) % 6:
            raise ValueError(
                f"a depth of {self.depth} is not 6n + 4; take 10, 16, 22, 28 or 40, for example"
            )
        check_groups(self.norm, self.groups, [16, *(16 * self.width * 2**i for i in range(3))])
        return self

    def build(self, image_shape: Sequence[int], num_classes: int) -> Classifier:
        """Return the network, 1.47 million weights for WRN-28-2; He normal convolutions, as in the paper.

        The second and third group halve the image; an image of one pixel stays as it is.
        """
        channels = 16
        layers: list[nn.Module] = [conv_layer(image_shape[0], channels, 3, self.norm)]
        for group in range(3):
            out = 16 * self.width * 2**group
            for block in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                layers.append(_Block(channels, out, stride, self))
                channels = out
        trunk = nn.Sequential(
            *layers,
            norm_layer(self.norm, channels, self.groups),
            nn.LeakyReLU(0.1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        network = Classifier(trunk, nn.Linear(channels, num_classes), channels)
        init_he(network)
        return network


class _Block(nn.Module):
    """A block x + f(x), f: twice normalization, activation and convolution (Zagoruyko & Komodakis, figure 1d)."""

    def __init__(self, channels: int, out: int, stride: int, model: WRN) -> None:
        super().__init__()
        # The activation is not in place: without a normalization it would change the input and so the shortcut.
        self.activate = nn.Sequential(
            norm_layer(model.norm, channels, model.groups), nn.LeakyReLU(0.1)
        )
        self.residual = nn.Sequential(
            conv_layer(channels, out, 3, model.norm, stride=stride),
            norm_layer(model.norm, out, model.groups),
            nn.LeakyReLU(0.1, inplace=True),
            nn.Dropout(model.dropout),
            conv_layer(out, out, 3, model.norm),
        )
        changes = stride != 1 or channels != out
        self.shortcut = conv_layer(channels, out, 1, model.norm, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        total: Tensor = shortcut + self.residual(activated)
        return total
