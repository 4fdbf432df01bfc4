"""SimCLR.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, arXiv:2002.05709.
Its second version: Chen et al., "Big Self-Supervised Models are Strong Semi-Supervised Learners", NeurIPS 2020,
arXiv:2006.10029.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedssl.core.slots import State
from fedssl.methods.base import Batch, Loss, Progress
from fedssl.methods.projection import ProjectionNorm, projection_head, spread
from fedssl.methods.self_supervised import SelfSupervised, projected


class SimCLR(SelfSupervised):
    """Recognize an image's other view among the views of all images of the batch.

    The projection head is that of the second version: three layers, each with its normalization. The papers' widths are
    2048, 2048 and 128, their batches hold 4096 images, and the temperature is 0.1 for ImageNet and 0.5 for CIFAR-10.

    In a federation, the negatives of an image are the other images of one client's batch, so a small batch has few. The
    trunk and both heads travel: one model's traffic, plus the projection head. No state stays anywhere. A step takes two
    passes with gradients for each image.

    With one image, or with copies of one image, there is no negative, the loss is 0, and nothing moves but by weight
    decay. Deviation: a client with fewer images than a batch shows some of them several times, and copies of an image
    are no negatives of that image. The official code has no such batches. Our loss is the mean over the 2 B views, as in
    the paper; the second version's code adds two means and so has twice the loss.
    """

    projection: tuple[int, ...] = Field(
        (128, 128, 128),
        min_length=1,
        description="width of each layer of the projection head; the last is the dimension of the embeddings",
    )
    projection_norm: ProjectionNorm = Field(
        "batch",
        description="normalization of every layer of the projection head; the last has no offset",
    )
    temperature: float = Field(0.5, gt=0, description="tau, by which similarities are divided")

    def head(self, width: int) -> nn.Sequential:
        """Return a new projection head for features (B, width), whose last layer is normalized too."""
        return projection_head(
            width, self.projection, norm=self.projection_norm, normalize_last=True
        )

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        """Return NT-Xent of the two views, which pass through the network together.

        Reference: the first paper, equation 1 and Algorithm 1.
        """
        embeddings = projected(network).embed(torch.cat(batch.unlabeled))
        first, second = embeddings.chunk(2)
        total = nt_xent(first, second, batch.unlabeled_ids, self.temperature)
        similarity = (first * second).sum(1).mean().detach()
        return Loss(total, numbers={"similarity": similarity, "spread": spread(first)})


def nt_xent(first: Tensor, second: Tensor, ids: Tensor, temperature: float) -> Tensor:
    """Return the normalized temperature-scaled cross-entropy of two views, mean over the 2 B rows.

    A row is one view of an image. Its positive is the image's other view. Its negatives are all views of other images:
    never the row itself, and never a copy of its image elsewhere in the batch. Without negatives, a row's loss is 0.

    Args:
        first, second: Unit vectors of both views, shape (B, dim).
        ids: Image of each row of `first` and of `second`, int64 (B,).
        temperature: tau.

    Reference: Chen et al. (SimCLR), equation 1.
    """
    size = len(ids)
    embeddings, images = torch.cat([first, second]), torch.cat([ids, ids])
    positives = torch.arange(2 * size, device=ids.device).roll(size)
    is_excluded = images.unsqueeze(0) == images.unsqueeze(1)
    is_excluded[torch.arange(2 * size, device=ids.device), positives] = False
    with torch.autocast(ids.device.type, enabled=False):
        similarities = embeddings @ embeddings.T / temperature
    return F.cross_entropy(similarities.masked_fill(is_excluded, -torch.inf), positives)
