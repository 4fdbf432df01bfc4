"""Which measurements may leave a client: this module alone decides it, by the measurement's name.

Under ``[privacy]``, and where clients have private data, a client sends its weights (clipped and with noise, see
`fedssl.clients.privacy`) and the few metrics that the server needs. All other measurements stay at the client: the
length of its update, its pseudo-labels by class, and every number that a method records.
"""

from fedssl.exchange import protocol
from fedssl.exchange.protocol import Metrics
from fedssl.experiment.client_settings import ClientSettings

NEEDED = frozenset(
    (
        *(protocol.CLIENT, *protocol.COUNTS, *protocol.PSEUDO_COUNTS),
        *(protocol.NUM_STEPS, protocol.LOSS, protocol.SECONDS, protocol.INACTIVE),
    )
)
"""These metrics leave every client: the server needs them to average, to check and to report."""


def may_leave(experiment: ClientSettings, name: str) -> bool:
    """Return whether a metric may leave a client.

    Args:
        experiment: The experiment as it stands in the phase.
        name: The metric's name, as it travels.
    """
    return name in NEEDED or (experiment.privacy is None and not experiment.federation.private)


def metrics_that_may_leave(experiment: ClientSettings, metrics: Metrics) -> Metrics:
    """Return the metrics of a reply that may leave the client."""
    return {name: value for name, value in metrics.items() if may_leave(experiment, name)}
