"""The reference grid: one client after the other in this process."""

import time
from collections.abc import Iterable, Iterator

import torch
from flwr.app import Message
from flwr.clientapp import ClientApp

from fedssl import protocol
from fedssl.engine.local_grid import LocalGrid


class SerialGrid(LocalGrid):
    """Run every client in turn.

    Args:
        app: The client app.
        num_clients: K.
        device: Where clients train; by default the first GPU, if there is one.
    """

    def __init__(self, app: ClientApp, num_clients: int, device: str | None = None) -> None:
        super().__init__(num_clients)
        self._app = app
        self._device = device or ("cuda:0" if torch.cuda.is_available() else "cpu")

    def stream(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield replies in the order of the messages; past the timeout no further client is begun."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for message in self._stamped(messages):
            if deadline is not None and time.monotonic() > deadline:
                reason = f"not begun within {timeout:g} s"
                yield protocol.error_reply(message, reason, raised=False)
                continue
            client = self._client(message)
            context = protocol.new_context(
                self._run.run_id, client, self._num_clients, self._device, self.states.get(client)
            )
            reply = protocol.reply_or_explain(message, context, self._app)
            self.states.stage(client, protocol.state_to_bytes(context.state))
            yield reply
