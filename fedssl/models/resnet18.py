"""ResNet-18 for small images: a 3x3 stem at full size and no pooling before the blocks.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385; the stem is that of their
CIFAR-10 networks (section 4.2), the blocks are those of their ImageNet network (table 1).
"""

from collections.abc import Sequence

from pydantic import Field, model_validator

from fedssl.models.base import Classifier, Model, Norm, check_groups
from fedssl.models.residual import residual_network


class ResNet18(Model):
    """Four pairs of residual blocks of 1, 2, 4 and 8 times `width` channels.

    Shortcuts that change the shape are 1x1 convolutions with a normalization (the paper's option B).
    """

    width: int = Field(64, ge=1, description="channels of the first blocks; 64 in the paper")
    norm: Norm = Field("group", description="normalization after every convolution")
    groups: int = Field(8, ge=1, description="groups of group normalization")

    @model_validator(mode="after")
    def _check(self) -> "ResNet18":
        check_groups(self.norm, self.groups, [self.width * 2**i for i in range(4)])
        return self

    def build(self, image_shape: Sequence[int], num_classes: int) -> Classifier:
        """Return the network, 11.17 million weights at width 64; He normal convolutions, as in the paper.

        The last three pairs halve the image; an image of one pixel stays as it is.
        """
        return residual_network(
            image_shape,
            num_classes,
            depths=(2, 2, 2, 2),
            width=self.width,
            norm=self.norm,
            groups=self.groups,
        )
