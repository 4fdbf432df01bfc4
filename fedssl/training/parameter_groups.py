"""The groups of parameters that have a learning rate or a weight decay of their own."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fedssl.core.errors import InputError
from fedssl.training.optimization import Train
from fedssl.training.optimizers.base import Parameters

MOST_NAMED = 20
"""A message names at most this many parameters."""


class Groups:
    """Divide the parameters of one network as ``train.rates`` and ``train.decay_norms_and_biases`` say.

    A parameter that the network does not name has the learning rate of ``[train]``.

    Args:
        train: The ``[train]`` section.
        network: The network. Its parameters' names and dimensions decide.
        copies: Parameters that stand for the network's own, by its names, such as those of several clients that are
            stacked; None: the network's own.
    """

    def __init__(
        self, train: Train, network: nn.Module, copies: Mapping[str, nn.Parameter] | None = None
    ) -> None:
        self._train = train
        own = dict(network.named_parameters())
        held = own if copies is None else copies
        self._names = {id(parameter): name for name, parameter in held.items()}
        self._dims = {id(parameter): own[name].dim() for name, parameter in held.items()}

    def of(self, parameters: Iterable[nn.Parameter]) -> Parameters:
        """Return parameters as torch's optimizers take them: as they are, or in groups with settings of their own."""
        if not self._train.rates and self._train.decay_norms_and_biases:
            return parameters
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in parameters:
            groups.setdefault(self._settings_of(parameter), []).append(parameter)
        return [self._group(*settings, members) for settings, members in groups.items()]

    def _settings_of(self, parameter: nn.Parameter) -> tuple[float, bool]:
        """Return the factor of a parameter's learning rate, and whether the parameter decays."""
        dims = self._dims.get(id(parameter), parameter.dim())
        decays = self._train.decay_norms_and_biases or dims > 1
        return factor_of(self._names.get(id(parameter), ""), self._train.rates), decays

    def _group(self, factor: float, decays: bool, members: list[nn.Parameter]) -> dict[str, Any]:
        decay = self._train.weight_decay if decays else 0.0
        return {"params": members, "lr": factor * self._train.lr, "weight_decay": decay}


def factor_of(name: str, rates: Mapping[str, float]) -> float:
    """Return the factor of the first pattern that matches a parameter's name, else 1.

    Example:
        >>> factor_of("trunk.0.weight", {"*.0.weight": 0.5, "trunk.*": 0.1})
        0.5
    """
    return next((factor for pattern, factor in rates.items() if fnmatchcase(name, pattern)), 1.0)


def check_rates(train: Train, network: nn.Module, section: str) -> None:
    """Raise `InputError` if a pattern of the section's ``rates`` matches no parameter of a network.

    Args:
        train: The section.
        network: The network that it trains.
        section: The section's name, for the message.
    """
    names = [name for name, _ in network.named_parameters()]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    for pattern in train.rates:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"{section}.rates",
                f"the pattern {pattern!r} matches no parameter of the network",
                f"its parameters are: {', '.join(names[:MOST_NAMED])}{more}",
            )
