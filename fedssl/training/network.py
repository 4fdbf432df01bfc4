"""The network that a phase trains: the model's classifier, which the method may extend."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedssl.core import rng
from fedssl.core.registry import Section
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import METHODS, Method, Previous
from fedssl.models.base import MODELS, Classifier, Model, as_classifier, check_takes_images


class NetworkSection(Section):
    """What the network of an earlier phase is made of; it travels to clients that need that network."""

    model: Annotated[Model, MODELS] = Field(description="the network")
    method: Annotated[Method, METHODS] = Field(
        description="the method, which may extend the network"
    )
    previous: "NetworkSection | None" = Field(
        None, description="the phase before that one, if the method builds on its network"
    )

    @classmethod
    def of(
        cls, model: Model, method: Method, previous: "NetworkSection | None"
    ) -> "NetworkSection":
        """Return the section of a phase; the phase before it is left out if its network does not matter."""
        return cls.model_construct(
            model=model, method=method, previous=previous if method.builds_on_previous else None
        )

    def build(self, spec: ImageSpec, seed: int, device: torch.device | str = "cpu") -> Previous:
        """Return the network with initial weights, frozen and in evaluation mode; the arguments are `build_network`'s."""
        network = build_network(self.model, self.method, spec, seed, device, self.previous)
        network.eval().requires_grad_(False)
        return Previous(network, self.method.classifier(network))


def build_network(
    model: Model,
    method: Method,
    spec: ImageSpec,
    seed: int,
    device: torch.device | str = "cpu",
    previous: NetworkSection | None = None,
) -> nn.Module:
    """Return the network with the initial weights that the experiment's seed gives.

    Args:
        model: Builds the classifier.
        method: May extend the classifier.
        spec: Shape, classes and normalization of the images.
        seed: The experiment's seed.
        device: Device of the network.
        previous: What the last phase's network is made of; None in the first phase.

    Raises:
        InputError: The model or the method cannot take such images.
    """
    method.check(spec)

    def build() -> Classifier:
        classifier = model.build(spec.shape, spec.num_classes)
        check_takes_images(classifier, spec.shape, model.kind)
        return as_classifier(classifier, spec.shape)

    with rng.seeded_torch(rng.derive_seed(seed, "model")):
        if previous is None or not method.builds_on_previous:
            network = method.network(build)
        else:
            network = method.network_after(build, previous.build(spec, seed)).requires_grad_(True)
    # Channels last: convolutions and pooling of small images run a quarter faster on a CPU and also on tensor cores.
    network.to(device=torch.device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def classifier_names(classifier: nn.Module, network: nn.Module) -> dict[str, str]:
    """Return a dict from the name of each weight in the classifier to the weight's name in the whole network."""
    whole = {id(tensor): name for name, tensor in network.state_dict(keep_vars=True).items()}
    own = classifier.state_dict(keep_vars=True)
    return {name: whole[id(tensor)] for name, tensor in own.items()}


def weights_sent_back(network: nn.Module, method: Method) -> dict[str, Tensor]:
    """Return the weights that a client sends to the server, by name: all that it was sent, unless the method says otherwise.

    Args:
        network: The network that clients train.
        method: Says which parameters travel, and which of them come back.
    """
    parameters = {name for name, _ in network.named_parameters()}
    return {
        name: tensor
        for name, tensor in network.state_dict().items()
        if method.is_shared(name) and (name not in parameters or method.is_sent_back(name))
    }
