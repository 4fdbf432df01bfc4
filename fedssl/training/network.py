"""The network that a phase trains: the model's classifier, which the method may extend."""

import torch
from torch import nn

from fedssl.core import rng
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import Method
from fedssl.models.base import Classifier, Model, as_classifier, check_takes_images


def build_network(
    model: Model,
    method: Method,
    spec: ImageSpec,
    seed: int,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Return the network with the initial weights that the experiment's seed gives.

    Args:
        model: Builds the classifier.
        method: May extend the classifier.
        spec: Shape, classes and normalization of the images.
        seed: The experiment's seed.
        device: Device of the network.

    Raises:
        InputError: The model or the method cannot take such images.
    """
    method.check(spec)

    def build() -> Classifier:
        classifier = model.build(spec.shape, spec.num_classes)
        check_takes_images(classifier, spec.shape, model.kind)
        return as_classifier(classifier, spec.shape)

    with rng.seeded_torch(rng.derive_seed(seed, "model")):
        network = method.network(build)
    # Channels last: convolutions and pooling of small images run a quarter faster on a CPU and also on tensor cores.
    network.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def classifier_names(method: Method, network: nn.Module) -> dict[str, str]:
    """Return a dict from the name of each weight in the classifier to the weight's name in the whole network."""
    whole = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    classifier = method.classifier(network).state_dict(keep_vars=True)
    return {name: whole[id(tensor)] for name, tensor in classifier.items()}
