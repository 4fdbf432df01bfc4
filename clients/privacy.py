"""Limit what a client's reply shows of its data: the experiment's ``[privacy]`` and the node's own floor."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message

from fedssl.clients.answers import answer_once
from fedssl.clients.floor import Floor
from fedssl.core import rng
from fedssl.core.errors import InputError, RefusedByFloor
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings
from fedssl.experiment.privacy import add_noise, clip_update

log = logging.getLogger("fedssl.client")


def clip_and_add_noise(
    experiment: ClientSettings,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    server_round: int,
    client: int,
    secret: bool = False,
) -> Mapping[str, Any]:
    """Return the weights that a client sends: its trained weights, clipped and noisy where the experiment says so.

    Args:
        experiment: The experiment as it stands in the phase.
        before: Weights that the server sent.
        after: Weights after training, arrays or tensors.
        server_round: Round of the run, from 1.
        client: The client's number. The round and the client select the stream of the noise.
        secret: Whether nobody may be able to draw the noise again; see `needs_secret_noise`.
    """
    privacy = experiment.privacy
    if privacy is None:
        return after
    trained = {name: protocol.as_numpy(array) for name, array in after.items()}
    clipped = clip_update(before, trained, privacy.clipping_norm)
    if privacy.noise_at == "server":
        return clipped
    stream = noise_stream(experiment, server_round=server_round, client=client, secret=secret)
    return add_noise(clipped, privacy.deviation, stream)


def needs_secret_noise(experiment: ClientSettings, config: Mapping[str, object]) -> bool:
    """Say whether nobody may be able to draw a client's noise again: its data is private, or its node has a floor.

    Args:
        experiment: The experiment as it stands in the phase.
        config: The node's config.
    """
    return experiment.federation.private or Floor.of(config).is_set


def refuse_below_floor(experiment: ClientSettings, context: Context) -> None:
    """Refuse an experiment that falls below the node's own floor, and log the refusal.

    Raises:
        RefusedByFloor: The experiment falls below the floor, or the floor makes no sense; names the client.
    """
    try:
        Floor.of(context.node_config).check(experiment)
    except InputError as error:
        refusal = _logged(error, context)
        raise RefusedByFloor(refusal.field, refusal.problem, refusal.remedy) from None


def answer_if_admitted(
    message: Message,
    context: Context,
    experiment: ClientSettings,
    server_round: int,
    answer: Callable[[], Message],
) -> Message:
    """Answer a request about a client's images if the node's own floor admits it.

    A node answers a round only once if it has a floor, or if its data is private and the experiment has ``[privacy]``.

    Args:
        message: The request.
        context: The node's context.
        experiment: The experiment as it stands in the phase.
        server_round: The round that the request names.
        answer: Makes the reply.

    Raises:
        InputError: The experiment falls below the floor, or the node has answered this round or as often as it may;
            names the client.
    """
    refuse_below_floor(experiment, context)
    floor = Floor.of(context.node_config)
    promised = experiment.federation.private and experiment.privacy is not None
    if not floor.is_set and not promised:
        return answer()
    try:
        return answer_once(message, context, server_round, floor.rounds, answer)
    except InputError as error:
        raise _logged(error, context) from None


def _logged(error: InputError, context: Context) -> InputError:
    refusal = error.within(f"client {context.node_config.get(protocol.PARTITION_ID)}: ")
    log.warning("refused: %s", refusal)
    return refusal


def noise_stream(
    experiment: ClientSettings, *, server_round: int, client: int, secret: bool = False
) -> np.random.Generator:
    """Return the generator of a client's or the server's noise in a round.

    In a simulation the generator derives from the experiment's seed, as every other generator does. That seed is no
    secret: anybody who knows it can subtract the noise. Where clients have private data, or a floor of their own, the
    generator's seed comes from the operating system, and the run cannot be repeated. The generator is numpy's (PCG64),
    which is not made for cryptography.

    Args:
        experiment: Says whether clients have private data; holds the seed.
        server_round: Round of the run, from 1.
        client: The client's number; -1 is the server.
        secret: Whether nobody may be able to draw the noise again.
    """
    if secret or experiment.federation.private:
        return np.random.default_rng()
    return rng.make_numpy_generator(
        experiment.seed, "privacy/noise", round=server_round, client=client
    )
