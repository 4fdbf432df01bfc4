"""A worker, and with it the serial grid: retries, time limits and warnings, for single and for fused clients."""

import logging
import time

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedssl.engine.local_grid import Apps, Patience
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.reduction import CohortSums, Reduction, by_examples
from fedssl.exchange.unit_replies import Replies

protocol.claim_identity(1)


class Clients:
    """Apps whose clients 1 and 2 do something the first time, or always; what was called is counted."""

    def __init__(self, once=None, always=None):
        self.once, self.always = once, always
        self.calls = []

    def one(self, message, context):
        client = int(context.node_config["partition-id"])
        self.calls.append(client)
        if client == 1 and self.calls.count(client) == 1 and self.once:
            self.once()
        if client == 2 and self.always:
            self.always()
        metrics = {"num-examples": 1, "num-labeled": 1, "num-confident": 1.0}
        arrays = protocol.to_record({"w": np.full(2, client + 1.0, np.float32)})
        context.state["kept"] = MetricRecord({"n": client})
        records = {"arrays": arrays, "metrics": MetricRecord(metrics)}
        return Message(content=RecordDict(records), reply_to=message)

    def together(self, messages, contexts):
        logging.getLogger("fedssl.fusion.fit").warning("a word of warning")
        asked = zip(messages, contexts, strict=True)
        return Replies([protocol.reply_or_explain(m, c, self.one) for m, c in asked])


def fail():
    raise RuntimeError("does not want to")


def answers_of(clients, units, **patience):
    grid = SerialGrid(Apps(clients.one, clients.together), 4, "cpu", Patience(**patience))
    arrays = {"w": np.zeros(2, np.float32)}
    content = RecordDict({"arrays": protocol.to_record(arrays), "config": ConfigRecord()})
    messages = [protocol.new_message("train", protocol.node_of(c), content) for c in range(4)]
    sums = CohortSums(Reduction.of({"arrays": arrays}, {"arrays": by_examples}), len(units))
    answers = list(grid.reduce(messages, sums, units=units))
    failed = {protocol.client_of(a.node): a.reason for a in answers if a.metrics is None}
    total, weight = sums.result()["arrays"]
    return failed, total["w"].tolist(), weight, grid


ALONE = [(0, 1), (1, 2), (2, 3), (3, 4)]
FUSED = [(0, 3), (3, 4)]


@pytest.mark.parametrize("units", [ALONE, FUSED], ids=["alone", "fused"])
def test_what_fails_once_is_tried_again(units):
    failed, total, weight, _ = answers_of(Clients(once=fail), units, retries=1)
    assert failed == {}
    assert (total, weight) == ([10.0, 10.0], 4)
    failed, _, weight, _ = answers_of(Clients(once=fail), units)
    assert set(failed) == {1}
    assert weight == 3


@pytest.mark.parametrize("units", [ALONE, FUSED], ids=["alone", "fused"])
def test_what_fails_always_is_left_out_and_keeps_nothing(units):
    failed, total, weight, grid = answers_of(Clients(always=fail), units, retries=2)
    assert set(failed) == {2}
    assert "does not want to" in failed[2]
    assert (total, weight) == ([7.0, 7.0], 3)
    assert [grid.states.get(client) is None for client in range(4)] == [False, False, True, False]


def test_a_client_that_hangs_is_stopped_by_the_alarm():
    began = time.monotonic()
    clients = Clients(once=lambda: time.sleep(60), always=lambda: time.sleep(60))
    failed, _, weight, _ = answers_of(clients, ALONE, retries=1, client_timeout=0.3)
    assert time.monotonic() - began < 10
    assert set(failed) == {2}
    assert "no reply within 0.3 s" in failed[2]
    assert weight == 3


def test_fused_clients_have_one_limit_together():
    began = time.monotonic()
    failed, total, _, _ = answers_of(
        Clients(always=lambda: time.sleep(60)), FUSED, client_timeout=0.3
    )
    assert time.monotonic() - began < 10
    assert 2 in failed
    assert "no reply within 0.9 s" in failed[2]
    assert total[0] >= 4.0


def test_fused_clients_may_take_the_sum_of_their_limits():
    """Three clients of .4 s each, and a limit of .5 s: alone, none would be late."""
    slow = Clients()
    together = slow.together
    slow.together = lambda messages, contexts: time.sleep(1.2) or together(messages, contexts)
    failed, total, _, _ = answers_of(slow, FUSED, client_timeout=0.5)
    assert failed == {}
    assert total == [10.0, 10.0]


def test_an_app_that_raises_for_all_is_each_ones_answer():
    clients = Clients()
    clients.together = lambda messages, contexts: fail()
    failed, total, weight, _ = answers_of(clients, FUSED)
    assert set(failed) == {0, 1, 2}
    assert (total, weight) == ([4.0, 4.0], 1)
