"""What of a client's weights leaves it, under the experiment's ``[privacy]``."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Message

from fedssl.clients.answers import answer_once
from fedssl.clients.floor import Floor
from fedssl.core import rng
from fedssl.core.errors import InputError
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
    """Return the weights that a client sends: trained ones, clipped and with noise where the experiment says so.

    Args:
        experiment: As it stands in the phase.
        before: Weights that the server sent.
        after: Weights after training, arrays or tensors.
        server_round, client: Name the stream of the noise.
        secret: Whether nobody may be able to draw the noise again; see `is_secret`.
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
    """Say whether a client's noise must be such that nobody can draw it again: of private data, or above a floor.

    Args:
        experiment: As it stands in the phase.
        config: The node's.
    """
    return experiment.federation.private or Floor.of(config).is_set


def refuse_below_floor(experiment: ClientSettings, context: Context) -> None:
    """Refuse an experiment that falls below the node's own floor, and log that.

    Raises:
        InputError: It does; names the client.
    """
    try:
        Floor.of(context.node_config).check(experiment)
    except InputError as error:
        raise _logged(error, context) from None


def answer_if_admitted(
    message: Message,
    context: Context,
    experiment: ClientSettings,
    server_round: int,
    answer: Callable[[], Message],
) -> Message:
    """Answer a request about a client's images as far as the node's own floor admits it.

    Where the data is private and the experiment promises privacy, or the node has a floor, a round is answered once.

    Args:
        message: The request.
        context: Of the node.
        experiment: As it stands in the phase.
        server_round: Of the request.
        answer: Makes the reply.

    Raises:
        InputError: The experiment falls below the floor, or the node has answered; names the client.
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
    """Return the source of a party's noise in a round.

    In a simulation it derives from the seed, like all else. The seed is no secret: whoever knows it can take the noise
    off again. Where clients have private data, or a floor of their own, the seed comes from the operating system, and
    such a run is not repeatable. The generator is numpy's (PCG64), which is none for cryptography.

    Args:
        experiment: Says which of them it is.
        server_round: From 1.
        client: Its number; -1 is the server.
        secret: Whether nobody may be able to draw the noise again.
    """
    if secret or experiment.federation.private:
        return np.random.default_rng()
    return rng.make_numpy_generator(
        experiment.seed, "privacy/noise", round=server_round, client=client
    )
