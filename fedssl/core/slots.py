"""A method's state: what outlives a step, and where it lives.

State always consists of named tensors, so that it can travel in Flower's records and in checkpoints.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Scope = Literal["reset", "client", "server"]
"""Where state lives.

``reset`` state is made anew each round, ``client`` state is kept by the client, and ``server`` state is averaged by the
server with the cohort's weights.
"""

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""A method's state: named tensors for each slot, by the slot's name."""


@dataclass(frozen=True)
class Slot:
    """A named place for state, and where that state lives.

    Raises:
        ValueError: The scope is unknown.
    """

    name: str
    scope: Scope

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            scopes = ", ".join(get_args(Scope))
            raise ValueError(
                f"slot {self.name!r} has scope {self.scope!r}; the scopes are: {scopes}"
            )
