"""ResNet-8, the network of federated semi-supervised learning with labels at every client.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385, section 4.2, with n = 1 and four
times the channels. The code of SAGE (Liu et al., "Mind the Gap: Confidence Discrepancy Can Guide Federated
Semi-Supervised Learning Across Pseudo-Mismatch", CVPR 2025, arXiv:2503.13227) has this network, and later papers with
its protocol report figures of a ResNet-8.
"""

from collections.abc import Sequence

from pydantic import Field, model_validator

from fedssl.models.base import Classifier, Model, Norm, check_groups
from fedssl.models.residual import residual_network


class ResNet8(Model):
    """Three residual blocks of 1, 2 and 4 times `width` channels, global average pooling, one linear layer.

    Shortcuts that change the shape are 1x1 convolutions with a normalization (option B of He et al., whose own networks
    for CIFAR-10 have option A). The code of SAGE has batch normalization and a width of 64; He et al. have 16.
    """

    width: int = Field(64, ge=1, description="channels of the first block; 64 in the code of SAGE")
    norm: Norm = Field("group", description="normalization after every convolution")
    groups: int = Field(8, ge=1, description="groups of group normalization")

    @model_validator(mode="after")
    def _check(self) -> "ResNet8":
        check_groups(self.norm, self.groups, [self.width * 2**i for i in range(3)])
        return self

    def build(self, image_shape: Sequence[int], num_classes: int) -> Classifier:
        """Return the network, 1.23 million weights at width 64; He normal convolutions, as in the paper.

        The last two blocks halve the image; an image of one pixel stays as it is.
        """
        return residual_network(
            image_shape,
            num_classes,
            depths=(1, 1, 1),
            width=self.width,
            norm=self.norm,
            groups=self.groups,
        )
