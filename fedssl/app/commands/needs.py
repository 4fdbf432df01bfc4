"""What methods and strategies need: labels, state, replies, and what travels in a round.

Nothing here is a list that somebody must keep: each answer comes from the member itself, with its default settings.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from torch import Tensor

from fedssl.augment.policy import Augment
from fedssl.core.registry import Plugin
from fedssl.core.slots import Scope, Slot
from fedssl.data.shard import ImageSpec
from fedssl.methods.base import Fresh, Method
from fedssl.methods.supervised import Supervised
from fedssl.models.cnn import CNN
from fedssl.training.correction import Correction
from fedssl.training.network import NetworkSection, build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

MODEL = CNN()
SPEC = ImageSpec((1, 8, 8), 10, (0.5,), (0.5,), flips=False)
"""Traffic is that of the default model on images of the digits' size."""

NUM_CLIENTS, NUM_SAMPLED = 100, 10
"""A strategy is built for a federation of this size, to see which of the two bases it has."""


@dataclass(frozen=True)
class Needs:
    """What a member of a family needs.

    Args:
        group: The sort of members to which it belongs, in the field's terms.
        by_heading: What it needs, in a few words, by the heading under which `fedssl list` shows it.
    """

    group: str
    by_heading: Mapping[str, str]


def with_defaults(member: type[Plugin]) -> Plugin:
    """Return a member with its default settings; a required setting has its first example."""
    fields = member.model_fields.items()
    required = {n: info.examples[0] for n, info in fields if info.is_required() and info.examples}
    return member(**required)


def needs_of_method(method: Plugin) -> Needs:
    """Return where a method needs labels, which state it has in which scope, and its traffic."""
    assert isinstance(method, Method)
    by_heading = {
        "labels at": describe_labels(method),
        "state": describe_state(method.slots()) or "none",
        "traffic": f"{traffic(method):.3g}x",
    }
    return Needs(method.group, by_heading)


def needs_of_strategy(strategy: Plugin) -> Needs:
    """Return what a strategy needs of the replies, the state of its client half, and its traffic."""
    # Imported here, because they import Flower, for which a list of methods should not wait.
    from fedssl.exchange.census import Census, Cohorts
    from fedssl.strategies.base import Strategy
    from fedssl.strategies.by_sums import SumStrategy

    assert isinstance(strategy, Strategy)
    built = strategy.build(Cohorts(Census.unknown(NUM_CLIENTS), NUM_SAMPLED, seed=0))
    half = strategy.correction()
    by_heading = {
        "server needs": "sums" if isinstance(built, SumStrategy) else "each reply",
        "client half": "none" if half is None else describe_state(half.slots()) or "no state",
        "traffic": f"{traffic(Supervised(), half):.3g}x",
    }
    return Needs(strategy.group, by_heading)


def describe_labels(method: Method) -> str:
    """Return where labels must be, so that a federation can learn by a method."""
    if not method.learns_from_labels:
        return "none needed"
    may_be_at_server = method.can_learn(num_labeled=0) and not method.needs_labels_at_clients
    return "clients or server" if may_be_at_server else "clients"


def describe_state(slots: Sequence[Slot]) -> str:
    """Return the names of slots by their scopes, such as ``client: memory; server: mean``; an empty text for no slot."""
    names = {scope: [s.name for s in slots if s.scope == scope] for scope in get_args(Scope)}
    return "; ".join(f"{scope}: {', '.join(found)}" for scope, found in names.items() if found)


def traffic(method: Method, correction: Correction | None = None) -> float:
    """Return the size of the weights and the ``server`` state that a client receives, as a multiple of the plain model's size.

    A client sends as much, unless the method keeps weights back (`Method.is_sent_back`). Neither state of other scopes nor
    what a strategy sends to single clients travels in every round, and both are left out.

    Args:
        method: Says which weights are shared.
        correction: The client half of a strategy; None if there is none.
    """
    recipe = Recipe(method, Train(), Augment(), correction)
    last = NetworkSection.of(MODEL, Supervised(), None)
    network = build_network(MODEL, method, SPEC, seed=0, previous=last)
    weights = [tensor for name, tensor in network.state_dict().items() if method.is_shared(name)]
    fresh = Fresh(network, SPEC, shard=None)
    state = [recipe.init_slot(slot.name, fresh).values() for slot in recipe.slots_in("server")]
    model = build_network(MODEL, Supervised(), SPEC, seed=0).state_dict().values()
    return (_bytes(weights) + sum(map(_bytes, state))) / _bytes(model)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
