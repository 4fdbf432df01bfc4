"""Say for whom a server waits: a client that is away or slow must not look like a run that hangs."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

OnWait = Callable[[str, datetime | None], None]
"""A function that is told for whom a server waits, as a clause, and until when at most; None: without a limit."""


def wait_silently(what: str, until: datetime | None) -> None:
    """Tell nobody."""


def after_seconds(seconds: float) -> datetime | None:
    """Return the time so many seconds from now; None for an infinite number of seconds."""
    if seconds == math.inf:
        return None
    return datetime.now(UTC) + timedelta(seconds=max(0.0, seconds))


def name_node(node: int, numbers: Mapping[int, int]) -> str:
    """Return how messages to people call a node: by its client's number, if a number is bound to the node.

    Args:
        node: Flower's id of the node.
        numbers: Node id -> the client number that is bound to it.
    """
    return f"client {numbers[node]}" if node in numbers else f"node {node}"


def name_nodes(nodes: Iterable[int], numbers: Mapping[int, int]) -> str:
    """Return how messages to people call nodes: at most twenty of them, in the order of their numbers."""
    ordered = sorted(nodes, key=lambda node: (numbers.get(node, math.inf), node))
    more = f" and {len(ordered) - 20} more" if len(ordered) > 20 else ""
    return ", ".join(name_node(node, numbers) for node in ordered[:20]) + more
