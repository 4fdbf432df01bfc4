"""The first content of the state that travels beside the weights: what the server begins a phase with."""

from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.slots import Scope
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.methods.base import Fresh
from fedssl.training.recipe import Recipe


def initial_state(
    recipe: Recipe,
    network: nn.Module,
    spec: ImageSpec,
    scope: Scope,
    previous: nn.Module | None = None,
) -> NamedArrays:
    """Return the state of the slots of one scope when a phase begins, by ``SLOT/NAME``.

    Args:
        recipe: How clients of the phase learn.
        network: The phase's network with the current global weights.
        spec: What all images have in common.
        scope: ``"server"`` or ``"phase"``: no client's images are needed to make the state.
        previous: The classifier of the last phase's network with its final weights; None in the first phase.
    """
    fresh = Fresh(network, spec, None, previous)
    return {
        protocol.slot_key(slot.name, name): tensor.detach().numpy()
        for slot in recipe.slots_in(scope)
        for name, tensor in recipe.init_slot(slot.name, fresh).items()
    }
