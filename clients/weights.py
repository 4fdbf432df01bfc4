"""The weights of a resident network: which are shared and which are private, and how a client loads and keeps them."""

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from torch import nn

from fedssl.core.slots import Tensors
from fedssl.exchange import protocol
from fedssl.methods.base import Method
from fedssl.training.network import weights_sent_back

PRIVATE = "private"
"""First part of the name of the record that holds private weights, which the method does not share."""


class Weights:
    """Every parameter and buffer of a network, by name, and which of them are shared, and which of these are sent back.

    The tensors are the network's own memory, so writing to them changes the network.

    Args:
        method: Says which weights are shared.
        network: A network with its initial weights.
    """

    def __init__(self, method: Method, network: nn.Module) -> None:
        self.all: Tensors = network.state_dict()
        self.shared = {name: t for name, t in self.all.items() if method.is_shared(name)}
        self.private = {name: t for name, t in self.all.items() if name not in self.shared}
        self.sent_back = weights_sent_back(network, method)
        self._initial = {name: tensor.clone() for name, tensor in self.private.items()}
        self._record = f"{PRIVATE}.{method.kind}"

    def load(self, arrays: Mapping[str, Any], kept: RecordDict) -> None:
        """Overwrite every weight: shared weights with the server's, private weights with the client's own.

        Another client may have used the network before, and none of its weights must stay.

        Args:
            arrays: Weights that the server sent.
            kept: Records that the client kept in its earlier rounds. A private weight that they do not hold, or hold in
                another shape, takes its initial value: an earlier phase may have had another model.

        Raises:
            ValueError: The server did not send all shared weights, or sent other shapes.
        """
        protocol.load_tensors(self.shared, arrays)
        if not self.private:
            return
        own = protocol.arrays_of(kept, self._record) or {}
        fitting = {
            name: array
            for name, array in own.items()
            if name in self.private and array.shape == tuple(self.private[name].shape)
        }
        protocol.load_tensors(self.private, {**self._first(), **fitting})

    def keep_private(self, kept: RecordDict) -> None:
        """Keep private weights for the client's next round, in the records `kept`."""
        if self.private:
            kept[self._record] = protocol.to_record(self.private)

    def _first(self) -> dict[str, Any]:
        return {name: protocol.as_numpy(tensor) for name, tensor in self._initial.items()}
