"""Group normalization that is quick for images laid out channels last, which all networks here have."""

from torch import Tensor, nn

VECTOR = 8
"""Numbers that a core's vector unit (AVX2) handles at once, in single precision."""

LEAST_PIXELS = 100
"""For images of fewer pixels, laying out anew takes as long as it saves."""


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He, ECCV 2018, arXiv:1803.08494) of images (B, channels, H, W).

    torch's CPU kernel for images that are laid out channels last goes through each group channel by channel, and is up to
    ten times as slow as its kernel for the other layout if a group has fewer channels than `VECTOR`. Such images are laid
    out anew for the other kernel. Whether they are follows from sizes and the device alone, so bits do not depend on the
    machine's speed.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized images, (B, channels, H, W), laid out channels last."""
        height, width = images.shape[-2:]
        wide_groups = self.num_channels // self.num_groups >= VECTOR
        if images.device.type != "cpu" or wide_groups or height * width < LEAST_PIXELS:
            return super().forward(images)
        normalized = super().forward(images.contiguous())
        # torch.vmap knows no memory formats, so the layout is made by a permuted copy.
        return normalized.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
