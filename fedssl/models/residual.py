"""Networks of basic residual blocks for small images, which ResNet-8 and ResNet-18 are.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2 and figure 2.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fedssl.models.base import Classifier, Norm, conv_layer, init_he, norm_layer


class BasicBlock(nn.Module):
    """The block ReLU(s(x) + f(x)), where f is two 3x3 convolutions, each with a normalization.

    The shortcut s is the identity. If the block changes the shape, s is a 1x1 convolution with a normalization (the
    paper's option B).

    Args:
        channels, out: Channels in and out.
        stride: Stride of the first convolution; 2 halves the image.
        norm: Kind of normalization.
        groups: Groups of group normalization.
    """

    def __init__(self, channels: int, out: int, stride: int, norm: Norm, groups: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            conv_layer(channels, out, 3, norm, stride=stride),
            norm_layer(norm, out, groups),
            nn.ReLU(inplace=True),
            conv_layer(out, out, 3, norm),
            norm_layer(norm, out, groups),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                conv_layer(channels, out, 1, norm, stride=stride), norm_layer(norm, out, groups)
            )
        self.activate = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (B, out, h, w) for an input (B, channels, H, W)."""
        activated: Tensor = self.activate(self.shortcut(x) + self.residual(x))
        return activated


def residual_network(
    image_shape: Sequence[int],
    num_classes: int,
    *,
    depths: Sequence[int],
    width: int,
    norm: Norm,
    groups: int,
) -> Classifier:
    """Return a 3x3 stem at full size, stages of basic blocks, global average pooling and one linear layer.

    Each stage but the first halves the image and has twice the channels of the stage before; an image of one pixel
    stays as it is. Convolutions are He normal, as in the paper.

    Args:
        image_shape: (C, H, W).
        num_classes: Number of classes.
        depths: Number of blocks of each stage.
        width: Channels of the first stage.
        norm: Normalization after every convolution.
        groups: Groups of group normalization.
    """
    layers: list[nn.Module] = [
        conv_layer(image_shape[0], width, 3, norm),
        norm_layer(norm, width, groups),
        nn.ReLU(inplace=True),
    ]
    channels = width
    for stage, depth in enumerate(depths):
        out = width * 2**stage
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(channels, out, stride, norm, groups))
            channels = out
    trunk = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network = Classifier(trunk, nn.Linear(channels, num_classes), channels)
    init_he(network)
    return network
