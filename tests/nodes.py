"""A grid that is not fedssl's: its nodes have configs of their own, as in a deployment."""

from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from fedssl.clients.client_app import app
from fedssl.exchange import protocol


class Nodes(Grid):
    """Run the client app for every node, one after the other, and keep what was sent.

    Args:
        configs: Of each node, in any order; nodes' ids are 100, 101, ...
    """

    def __init__(self, configs):
        protocol.claim_identity(1)
        self.contexts = {
            100 + i: Context(1, 100 + i, config, RecordDict(), {})
            for i, config in enumerate(configs)
        }
        self.sent = []
        self.replies = []

    def get_node_ids(self):
        return list(self.contexts)

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        for i, message in enumerate(messages):
            protocol.set_message_id(message, f"{len(self.sent)}.{i}")
        self.sent += messages
        replies = [app(m, self.contexts[m.metadata.dst_node_id]) for m in messages]
        self.replies += replies
        return replies

    set_run = run = create_message = push_messages = pull_messages = None
