"""State that outlives a step: named tensors, and where they live.

State is always named tensors, so that it travels in Flower's records and in checkpoints.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Scope = Literal["reset", "client", "server"]
"""Where state lives: made anew each round, kept by the client, or averaged by the server with the cohort's weights."""

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""Slot name -> named tensors."""


@dataclass(frozen=True)
class Slot:
    """A named place for state and where it lives.

    Raises:
        ValueError: There is no such scope.
    """

    name: str
    scope: Scope

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            scopes = ", ".join(get_args(Scope))
            raise ValueError(f"slot {self.name!r} has scope {self.scope!r}; one of: {scopes}")
