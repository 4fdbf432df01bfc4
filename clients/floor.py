"""A node's privacy floor: the least privacy that the node's owner asks of every experiment, whatever the server says.

``[privacy]`` comes with each request, and so from the server, which it protects against. The floor is in the node's
config, which no server can write to. The node refuses an experiment that falls below the floor.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedssl.core.errors import InputError
from fedssl.experiment.client_settings import ClientSettings

CLIPPING_NORM = "privacy-clipping-norm"
NOISE_MULTIPLIER = "privacy-noise-multiplier"
ROUNDS = "privacy-rounds"
_PREFIX = "privacy-"
_KNOWN = (CLIPPING_NORM, NOISE_MULTIPLIER, ROUNDS)


@dataclass(frozen=True)
class Floor:
    """The least privacy under which a node answers.

    Args:
        clipping_norm: Largest clipping norm C that the node accepts; None: any norm, or no clipping.
        noise_multiplier: Least noise multiplier z that the node accepts for the noise that it adds to its updates; 0:
            the floor asks for no noise.
        rounds: Most requests to train or to evaluate that the node answers, over all runs; None: any number.
    """

    clipping_norm: float | None = None
    noise_multiplier: float = 0.0
    rounds: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, object]) -> "Floor":
        """Return the floor that a node's config sets.

        Raises:
            InputError: A setting's value makes no sense, or no setting has the name. A misspelled name must not leave a
                node without its floor.
        """
        own = {name: value for name, value in config.items() if name.startswith(_PREFIX)}
        for name in own:
            if name not in _KNOWN:
                raise InputError(name, "is no setting of a node", f"one of: {', '.join(_KNOWN)}")
        norm = _number(own, CLIPPING_NORM)
        noise = _number(own, NOISE_MULTIPLIER)
        rounds = own.get(ROUNDS)
        if norm is not None and norm == 0:
            raise InputError(CLIPPING_NORM, "is 0", "a length above 0")
        if rounds is not None and (type(rounds) is not int or rounds < 0):
            raise InputError(ROUNDS, f"is {rounds!r}", "a number of rounds, 0 or more")
        return cls(norm, noise or 0.0, rounds)

    @property
    def bounds_weights(self) -> bool:
        """Say whether the floor asks anything of the weights that leave the node."""
        return self.clipping_norm is not None or self.noise_multiplier > 0

    @property
    def is_set(self) -> bool:
        """Say whether the floor asks anything at all."""
        return self.bounds_weights or self.rounds is not None

    def check(self, experiment: ClientSettings) -> None:
        """Refuse an experiment that falls below the floor.

        Args:
            experiment: The experiment as it stands in the phase.

        Raises:
            InputError: The experiment falls below the floor; names the node's setting and the experiment's.
        """
        if not self.bounds_weights:
            return
        privacy = experiment.privacy
        first = CLIPPING_NORM if self.clipping_norm is not None else NOISE_MULTIPLIER
        if privacy is None:
            raise InputError(
                first,
                "is set at this node, but the experiment has no [privacy]",
                "give the experiment a [privacy] section",
            )
        if self.clipping_norm is not None and privacy.clipping_norm > self.clipping_norm:
            raise InputError(
                CLIPPING_NORM,
                f"is {self.clipping_norm:g} at this node, but the experiment's "
                f"privacy.clipping_norm is {privacy.clipping_norm:g}",
                "lower privacy.clipping_norm",
            )
        if self.noise_multiplier and privacy.noise_at != "client":
            raise InputError(
                NOISE_MULTIPLIER,
                f"is {self.noise_multiplier:g} at this node, but the experiment's "
                f"privacy.noise_at is {privacy.noise_at!r}",
                "set privacy.noise_at = 'client'",
            )
        if privacy.deviation < self.noise_multiplier * privacy.clipping_norm:
            raise InputError(
                NOISE_MULTIPLIER,
                f"is {self.noise_multiplier:g} at this node, but the experiment's noise has a deviation of "
                f"{privacy.deviation / privacy.clipping_norm:g} times its clipping_norm",
                "raise privacy.noise_multiplier, or lower privacy.epsilon",
            )
        for section, names in experiment.recipe.sent_slots().items():
            raise InputError(
                first,
                f"is set at this node, but [{section}] sends {', '.join(map(repr, names))} beside the weights, "
                "and only weights are clipped",
                f"change [{section}]: another kind, or state that stays at the clients, if it can",
            )


def _number(config: Mapping[str, object], name: str) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(name, f"is {value!r}", "a number, 0 or more")
    if not 0 <= value < math.inf:
        raise InputError(name, f"is {value!r}", "a finite number, 0 or more")
    return float(value)
