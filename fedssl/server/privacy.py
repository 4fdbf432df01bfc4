"""The server's part of ``[privacy]``: what it refuses to run under it, and its own noise."""

import math

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
from fedssl.strategies.fedavg import FedAvg

RARE = 7.0
"""Deviations by which noise may be longer than it is wont to be: one honest reply in 10^10 is."""


def check_privacy(phase: PhasePlan, network: nn.Module) -> None:
    """Refuse what would leave clients beside their clipped updates, or what noise would break.

    Args:
        phase: The experiment as it stands in the phase.
        network: What it trains.

    Raises:
        InputError: The method sends state, the model has statistics that noise would spoil, or the server cannot know
            how much one client counts.
    """
    privacy, method, strategy = phase.privacy, phase.method, phase.strategy
    if isinstance(strategy, FedAvg) and strategy.weight.startswith(CHOSEN):
        _refuse_to_weigh_by_number(phase, strategy.weight)
    if privacy is None:
        return
    sent = [slot.name for slot in phase.recipe.slots() if slot.scope == "server"]
    if sent:
        raise InputError(
            "privacy",
            f"{method.kind} sends {', '.join(map(repr, sent))} beside the weights, which nobody clips",
            "take another method, or keep this at the clients if it can be",
        )
    measured = [
        name
        for name, buffer in network.named_buffers()
        if buffer.is_floating_point() and method.is_shared(name)
    ]
    if privacy.deviation and measured:
        raise InputError(
            "privacy",
            f"the model sends statistics such as {measured[0]!r}, which noise can make senseless (a negative variance)",
            "take a normalization without: model.norm = 'group'",
        )
    counts_alike = (
        isinstance(strategy, FedAvg)
        and strategy.weight == "uniform"
        and strategy.averaging == "cohort"
    )
    if privacy.noise_at == "server" and not counts_alike:
        raise InputError(
            "privacy.noise_at",
            "is 'server', which needs every client to count the same",
            "set strategy.kind = 'fedavg' and strategy.weight = 'uniform', or noise_at = 'client'",
        )


def _refuse_to_weigh_by_number(phase: PhasePlan, weight: str) -> None:
    """Refuse a weight that is a number which must not leave the clients."""
    if not may_leave(phase, f"{NUMBER}{weight.removeprefix(CHOSEN)}"):
        raise InputError(
            "strategy.weight",
            f"is {weight!r}, and what a method records does not leave a client under [privacy] or with private data",
            "take another weight: all, labeled, confident or uniform",
        )


def longest_update(phase: PhasePlan, arrays: NamedArrays) -> float:
    """Return the L2 norm beyond which an update is refused: what the experiment says of it; infinity for no bound.

    Under ``[privacy]`` every honest client clips to C. Where it adds noise itself, d numbers of deviation s are longer
    than s (sqrt(d) + t) with a probability below exp(-t^2 / 2).

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
    """Return the mean of so many clipped updates with the server's noise, of deviation z C / m; as it is without.

    Args:
        phase: The experiment as it stands in the phase.
        arrays: The new global weights.
        num_clients: Replies that are in the mean, each counting 1.
        server_round: From 1.
    """
    privacy = phase.privacy
    if privacy is None or privacy.noise_at != "server":
        return arrays
    stream = noise_stream(phase, server_round=server_round, client=SERVER)
    return add_noise(arrays, privacy.deviation / num_clients, stream)
