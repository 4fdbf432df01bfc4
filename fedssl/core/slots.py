"""A method's state: what outlives a step, and where it lives.

State always consists of named tensors, so that it can travel in Flower's records and in checkpoints.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

Scope = Literal["reset", "client", "phase", "server"]
"""Where state lives.

``reset`` state is made anew each round. ``client`` state is kept by the client. ``phase`` state is made by the server
when a phase begins, travels once to each client, and never changes or returns, such as a frozen teacher. ``server``
state travels to the clients and back in every round, and the server merges what comes back.
"""

ChangingScope = Literal["reset", "client", "server"]
"""The scopes of state that steps may change; a setting that lets the user choose a scope has this type."""

Tensors = dict[str, Tensor]
State = dict[str, Tensors]
"""A method's state: named tensors for each slot, by the slot's name."""


@dataclass(frozen=True)
class Merge:
    """How the server merges the ``server`` state s_k that clients send into its own state s.

    Args:
        weight: w_k, how much a client counts. ``"examples"``: its number of images; ``"uniform"``: 1.
        over: ``"cohort"``: s becomes sum w_k s_k / sum w_k over the clients that replied. ``"population"``: s becomes
            s + sum (w_k / W) (s_k - s), where W is the sum of w_k over all K clients, so that a client that was not
            sampled counts with the old state.
    """

    weight: Literal["examples", "uniform"] = "examples"
    over: Literal["cohort", "population"] = "cohort"


@dataclass(frozen=True)
class Slot:
    """A named place for state, and where that state lives.

    Args:
        name: Name of the slot.
        scope: Where its state lives.
        merge: How the server merges ``server`` state; other scopes do not use it.

    Raises:
        ValueError: The scope is unknown.
    """

    name: str
    scope: Scope
    merge: Merge = Merge()

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            scopes = ", ".join(get_args(Scope))
            raise ValueError(
                f"slot {self.name!r} has scope {self.scope!r}; the scopes are: {scopes}"
            )
