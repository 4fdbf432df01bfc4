"""What of a client's weights leaves it, under the experiment's ``[privacy]``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedssl import protocol, rng
from fedssl.config import Experiment
from fedssl.privacy import add_noise, clip_update


def leaving(
    experiment: Experiment,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    server_round: int,
    client: int,
) -> Mapping[str, Any]:
    """Return the weights that a client sends: trained ones, clipped and with noise where the experiment says so.

    Args:
        experiment: As it stands in the phase.
        before: Weights that the server sent.
        after: Weights after training, arrays or tensors.
        server_round, client: Name the stream of the noise.
    """
    privacy = experiment.privacy
    if privacy is None:
        return after
    trained = {name: protocol.as_numpy(array) for name, array in after.items()}
    clipped = clip_update(before, trained, privacy.clipping_norm)
    if privacy.noise_at == "server":
        return clipped
    stream = noise_stream(experiment, server_round=server_round, client=client)
    return add_noise(clipped, privacy.deviation, stream)


def may_be_measured(experiment: Experiment) -> bool:
    """Say whether a client may send the norm of its update and counts by class, which nobody clips or blurs.

    Args:
        experiment: As it stands in the phase.
    """
    return experiment.privacy is None and not experiment.federation.private


def noise_stream(experiment: Experiment, *, server_round: int, client: int) -> np.random.Generator:
    """Return the source of a party's noise in a round.

    In a simulation it derives from the seed, like all else. The seed is no secret: whoever knows it can take the noise
    off again. Where clients have private data it comes from the operating system, and such a run is not repeatable.

    Args:
        experiment: Says which of them it is.
        server_round: From 1.
        client: Its number; -1 is the server.
    """
    if experiment.federation.private:
        return np.random.default_rng()
    return rng.numpy_generator(experiment.seed, "privacy/noise", round=server_round, client=client)
