"""Static batch normalization: statistics of the batch in training, measured statistics in evaluation.

Diao, Ding & Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous Clients",
ICLR 2021, arXiv:2010.01264, section 3; used by SemiFL (Diao, Ding & Tarokh, NeurIPS 2022, arXiv:2106.01432).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedssl.models.modes import evaluation_mode, modules_of


class StaticBatchNorm(nn.Module):
    """Normalize each channel by the batch's own mean and variance, and track neither.

    A separate pass over data (`measure_statistics`) measures the statistics for evaluation, E[x] and E[x^2] of each
    channel. Both are linear in the data: if all clients measure with the same weights, the mean of their buffers with
    weights n_k is exactly the result of one pass over the batches of all clients. A mean of variances would leave out
    how far the clients' means lie apart. Before that pass, evaluation only scales and shifts.

    Deviations: HeteroFL keeps a mean and a variance, and measures them by querying the clients with the final model.
    Here each client that takes part measures with the weights that it has just trained, so the mean of the buffers is
    close to the statistics under the averaged weights, and not equal to them. A server with labels may measure on its own
    images instead (`server.statistics`), with the weights that it has just trained. SemiFL measures on the images of the
    server and of all clients, before each round; this is not offered, because it reads the images of clients that take no
    part in the round.

    Args:
        channels: C, the channels of images (B, C, H, W).
        eps: Added to the variance.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    mean: Tensor
    mean_square: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("mean_square", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return x normalized, shape (B, C, H, W); a channel of a single value becomes the bias."""
        if self.training:
            # F.batch_norm would refuse a single value per channel; its variance is 0 and needs no special case.
            return torch.batch_norm(
                x, self.weight, self.bias, None, None, True, 0.0, self.eps,
                torch.backends.cudnn.enabled,
            )  # fmt: skip
        # Rounding can leave the variance of a constant channel below zero.
        variance = (self.mean_square - self.mean.square()).clamp(min=0)
        return F.batch_norm(x, self.mean, variance, self.weight, self.bias, False, 0.0, self.eps)

    def extra_repr(self) -> str:
        """Return the text that a printed network shows for the layer."""
        return f"{len(self.weight)}, eps={self.eps}"


def measure_statistics(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Fill the buffers of a network's `StaticBatchNorm` layers by one pass over images, without gradients.

    While the pass runs these layers normalize by each batch's own statistics, as in training, and everything else
    (dropout, other normalizations) is as in evaluation; the training modes are restored afterwards. The weight of a
    batch is its number of values per channel. The inputs of deeper layers depend on how images are cut into batches. If
    the network has no `StaticBatchNorm`, no batch is read; if there are no images, the buffers do not change.

    Args:
        network: Its buffers are written in place.
        batches: Normalized images, each (B, C, H, W), on the network's device; sizes may differ.
    """
    found = (module for module in modules_of(network) if isinstance(module, StaticBatchNorm))
    layers = list(dict.fromkeys(found))
    if not layers:
        return
    tallies = [_Tally(layer) for layer in layers]
    with torch.no_grad(), _normalize_by_batch(network, layers):
        hooks = [
            layer.register_forward_pre_hook(tally)
            for layer, tally in zip(layers, tallies, strict=True)
        ]
        try:
            for images in batches:
                if len(images):
                    network(images)
        finally:
            for hook in hooks:
                hook.remove()
        for tally in tallies:
            tally.write()


class _Tally:
    """Sums of a layer's inputs x and of x^2 for each channel, in double precision."""

    def __init__(self, layer: StaticBatchNorm) -> None:
        self.layer = layer
        self.count = 0
        self.total = torch.zeros_like(layer.mean, dtype=torch.float64)
        self.total_square = torch.zeros_like(self.total)

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # A batch is averaged in float32 (autocast may pass half precision); batches are added in float64.
        x = inputs[0].float()
        values = x.numel() // x.shape[1]
        self.count += values
        self.total += values * x.mean((0, 2, 3)).double()
        self.total_square += values * x.square().mean((0, 2, 3)).double()

    def write(self) -> None:
        if self.count:
            self.layer.mean.copy_(self.total / self.count)
            self.layer.mean_square.copy_(self.total_square / self.count)


@contextmanager
def _normalize_by_batch(network: nn.Module, layers: list[StaticBatchNorm]) -> Iterator[None]:
    with evaluation_mode(network):
        for layer in layers:
            layer.train()
        yield
