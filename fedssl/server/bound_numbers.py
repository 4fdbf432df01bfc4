"""Client numbers that are bound to nodes: a client has the number that its operator registered, and no other."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping

from flwr.app import Message

from fedssl.exchange import protocol

Ask = Callable[[Iterable[Message]], Iterable[Message]]
"""A function that sends messages and returns the replies."""


def numbers_of(text: str) -> dict[int, int]:
    """Read which node is which client, from the JSON object that `fedssl deploy run` writes: node id -> number."""
    return {int(node): int(number) for node, number in json.loads(text or "{}").items()}


def with_bound_numbers(ask: Ask, numbers: Mapping[int, int]) -> Ask:
    """Return a function that asks as `ask` does, but makes an error of every reply that claims a false number.

    A claim is false if its number is bound to another node, or if its node is bound to another number. Flower tells a
    server app the ids of nodes, but neither their names nor their keys (flwr 1.41), so the numbers come with the run.

    Args:
        ask: Sends messages and returns the replies.
        numbers: Node id -> the client number that is bound to it.
    """
    if not numbers:
        return ask

    def asked(messages: Iterable[Message]) -> Iterator[Message]:
        for reply in ask(messages):
            falsehood = "" if reply.has_error() else _falsehood(reply, numbers)
            yield protocol.refuse_reply(reply, falsehood) if falsehood else reply

    return asked


def _falsehood(reply: Message, numbers: Mapping[int, int]) -> str:
    """Say what is false in the number that a node claims; empty if the claim is true, or if there is none."""
    node = reply.metadata.src_node_id
    try:
        claim = protocol.metrics_of(reply)[protocol.CLIENT]
    except (KeyError, TypeError, ValueError):
        return ""  # the census refuses a reply without a number
    if node in numbers:
        if claim == numbers[node]:
            return ""
        return f"node {node} says that it is client {claim:g}, but its key is registered as client {numbers[node]} (fedssl deploy join: --number)"
    owner = next((owner for owner, number in numbers.items() if number == claim), None)
    if owner is None:
        return ""
    return f"node {node} says that it is client {claim:g}, but that number is bound to the key of node {owner} (fedssl deploy join: --number)"
