"""Which measurements may leave a client: decided here, by name, and nowhere else.

Under ``[privacy]``, and where clients have private data, a client sends its weights (clipped and blurred, see
`fedssl.clients.privacy`) and the few metrics that the server cannot do without. Everything else that it measured stays:
the length of its update, its pseudo-labels by class, and every number that a method records.
"""

from fedssl.exchange import protocol
from fedssl.exchange.protocol import Metrics
from fedssl.experiment.client_settings import ClientSettings

NEEDED = frozenset(
    (
        *(protocol.CLIENT, *protocol.COUNTS, *protocol.PSEUDO_COUNTS),
        *(protocol.NUM_STEPS, protocol.LOSS, protocol.SECONDS),
    )
)
"""Metrics that leave every client: the server averages, checks and reports with them."""


def may_leave(experiment: ClientSettings, name: str) -> bool:
    """Say whether a metric may leave a client.

    Args:
        experiment: The experiment as it stands in the phase.
        name: The metric's name, as it travels.
    """
    return name in NEEDED or (experiment.privacy is None and not experiment.federation.private)


def metrics_that_may_leave(experiment: ClientSettings, metrics: Metrics) -> Metrics:
    """Return the metrics of a reply without those that must stay at the client."""
    return {name: value for name, value in metrics.items() if may_leave(experiment, name)}
