"""Several copies of a network, each with its own weights, run in one pass.

There are two ways. A *wide* network runs the architecture's own code with M times the channels: convolutions and
normalizations of channels get M times the groups or channels, linear layers become batched products, and code that treats
all channels alike (activations, pooling, sums of branches) does not change. A *mapped* network is `torch.func.vmap` over
stacked weights. It works for any code that vmap can trace, but it is slower, because pooling and convolutions leave their
fast memory layouts. Both ways map the loss over clients by vmap.
"""

import copy
import functools
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

    network: nn.Module
    """A module that holds all copies: its parameters and buffers have the network's names, and the copies' values follow
    each other in memory. Only code that treats every number alike may use it; it maps no images."""

    def __init__(self, network: nn.Module, count: int) -> None:
        self.count = count
        own = network.state_dict()
        self._shapes = {name: tensor.shape for name, tensor in own.items()}
        # The copies have one value of such a tensor, as of the number of batches that a normalization has seen.
        self._shared = {n for n, t in own.items() if t.dim() == 0 and not t.is_floating_point()}
        parameters = list(network.named_parameters(remove_duplicate=False))
        if len(list(network.parameters())) < len(parameters):
            raise ValueError("two of the network's layers share a weight")

    @functools.cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All weights, by the network's own names."""
        return dict(self.network.named_parameters())

    @functools.cached_property
    def buffers(self) -> Tensors:
        """All buffers, by the network's own names."""
        return dict(self.network.named_buffers())

    @property
    def tensors(self) -> Tensors:
        """All weights and buffers, by the network's own names and in its order; they share memory with the copies."""
        own = {**self.parameters, **self.buffers}
        return {name: own[name].detach() for name in self._shapes}

    @abstractmethod
    def map(self, function: Function, *tensors: Any) -> tuple[Tensor, ...]:
        """Apply a function of the network and of one client's tensors to every client.

        Args:
            function: A function that draws no random numbers and does not branch on the values of tensors.
            tensors: Tensors, or tuples and dicts of tensors; the first dimension of each counts the clients, (M, ...).

        Returns:
            The function's results, stacked to shape (M, ...). The gradient of their sum reaches each client's own
            weights.
        """

    def start_from(self, networks: Sequence[nn.Module]) -> None:
        """Copy weights and buffers into the copies, the weights in new memory.

        Args:
            networks: One network whose values all copies get, or one network for each copy.
        """
        given = [network.state_dict() for network in networks]
        laid_out = self.laid_out({n: torch.stack([own[n] for own in given]) for n in given[0]})
        for name, parameter in self.parameters.items():
            parameter.data = laid_out[name]
        for name, buffer in self.buffers.items():
            buffer.copy_(laid_out[name])

    def is_laid_out(self, name: str, shape: torch.Size) -> bool:
        """Return whether a tensor of each client is laid out as the network's weight or buffer of its name is.

        A buffer of which all copies have one value is not: of such a tensor, each client may have kept its own.
        """
        return name not in self._shared and self._shapes.get(name) == shape

    def laid_out(self, tensors: Tensors) -> Tensors:
        """Return tensors of the clients in the layout of `tensors`, in new memory.

        Args:
            tensors: Tensors by the names of weights or buffers, each (M, *shape), or (1, *shape) if it is everybody's.
        """
        found: Tensors = {}
        for name, given in tensors.items():
            own = self.parameters[name] if name in self.parameters else self.buffers[name]
            empty = torch.empty_like(own, dtype=given.dtype).detach()
            if name in self._shared:
                empty.copy_(given[0])
            else:
                self._each(name, empty).copy_(given)
            found[name] = empty
        return found

    def by_client(self, stacked: Mapping[str, Tensor]) -> Tensors:
        """Return tensors in the layout of `tensors` as views of shape (M, *shape), by name; they share memory."""
        return {name: self._each(name, tensor.detach()) for name, tensor in stacked.items()}

    def _each(self, name: str, stacked: Tensor) -> Tensor:
        if name in self._shared:
            return stacked.expand(self.count)
        return stacked.view(self.count, *self._shapes[name])


class Wide(Stacked):
    """All copies as one network with M times the channels.

    Images pass through the network channels last, as (B, H, W, M C) in memory, because convolutions and pooling are
    fast in this layout. Nothing shows from outside whether an architecture's code treats all channels alike, so compare
    its results before use.

    Weights have the shapes: convolutions (M out, in, h, w), vectors (M n,), linear layers (M, out, in).
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__(network, count)
        self.network = _widen(_copied(network), count)
        self._seen = _Seen(self, network)

    def map(self, function: Function, *tensors: Any) -> tuple[Tensor, ...]:
        """Map the function by vmap; the images that it gives to the network are put side by side."""
        return torch.vmap(lambda *own: function(self._seen, *own))(*tensors)

    def __call__(self, images: Tensor, weights: Tensors, *, training: bool = True) -> Tensor:
        """Return logits (M, B, num_classes) of images (M, B, C, H, W).

        Args:
            images: Normalized views.
            weights: Weights and buffers that stand in for the network's own, each (M, *shape), by name.
            training: The mode of the pass.
        """
        count, batch, channels, height, width = images.shape
        wide = images.permute(1, 3, 4, 0, 2).reshape(batch, height, width, count * channels)
        wide = wide.permute(0, 3, 1, 2)
        if self.network.training != training:
            self.network.train(training)
        if weights:
            logits = torch.func.functional_call(self.network, self.laid_out(weights), (wide,))
        else:
            logits = self.network(wide)
        split: Tensor = logits.view(batch, count, -1).transpose(0, 1)
        return split


class Mapped(Stacked):
    """All copies as one network under vmap, mapped over weights of shape (M, ...)."""

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__(network, count)
        if next(network.buffers(), None) is not None:
            raise ValueError("buffers are not mapped over clients")
        self._one = _copied(network)
        self.network = _copied(network)
        for module in self.network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    empty = parameter.new_empty(count, *parameter.shape)
                    module._parameters[name] = nn.Parameter(empty, parameter.requires_grad)

    def map(self, function: Function, *tensors: Any) -> tuple[Tensor, ...]:
        """Map the function over tensors and weights by vmap."""
        holder = _Holder(self._one, function)

        def one(weights: Mapping[str, Tensor], *own: Any) -> tuple[Tensor, ...]:
            named = {f"network.{name}": tensor for name, tensor in weights.items()}
            outputs: tuple[Tensor, ...] = torch.func.functional_call(holder, named, own)
            return outputs

        return torch.vmap(one)(self.parameters, *tensors)


class _Holder(nn.Module):
    """A function of a network as a module, so that `functional_call` can lend the network other weights."""

    def __init__(self, network: nn.Module, function: Function) -> None:
        super().__init__()
        self.network = network
        self._function = function

    def forward(self, *tensors: Any) -> tuple[Tensor, ...]:
        return self._function(self.network, *tensors)


class _Seen(nn.Module):
    """The stand-in for the network that a mapped function calls.

    It has the network's names, so that `functional_call` can lend it a client's other weights, such as a teacher's. Its own
    values are NaN: they only mark what was not lent, and code that reads them shows itself.
    """

    def __init__(self, wide: Wide, network: nn.Module) -> None:
        super().__init__()
        self._wide = wide
        blank = copy.deepcopy(network).requires_grad_(False).train()
        for tensor in blank.state_dict().values():
            tensor.fill_(torch.nan if tensor.is_floating_point() else 0)
        for name, child in blank.named_children():
            self.add_module(name, child)
        for name, parameter in blank.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in blank.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        # Where each tensor stands, and what stands there if nothing is lent.
        self._places = [
            (f"{prefix}{'.' if prefix else ''}{name}", held, name, tensor)
            for prefix, module in self.named_modules()
            for held in (module._parameters, module._buffers)
            for name, tensor in held.items()
            if tensor is not None
        ]

    def forward(self, images: Tensor) -> Tensor:
        lent = {name: held[key] for name, held, key, own in self._places if held[key] is not own}
        logits: Tensor = _Pass.apply(images, self._wide, self.training, tuple(lent), *lent.values())
        return logits


class _Pass(torch.autograd.Function):
    """Map a client's images to logits; under vmap, all clients' images pass through the wide network in one call."""

    @staticmethod
    def forward(
        images: Tensor, wide: Wide, training: bool, names: tuple[str, ...], *lent: Tensor
    ) -> Tensor:
        raise ValueError("the loss gives the network images that belong to no single client")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any,
        in_dims: Any,
        images: Tensor,
        wide: Wide,
        training: bool,
        names: tuple[str, ...],
        *lent: Tensor,
    ) -> tuple[Tensor, int]:
        def by_client(tensor: Tensor, dim: int | None) -> Tensor:
            return tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)

        tensors = map(by_client, lent, in_dims[4:])
        return wide(
            images.movedim(in_dims[0], 0), dict(zip(names, tensors, strict=True)), training=training
        ), 0


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
        elif type(module) is nn.BatchNorm2d:
            module.num_features *= count
        elif type(module) is nn.Linear:
            module.forward = _linear(module, count)  # type: ignore[method-assign,assignment]
        elif module._parameters or module._buffers:
            raise ValueError(f"a {type(module).__name__} layer cannot be widened")
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                wider = _wider(module, parameter, count)
                setattr(module, name, nn.Parameter(wider, parameter.requires_grad))
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and buffer.dim():
                setattr(module, name, _wider(module, buffer, count))
    return network


def _wider(module: nn.Module, tensor: Tensor, count: int) -> Tensor:
    first, *rest = tensor.shape
    shape = (count, first, *rest) if type(module) is nn.Linear else (count * first, *rest)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=tensor.dtype, device=tensor.device, memory_format=layout)


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
