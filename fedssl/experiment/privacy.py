"""The ``[privacy]`` section: a client clips its update before it leaves, and Gaussian noise hides the rest.

Clipping: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv:1710.06963 (flat
clipping). Noise: the Gaussian mechanism (Dwork & Roth, "The Algorithmic Foundations of Differential Privacy", 2014). What
the noise of a whole run promises is counted by `fedssl.server.accountant`.

Flower 1.41 has mods and strategies for the same (`fixedclipping_mod`, `LocalDpMod`,
`DifferentialPrivacyClientSideFixedClipping`). They do not fit: they draw from numpy's global stream, divide by zero for
a client that took no step, fail on integer buffers, and need every reply at the server, but our workers sum replies.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.extras import install_command
from fedssl.core.registry import RefusingSection

EXTRA = "privacy"
"""The extra of fedssl that installs the accountant's library."""


class Privacy(RefusingSection):
    """The ``[privacy]`` section: how clipping and noise limit what an update shows of its client."""

    clipping_norm: float = Field(
        gt=0,
        description="C, largest L2 norm of a client's update: the changes of all its weights together",
    )
    noise_multiplier: float = Field(
        0.0, ge=0, description="z: the noise in each weight of an update has standard deviation z C"
    )
    epsilon: float | None = Field(
        None,
        ge=1e-3,
        description="instead of noise_multiplier: the least z is chosen with which the weights of the whole run are "
        "(epsilon, delta)-private if all data of one client is replaced by other data; this does not cover loss and counts, "
        "which are sent without noise (needs fedssl[privacy])",
    )
    delta: float = Field(
        1e-5,
        gt=0,
        lt=1,
        description="the probability with which the promise of epsilon may fail; far below 1 / clients",
    )
    noise_at: Literal["client", "server"] = Field(
        "client",
        description="where noise is added; client: before an update leaves the client; server: to the mean of the m updates "
        "that arrived, with standard deviation z C / m, for clients that trust the server",
    )

    refused: ClassVar[Mapping[str, str]] = {
        "secure_aggregation": "fedssl has none, and docs/secure-aggregation.md says why; noise_at = 'client' with a "
        "noise_multiplier protects a client from the server"
    }

    @model_validator(mode="after")
    def _check(self) -> "Privacy":
        if self.epsilon is not None and self.noise_multiplier:
            raise ValueError("noise_multiplier and epsilon exclude each other; drop one")
        return self

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise that one update needs, z C; 0: no noise.

        Raises:
            InputError: `epsilon` is set. Whoever sends settings to clients must choose the noise first.
        """
        if self.epsilon is not None:
            raise InputError(
                "privacy.epsilon",
                f"is {self.epsilon:g}, and no noise is chosen for it yet",
                "let the server run fedssl.server.app, which chooses it, or set privacy.noise_multiplier",
            )
        return self.noise_multiplier * self.clipping_norm


@dataclass(frozen=True)
class Account:
    """What the noise of a whole run promises if all data of one client is replaced by other data.

    Args:
        epsilon: Epsilon for people who do not know which clients took part; NaN if it could not be computed.
        epsilon_known: Epsilon for people who know it; with noise at the client both are the same.
        delta: The probability with which the promise may fail.
        noise_multiplier: z, above 0.
        basis: What the account rests on, as a phrase.
    """

    epsilon: float
    epsilon_known: float
    delta: float
    noise_multiplier: float
    basis: str

    def describe(self) -> str:
        """Return the promise in one sentence."""
        if math.isnan(self.epsilon):
            return (
                f"epsilon is unknown, because dp-accounting is not installed ({install_command(EXTRA)}); "
                f"noise_multiplier {self.noise_multiplier:g}, {self.basis}"
            )
        known = ""
        if self.epsilon_known != self.epsilon:
            known = f" ({self.epsilon_known:.3g} for people who know the cohorts)"
        return (
            f"epsilon {self.epsilon:.3g}{known}, delta {self.delta:g} for the data of one client over the whole run; "
            f"noise_multiplier {self.noise_multiplier:g}, {self.basis}"
        )


def clip_update(
    before: NamedArrays, after: NamedArrays, norm: float
) -> dict[str, npt.NDArray[Any]]:
    """Return weights whose update has an L2 norm of at most C; an update within C does not change.

    The result is x + u min(1, C / |u|), where u is the update of all floating-point arrays together, in double
    precision. Rounding to the arrays' own type can change the norm in its last digit. Integers, which count
    steps, do not change.

    Args:
        before: Weights before the update, x.
        after: Weights after the update, x + u, of the same names and shapes.
        norm: Largest L2 norm of an update, C.
    """
    updates = {
        name: array.astype(np.float64) - before[name].astype(np.float64)
        for name, array in after.items()
        if _is_float(array)
    }
    length = math.sqrt(math.fsum(float(np.square(update).sum()) for update in updates.values()))
    if length <= norm:
        return dict(after)
    scale = norm / length
    return {
        name: (before[name] + updates[name] * scale).astype(array.dtype)
        if name in updates
        else array
        for name, array in after.items()
    }


def add_noise(
    arrays: NamedArrays, deviation: float, generator: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """Return weights with independent Gaussian noise in every floating-point number; integers do not change.

    Args:
        arrays: Weights by name.
        deviation: Standard deviation of the noise; 0 adds none.
        generator: Source of the noise, which is drawn array by array in the order of `arrays`.
    """
    if deviation == 0:
        return dict(arrays)
    return {
        name: (array + deviation * generator.standard_normal(array.shape)).astype(array.dtype)
        if _is_float(array)
        else array
        for name, array in arrays.items()
    }


def _is_float(array: npt.NDArray[Any]) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))
