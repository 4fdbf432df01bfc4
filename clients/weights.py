"""A resident network's weights: whose they are, and how a client's come in and go out."""

from collections.abc import Mapping
from typing import Any

from flwr.app import RecordDict
from torch import nn

from fedssl.core.slots import Tensors
from fedssl.exchange import protocol
from fedssl.methods.base import Method

PRIVATE = "private"
"""Begins the name of the record that holds the weights a method does not share."""


class Weights:
    """Every parameter and buffer of a network, named once: they are its memory, and stay so while it lives.

    Args:
        method: Says which weights are shared.
        network: Holds its initial weights.
    """

    def __init__(self, method: Method, network: nn.Module) -> None:
        self.all: Tensors = network.state_dict()
        self.shared = {name: t for name, t in self.all.items() if method.is_shared(name)}
        self.private = {name: t for name, t in self.all.items() if name not in self.shared}
        self._initial = {name: tensor.clone() for name, tensor in self.private.items()}
        self._record = f"{PRIVATE}.{method.kind}"

    def load(self, arrays: Mapping[str, Any], kept: RecordDict) -> None:
        """Overwrite every weight: shared ones with the server's, private ones with the client's own.

        The network may last have served another client, of which nothing must stay.

        Args:
            arrays: What the server sent.
            kept: What the client kept from its earlier rounds; its private weights are the initial ones if there are
                none among it.

        Raises:
            ValueError: The server sent too little, or other shapes.
        """
        protocol.load_tensors(self.shared, arrays)
        if not self.private:
            return
        own = protocol.arrays_of(kept, self._record)
        protocol.load_tensors(self.private, self._first() if own is None else own)

    def keep_private(self, kept: RecordDict) -> None:
        """Keep private weights for the client's next round, in place."""
        if self.private:
            kept[self._record] = protocol.to_record(self.private)

    def _first(self) -> dict[str, Any]:
        return {name: protocol.as_numpy(tensor) for name, tensor in self._initial.items()}
