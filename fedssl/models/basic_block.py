"""The basic residual block, which ResNet-8 and ResNet-18 share.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, figure 2.
"""

from torch import Tensor, nn

from fedssl.models.base import Norm, conv_layer, norm_layer


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
