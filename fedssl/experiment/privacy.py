"""The ``[privacy]`` section: a client clips its update before it leaves, and Gaussian noise hides the rest.

Clipping: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018, arXiv:1710.06963 (flat
clipping). Noise: the Gaussian mechanism of Dwork & Roth, "The Algorithmic Foundations of Differential Privacy", 2014,
theorem A.1.

Flower 1.41 has mods and strategies for the same (`fixedclipping_mod`, `LocalDpMod`,
`DifferentialPrivacyClientSideFixedClipping`). They do not fit: they draw from numpy's global stream, divide by zero for
a client that took no step, fail on integer buffers, and need every reply at the server, but our workers sum replies.
"""

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from fedssl.core.arrays import NamedArrays
from fedssl.core.registry import Section


class Privacy(Section):
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
        gt=0,
        lt=1,
        description="with delta, instead of noise_multiplier: z = 2 sqrt(2 ln(1.25 / delta)) / epsilon, so that the weights of "
        "one round are (epsilon, delta)-private if all data of one client is replaced by another's; this does not cover loss "
        "and counts, which are sent without noise",
    )
    delta: float | None = Field(None, gt=0, lt=1, description="see epsilon")
    noise_at: Literal["client", "server"] = Field(
        "client",
        description="where noise is added; client: before an update leaves the client; server: to the mean of the m updates "
        "that arrived, with standard deviation z C / m, for clients that trust the server",
    )

    @model_validator(mode="after")
    def _check(self) -> "Privacy":
        if (self.epsilon is None) != (self.delta is None):
            raise ValueError("epsilon and delta go together; set both or neither")
        if self.epsilon is not None and self.noise_multiplier:
            raise ValueError("noise_multiplier and epsilon exclude each other; drop one")
        return self

    @property
    def deviation(self) -> float:
        """The standard deviation of the noise that one update needs; 0: no noise.

        The sensitivity behind epsilon is 2 C: the largest change of an update if a client's data is replaced by
        another's. The noise does not hide whether a client takes part: m is the number of updates that arrived.
        """
        if self.epsilon is None or self.delta is None:
            return self.noise_multiplier * self.clipping_norm
        return 2 * self.clipping_norm * math.sqrt(2 * math.log(1.25 / self.delta)) / self.epsilon


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
