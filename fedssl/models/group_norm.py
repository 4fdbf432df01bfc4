"""Group normalization that is quick for images laid out channels last, which all networks here have."""

from torch import Tensor, nn

VECTOR = 8
"""Numbers that a core's vector unit (AVX2) handles at once, in single precision."""

PIXELS = range(100, 1024)
"""Numbers of pixels for which images are laid out anew. From 1,024 pixels, torch has a quick kernel for either layout. Below
100 pixels there is little to gain, and runs of earlier versions keep their bits."""


class GroupNorm(nn.GroupNorm):
    """Group normalization (Wu & He, ECCV 2018, arXiv:1803.08494) of images (B, channels, H, W).

    torch's CPU kernel for images laid out channels last is several times as slow as its kernel for the default layout, if a
    group has fewer channels than `VECTOR` and an image has fewer than 1,024 pixels. Such images are laid out anew.
    Whether they are follows from sizes and the device alone, so bits do not depend on the
    machine's speed.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized images, (B, channels, H, W), laid out channels last."""
        height, width = images.shape[-2:]
        wide_groups = self.num_channels // self.num_groups >= VECTOR
        if images.device.type != "cpu" or wide_groups or height * width not in PIXELS:
            return super().forward(images)
        normalized = super().forward(images.contiguous())
        # torch.vmap knows no memory formats, so the layout is made by a permuted copy.
        return normalized.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
