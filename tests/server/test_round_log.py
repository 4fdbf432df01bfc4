"""The server's log of a round does not depend on the order of the replies."""

import itertools
import math

from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.reduction import Answer
from fedssl.record.rows import ClassRow
from fedssl.server.round_log import RoundLog

COUNTS = {0: [1.0, 2.0, 0.1, 0.0, 0.1, 0.7, 0.1, 0.0], 1: [3.0, 0.0, 0.2, 0.0, 0.2, 0.0, 0.2, 0.0]}
"""Of two classes; sums of these tenths round by their order."""
COUNTS[2] = [5.0, 1.0, 0.3, 0.6, 0.9, 0.0, 0.3, 0.0]


def log_of(clients, counts=COUNTS):
    log = RoundLog(7, Census.unknown(4), {}, 2)
    for client in clients:
        metrics = {"num-examples": 1.0, protocol.UPDATE_NORM: client / 4}
        log.note(
            Answer(
                protocol.node_of(client),
                metrics,
                lists={protocol.BY_CLASS: counts[client]} if client in counts else {},
            )
        )
    log.close()
    return log


def test_classes_are_summed_over_clients_in_any_order():
    rows = log_of([0, 1, 2]).class_rows()
    assert rows == [
        ClassRow(7, 0, 9.0, 0.1 + 0.2 + 0.3, 0.1 + 0.2 + 0.9, 0.1 + 0.2 + 0.3),
        ClassRow(7, 1, 3.0, 0.6, 0.7, 0.0),
    ]
    for order in itertools.permutations(range(3)):
        assert log_of(order).class_rows() == rows


def test_a_client_that_counts_nothing_by_class_or_fails_is_left_out():
    log = log_of([0, 3, 2, 1])
    assert log.class_rows() == log_of([0, 1, 2]).class_rows()
    assert [row.update_norm for row in log.clients] == [0.0, 0.25, 0.5, 0.75]
    log = RoundLog(7, Census.unknown(4), {}, 2)
    log.note(Answer(protocol.node_of(0), None, reason="refused: something"))
    assert log.class_rows() == []
    assert math.isnan(log.clients[0].update_norm)


def test_a_round_without_pseudo_labels_has_no_rows():
    assert log_of([0, 1], {0: [0.0] * 8, 1: [0.0] * 8}).class_rows() == []
    assert log_of([0, 1], {}).class_rows() == []
