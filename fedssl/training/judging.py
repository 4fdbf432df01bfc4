"""A network and its evaluator: what the evaluator learns of the network, and both together as one module."""

import torch
from torch import Tensor, nn

from fedssl.core.errors import InputError
from fedssl.core.slots import Tensors
from fedssl.data.federation import Federation
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import Method
from fedssl.metrics.evaluators.base import SECTION, Evaluator, Subject
from fedssl.models.modes import evaluation_mode


def subject_of(
    method: Method, network: nn.Module, spec: ImageSpec, evaluator: Evaluator
) -> Subject:
    """Return a method's network as an evaluator sees it.

    Raises:
        InputError: The evaluator learns from features, and the method's classifier has none.
    """
    if not evaluator.learns:
        return Subject(method.classifier(network), {}, spec)
    try:
        layers = method.representations(network)
    except TypeError as error:
        raise InputError(SECTION, f"is {evaluator.kind!r}, but {error}") from None
    return Subject(method.classifier(network), layers, spec)


@torch.no_grad()
def learn_judge(
    evaluator: Evaluator, method: Method, network: nn.Module, federation: Federation
) -> Tensors:
    """Return what an evaluator learns of a network with its current weights; the network keeps its mode and statistics.

    Args:
        evaluator: The evaluator of the phase.
        method: The method of the phase.
        network: The method's network.
        federation: The federation, which has the labeled images.
    """
    if not evaluator.learns:
        return {}
    subject = subject_of(method, network, federation.data.spec, evaluator)
    examples = evaluator.examples(federation)
    device = next(network.parameters()).device
    examples = type(examples)(examples.images.to(device), examples.labels)
    with evaluation_mode(network):
        return evaluator.learn(subject, examples)


class Judge(nn.Module):
    """A network together with its evaluator: maps normalized images (B, C, H, W) to logits (B, num_classes).

    Args:
        evaluator: The evaluator of the phase.
        method: The method of the phase.
        network: The method's network, in evaluation mode while the judge is used.
        spec: What the images have in common.
        learned: What `learn_judge` returned.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        method: Method,
        network: nn.Module,
        spec: ImageSpec,
        learned: Tensors,
    ) -> None:
        super().__init__()
        self.network, self.spec = network, spec
        self._evaluator = evaluator
        self._subject = subject_of(method, network, spec, evaluator)
        device = next(network.parameters()).device
        self._learned = {name: tensor.to(device) for name, tensor in learned.items()}

    def scores(self, images: Tensor) -> dict[str, Tensor]:
        """Return the judge's logits by the name of what it looks at; the first entry is the judgment."""
        return self._evaluator.scores(self._subject, self._learned, images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of the judgment."""
        return next(iter(self.scores(images).values()))
