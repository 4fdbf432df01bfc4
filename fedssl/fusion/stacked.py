"""Several copies of a network, each with its own weights, run in one pass.

There are two ways. A *wide* network runs the architecture's own code with M times the channels: convolutions and group
normalizations get M times the groups, linear layers become batched products, and code that treats all channels alike
(activations, pooling, sums of branches) does not change. A *mapped* network is `torch.func.vmap` over stacked weights.
It works for any code that vmap can trace, but it is slower, because pooling and convolutions leave their fast memory
layouts. Both ways map the loss over clients by vmap.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedssl.core.slots import Tensors
from fedssl.models.group_norm import GroupNorm

Function = Callable[..., tuple[Tensor, ...]]
"""A function of a network and of one client's tensors that returns tensors."""


class Stacked(ABC):
    """M copies of a network, each with its own weights.

    Args:
        network: The network to copy. The copies compute as it does, but do not have its weights yet.
        count: M, the number of copies.

    Raises:
        ValueError: This network cannot be run in this way.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        self.count = count
        self._shapes = {name: p.shape for name, p in network.named_parameters()}
        if len(self._shapes) < len(list(network.named_parameters(remove_duplicate=False))):
            raise ValueError("two of the network's layers share a weight")

    @property
    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All weights, by the network's own names; in memory, the clients' weights follow each other."""

    @abstractmethod
    def map(self, function: Function, *tensors: Any) -> tuple[Tensor, ...]:
        """Apply a function of the network and of one client's tensors to every client.

        Args:
            function: A function that draws no random numbers and does not branch on the values of tensors.
            tensors: Tensors, or tuples of tensors; the first dimension of each counts the clients, (M, ...).

        Returns:
            The function's results, stacked to shape (M, ...). The gradient of their sum reaches each client's own
            weights.
        """

    def start_from(self, networks: Sequence[nn.Module]) -> None:
        """Copy weights into the copies, in new memory.

        Args:
            networks: One network whose weights all copies get, or one network for each copy.
        """
        named = [dict(network.named_parameters()) for network in networks]
        for name, parameter in self.parameters.items():
            stacked = torch.empty_like(parameter).detach()
            given = torch.stack([own[name].detach() for own in named])
            stacked.view(self.count, *self._shapes[name]).copy_(given)
            parameter.data = stacked

    def by_client(self, stacked: Mapping[str, Tensor]) -> Tensors:
        """Return tensors in the layout of `parameters` as views of shape (M, *shape), by name; they share memory."""
        return {
            name: tensor.detach().view(self.count, *self._shapes[name])
            for name, tensor in stacked.items()
        }

    def split(self, stacked: Mapping[str, Tensor]) -> list[Tensors]:
        """Return each client's part of tensors in the layout of `parameters`, by name; they share memory."""
        parts = self.by_client(stacked)
        each = zip(*(tensor.unbind() for tensor in parts.values()), strict=True)
        return [dict(zip(parts, own, strict=True)) for own in each]


class Wide(Stacked):
    """All copies as one network with M times the channels.

    Images pass through the network channels last, as (B, H, W, M C) in memory, because convolutions and pooling are
    fast in this layout. Nothing shows from outside whether an architecture's code treats all channels alike, so compare
    its results before use.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__(network, count)
        self._network = _widen(_copied(network), count)
        self._parameters = dict(self._network.named_parameters())
        self._seen = _Seen(self)

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All weights by name: convolutions (M out, in, h, w), vectors (M n,), linear layers (M, out, in)."""
        return self._parameters

    def map(self, function: Function, *tensors: Any) -> tuple[Tensor, ...]:
        """Map the function by vmap; the images that it gives to the network are put side by side."""
        return torch.vmap(lambda *own: function(self._seen, *own))(*tensors)

    def __call__(self, images: Tensor) -> Tensor:
        """Return logits (M, B, num_classes) of images (M, B, C, H, W)."""
        count, batch, channels, height, width = images.shape
        wide = images.permute(1, 3, 4, 0, 2).reshape(batch, height, width, count * channels)
        logits: Tensor = self._network(wide.permute(0, 3, 1, 2))
        return logits.view(batch, count, -1).transpose(0, 1)


class Mapped(Stacked):
    """All copies as one network under vmap, mapped over weights of shape (M, ...)."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__(network, count)
        self._network = _copied(network)
        self._parameters = {
            name: nn.Parameter(p.new_empty(count, *p.shape), p.requires_grad)
            for name, p in self._network.named_parameters()
        }

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All weights by name, each (M, ...)."""
        return self._parameters

    def map(self, function: Function, *tensors: Any) -> tuple[Tensor, ...]:
        """Map the function over tensors and weights by vmap."""
        holder = _Holder(self._network, function)

        def one(weights: Mapping[str, Tensor], *own: Any) -> tuple[Tensor, ...]:
            named = {f"network.{name}": tensor for name, tensor in weights.items()}
            outputs: tuple[Tensor, ...] = torch.func.functional_call(holder, named, own)
            return outputs

        return torch.vmap(one)(self._parameters, *tensors)


class _Holder(nn.Module):
    """A function of a network as a module, so that `functional_call` can lend the network other weights."""

    def __init__(self, network: nn.Module, function: Function) -> None:
        super().__init__()
        self.network = network
        self._function = function

    def forward(self, *tensors: Any) -> tuple[Tensor, ...]:
        return self._function(self.network, *tensors)


class _Seen(nn.Module):
    """The stand-in for the network that a mapped function calls."""

    def __init__(self, wide: Wide) -> None:
        super().__init__()
        self._wide = wide

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = _Pass.apply(images, self._wide)
        return logits


class _Pass(torch.autograd.Function):
    """Map a client's images to logits; under vmap, all clients' images pass through the wide network in one call."""

    @staticmethod
    def forward(images: Tensor, wide: Wide) -> Tensor:
        raise ValueError("the loss gives the network images that belong to no single client")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(info: Any, in_dims: Any, images: Tensor, wide: Wide) -> tuple[Tensor, int]:
        return wide(images.movedim(in_dims[0], 0)), 0


def _copied(network: nn.Module) -> nn.Module:
    """Return a copy of a network in training mode; it shares the weights, which are replaced before use."""
    return copy.deepcopy(network, {id(weight): weight for weight in network.parameters()}).train()


def _widen(network: nn.Module, count: int) -> nn.Module:
    """Turn a network into its wide form, in place; its weights are empty until they are filled in."""
    for module in list(network.modules()):
        if type(module) is nn.Conv2d:
            module.groups *= count
            module.in_channels *= count
            module.out_channels *= count
        elif type(module) is nn.GroupNorm or type(module) is GroupNorm:
            module.num_groups *= count
            module.num_channels *= count
        elif type(module) is nn.Linear:
            module.forward = _linear(module, count)  # type: ignore[method-assign,assignment]
        elif module._parameters:
            raise ValueError(f"a {type(module).__name__} layer cannot be widened")
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, _wider(module, parameter, count))
    return network


def _wider(module: nn.Module, parameter: nn.Parameter, count: int) -> nn.Parameter:
    first, *rest = parameter.shape
    shape = (count, first, *rest) if type(module) is nn.Linear else (count * first, *rest)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    empty = torch.empty(shape, dtype=parameter.dtype, device=parameter.device, memory_format=layout)
    return nn.Parameter(empty, parameter.requires_grad)


def _linear(module: nn.Linear, count: int) -> Callable[[Tensor], Tensor]:
    """Return the forward pass of M linear layers: (B, M in) -> (B, M out)."""

    def forward(inputs: Tensor) -> Tensor:
        each = inputs.view(len(inputs), count, -1).transpose(0, 1)
        weight = module.weight.transpose(1, 2)
        bias: Tensor | None = module.bias
        if bias is None:
            outputs = torch.bmm(each, weight)
        else:
            outputs = torch.baddbmm(bias.unsqueeze(1), each, weight)
        return outputs.transpose(0, 1).flatten(1)

    return forward
