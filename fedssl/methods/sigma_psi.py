"""A classifier whose every weight is a sum sigma + psi: FedMatch's decomposition, in which each half learns alone."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from fedssl.core.slots import Tensors
from fedssl.methods.base import Weight
from fedssl.models.base import Classifier, WithFeatures

SIGMA = "sigma."
"""The keys of the classifier's parameters and buffers in the state dict of `SigmaPsi` begin with this prefix."""

PSI = "psi."
"""The keys of psi's parameters in the state dict of `SigmaPsi` begin with this prefix."""

Half = Literal["sigma", "psi", "both"]
"""The half of the weights that a pass may move; no gradient flows into the other half."""


class SigmaPsi(WithFeatures):
    """A classifier with the weights sigma + psi.

    The module `sigma` is the classifier itself. It has the weights sigma, and the running statistics of normalizations,
    which exist once. psi holds parameters only.

    Args:
        sigma: The classifier, which maps images to logits (B, num_classes).
        share: psi begins as this share of sigma, element by element.
        cutoff: In evaluation mode, entries of psi whose absolute value is at most this count as 0.
    """

    def __init__(self, sigma: Classifier, share: float, cutoff: float) -> None:
        super().__init__()
        self.sigma = sigma
        self.psi = nn.ParameterDict(
            {_name_in_psi(name): share * p.detach() for name, p in sigma.named_parameters()}
        )
        self._cutoff = cutoff

    def weights(self, half: Half = "both") -> Tensors:
        """Return sigma + psi by the names of the classifier's parameters; gradients flow into the given half only."""
        return {
            name: (sigma if half != "psi" else sigma.detach())
            + (psi if half != "sigma" else psi.detach())
            for name, (sigma, psi) in self.pairs().items()
        }

    def pairs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return sigma and psi, as they count in the current mode, by the names of the classifier's parameters."""
        return {
            name: (parameter, self._counting(self.psi[_name_in_psi(name)]))
            for name, parameter in self.sigma.named_parameters()
        }

    def logits(self, images: Tensor, half: Half) -> Tensor:
        """Return the logits of normalized images (B, C, H, W), shape (B, num_classes); only one half gets gradients."""
        logits: Tensor = torch.func.functional_call(self.sigma, self.weights(half), (images,))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images (B, C, H, W), shape (B, num_classes)."""
        return self.logits(images, "both")

    def features(self, images: Tensor) -> Tensor:
        """Return the classifier's features of normalized images (B, C, H, W), shape (B, width)."""
        weights = {f"inner.{name}": weight for name, weight in self.weights().items()}
        features: Tensor = torch.func.functional_call(_Features(self.sigma), weights, (images,))
        return features

    def _counting(self, psi: Tensor) -> Tensor:
        # The mode is the classifier's: a part of this module, such as `SigmaAlone`, may be in evaluation mode alone.
        if self.sigma.training or not self._cutoff:
            return psi
        return psi * (psi.abs() > self._cutoff)


class SigmaAlone(nn.Module):
    """The same classifier, of which only sigma is trained: psi is added as a constant, and is no part of this module.

    Args:
        whole: The classifier, whose memory this module shares.
    """

    def __init__(self, whole: SigmaPsi) -> None:
        super().__init__()
        self.sigma = whole.sigma
        self._logits: Callable[[Tensor, Half], Tensor] = whole.logits

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of normalized images (B, C, H, W), shape (B, num_classes)."""
        return self._logits(images, "sigma")


def key_of_psi(name: str) -> str:
    """Return the key in `SigmaPsi`'s state dict of psi's half of the classifier's parameter of this name."""
    return f"{PSI}{_name_in_psi(name)}"


def sums_of_halves(weights: Mapping[str, Weight], cutoff: float) -> dict[str, Weight]:
    """Return the classifier's weights sigma + psi, and its buffers, by their names in the classifier.

    Args:
        weights: The state dict of a `SigmaPsi`, as tensors or arrays.
        cutoff: Entries of psi whose absolute value is at most this count as 0.
    """
    found = {}
    for key, sigma in weights.items():
        name = key.removeprefix(SIGMA)
        if name != key:
            psi = weights.get(key_of_psi(name))
            found[name] = sigma if psi is None else sigma + psi * (abs(psi) > cutoff)
    return found


def _name_in_psi(name: str) -> str:
    return name.replace(".", ":")  # the own name of a parameter may not contain a dot


class _Features(nn.Module):
    def __init__(self, inner: Classifier) -> None:
        super().__init__()
        self.inner = inner
        self.training = inner.training

    def forward(self, images: Tensor) -> Tensor:
        return self.inner.features(images)
