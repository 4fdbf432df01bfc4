"""The server's part of ``[privacy]``: experiments that it refuses, updates that are too long, and its own noise."""

import math
from typing import get_args

import numpy as np
from torch import nn

from fedssl.clients.privacy import noise_stream
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.numbers import CHOSEN
from fedssl.core.rng import SERVER
from fedssl.exchange.disclosure import may_leave
from fedssl.exchange.protocol import NUMBER
from fedssl.experiment.experiment import PhasePlan
from fedssl.experiment.privacy import add_noise
from fedssl.methods.base import Method
from fedssl.strategies.base import Strategy
from fedssl.strategies.fedavg import FedAvg, NamedWeight
from fedssl.strategies.fedprox import FedProx
from fedssl.training.correction import corrects_by_state

PLAIN_MEANS = (FedAvg, FedProx)
"""Sections of strategies whose server does nothing but average; sections that derive from them may do more."""

RARE = 7.0
"""Noise may be this many standard deviations longer than usual; one honest reply in 10^10 is longer than that."""


def check_privacy(phase: PhasePlan, network: nn.Module) -> None:
    """Refuse an experiment whose clients would send more than clipped updates, or whose model cannot bear noise.

    Args:
        phase: The experiment as it stands in the phase.
        network: The network that clients train.

    Raises:
        InputError: The strategy may ask a client several times a round, clients may sit a round out, the method or the
            strategy sends state, the strategy's clients keep state, the model has statistics that noise would spoil, or the
            server adds noise and its strategy is not a plain mean in which every client counts alike.
    """
    privacy, method, strategy = phase.privacy, phase.method, phase.strategy
    if isinstance(strategy, FedAvg) and strategy.weight.startswith(CHOSEN):
        _refuse_to_weigh_by_number(phase, strategy.weight)
    if privacy is None:
        return
    if isinstance(strategy, Strategy) and strategy.repeats_clients:
        raise InputError(
            "privacy",
            f"{strategy.kind} may ask a client several times a round, but the noise hides one update a round",
            "take a strategy that asks each client once, such as strategy.kind = 'fedavg'",
        )
    if type(method).pools is not Method.pools:
        raise InputError(
            "privacy",
            f"clients of {method.kind} may sit a round out, which tells something of their images that no noise hides",
            "take a method whose clients take part in every round that samples them",
        )
    _refuse_to_send_state(phase)
    if corrects_by_state(strategy):
        raise InputError(
            "privacy",
            f"clients of {strategy.kind} keep state that follows their own steps, and the server's half follows the "
            "clipped and noisy ones, so the halves would drift apart",
            "take a strategy without state at the clients, such as strategy.kind = 'fedprox'",
        )
    measured = [
        name
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point() and method.is_shared(name)
    ]
    if privacy.deviation and measured:
        raise InputError(
            "privacy",
            f"the model sends statistics such as {measured[0]!r}, which noise can spoil (a negative variance)",
            "take a normalization without statistics: model.norm = 'group'",
        )
    # The noise of deviation z C / m fits a mean of m updates. Strategies that derive from FedAvg, such as server
    # optimizers, do more than average: a momentum, for one, carries an update on into later rounds.
    counts_alike = (
        isinstance(strategy, FedAvg)
        and type(strategy) in PLAIN_MEANS
        and strategy.weight == "uniform"
        and strategy.averaging == "cohort"
    )
    if privacy.noise_at == "server" and not counts_alike:
        raise InputError(
            "privacy.noise_at",
            "is 'server', which needs a plain mean in which every client has the same weight",
            "set strategy.kind = 'fedavg' and strategy.weight = 'uniform', or privacy.noise_at = 'client'",
        )


def _refuse_to_send_state(phase: PhasePlan) -> None:
    """Refuse state that travels beside the weights, because only weights are clipped.

    Raises:
        InputError: The method, its augmentation or the strategy sends state.
    """
    for section, names in phase.recipe.sent_slots().items():
        raise InputError(
            "privacy",
            f"[{section}] sends {', '.join(map(repr, names))} beside the weights, and only weights are clipped",
            f"change [{section}]: another kind, or state that stays at the clients, if it can",
        )


def _refuse_to_weigh_by_number(phase: PhasePlan, weight: str) -> None:
    """Refuse a strategy's weight if it is a number that must not leave the clients.

    Raises:
        InputError: The number must not leave.
    """
    name = f"{NUMBER}{weight.removeprefix(CHOSEN)}"
    # Sites simulate clients with private data: what these cannot do is refused before they are deployed.
    if phase.federation.sites is not None or not may_leave(phase, name):
        raise InputError(
            "strategy.weight",
            f"is {weight!r}, but a method's numbers do not leave a client under [privacy], with private data or at a site",
            f"take another weight: {', '.join(get_args(NamedWeight))}",
        )


def longest_update(phase: PhasePlan, arrays: NamedArrays) -> float:
    """Return the L2 norm above which the server refuses an update; infinity if the experiment sets no bound.

    Under ``[privacy]`` every honest client clips its update to C. If clients add noise, the bound allows for it:
    d numbers of standard deviation s are longer than s (sqrt(d) + t) with a probability below exp(-t^2 / 2).

    Args:
        phase: The experiment as it stands in the phase.
        arrays: The global arrays.

    Reference:
        Laurent & Massart, "Adaptive estimation of a quadratic functional by model selection", Annals of Statistics
        2000, lemma 1, for the length of noise.
    """
    longest, privacy = phase.server.max_update_norm or math.inf, phase.privacy
    if privacy is None:
        return longest
    numbers = sum(a.size for a in arrays.values() if np.issubdtype(a.dtype, np.floating))
    noise = privacy.deviation * (math.sqrt(numbers) + RARE)
    return min(longest, privacy.clipping_norm + (noise if privacy.noise_at == "client" else 0.0))


def with_server_noise(
    phase: PhasePlan, arrays: NamedArrays, num_clients: float, server_round: int
) -> NamedArrays:
    """Return the new global weights with the server's noise, of deviation z C / m; unchanged if the server adds none.

    Args:
        phase: The experiment as it stands in the phase.
        arrays: The new global weights.
        num_clients: m, the number of replies in the mean; each has the weight 1.
        server_round: Round of the run, from 1.
    """
    privacy = phase.privacy
    if privacy is None or privacy.noise_at != "server":
        return arrays
    stream = noise_stream(phase, server_round=server_round, client=SERVER)
    return add_noise(arrays, privacy.deviation / num_clients, stream)
