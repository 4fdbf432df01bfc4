"""The mode of a network: how it computes in training and in evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a block; afterwards each of its modules has its own mode again."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def modules_of(network: nn.Module) -> list[nn.Module]:
    """Return a network and all modules in it, as `torch.nn.Module.modules` does, but faster.

    A module that stands in several places is there several times.
    """
    found = [network]
    for module in found:
        found += [child for child in module._modules.values() if child is not None]
    return found


def dropout_layers(network: nn.Module) -> list[_DropoutNd]:
    """Return the dropout layers of a network."""
    return [module for module in network.modules() if isinstance(module, _DropoutNd)]


@contextmanager
def only_dropout(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode for a block, except its dropout layers, which drop as in training."""
    with evaluation_mode(network):
        for layer in dropout_layers(network):
            layer.train()
        yield
