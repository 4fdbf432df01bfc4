"""Group normalization for images laid out channels last: the values of torch's own, in the same layout."""

import pytest
import torch
from torch import nn

from fedssl.models.group_norm import GroupNorm


def both(groups, channels):
    ours, torchs = GroupNorm(groups, channels), nn.GroupNorm(groups, channels)
    generator = torch.Generator().manual_seed(0)
    for parameter in ours.parameters():
        nn.init.normal_(parameter, generator=generator)
    torchs.load_state_dict(ours.state_dict())
    return ours.double(), torchs.double()


@pytest.mark.parametrize(
    ("groups", "channels", "side"),
    [(8, 16, 28), (8, 32, 14), (8, 64, 14), (8, 16, 8), (3, 3, 10), (8, 16, 32)],
)
def test_values_gradients_and_layout_are_those_of_torch(groups, channels, side):
    ours, torchs = both(groups, channels)
    images = torch.randn(4, channels, side, side, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    got, wanted = [], []
    for layer, found in ((ours, got), (torchs, wanted)):
        given = images.clone().requires_grad_()
        out = layer(given)
        out.pow(3).sum().backward()
        found += [out, given.grad, layer.weight.grad, layer.bias.grad]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert got[0].is_contiguous(memory_format=torch.channels_last)


def test_it_can_be_mapped_over_clients():
    """Networks of several clients that cannot be widened run under ``torch.vmap``."""
    ours, torchs = both(8, 16)
    images = torch.randn(3, 2, 16, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(
        torch.vmap(ours)(images), torch.stack([torchs(one) for one in images])
    )


@pytest.mark.parametrize(
    ("channels", "side", "anew"), [(16, 28, 1), (16, 8, 0), (16, 32, 0), (64, 28, 0)]
)
def test_images_are_laid_out_anew_where_torchs_kernel_for_channels_last_is_slow(
    monkeypatch, channels, side, anew
):
    seen = []
    normalize = nn.GroupNorm.forward

    def noting(self, images):
        seen.append(images.is_contiguous())
        return normalize(self, images)

    monkeypatch.setattr(nn.GroupNorm, "forward", noting)
    images = torch.randn(2, channels, side, side).contiguous(memory_format=torch.channels_last)
    GroupNorm(8, channels)(images)
    assert seen == [bool(anew)]
