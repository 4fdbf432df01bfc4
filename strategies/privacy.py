"""The server's part of ``[privacy]``: what it refuses to run under it, and its own noise."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import nn

from fedssl.clients.privacy import noise_stream
from fedssl.config import Experiment
from fedssl.errors import InputError
from fedssl.privacy import add_noise
from fedssl.strategies.fedavg import FedAvg

Arrays = Mapping[str, npt.NDArray[np.generic]]


def check_privacy(phase: Experiment, network: nn.Module) -> None:
    """Refuse what would leave clients beside their clipped updates, or what noise would break.

    Args:
        phase: The experiment as it stands in the phase.
        network: What it trains.

    Raises:
        InputError: The method sends state, the model has statistics that noise would spoil, or the server cannot know
            how much one client counts.
    """
    privacy, method = phase.privacy, phase.method
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
    strategy = phase.strategy
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


def with_server_noise(
    phase: Experiment, arrays: Arrays, num_clients: float, server_round: int
) -> Arrays:
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
    stream = noise_stream(phase, server_round=server_round, client=-1)
    return add_noise(arrays, privacy.deviation / num_clients, stream)
