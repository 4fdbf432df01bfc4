"""What a SuperLink loses is asked for again, and nothing else is."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedssl import protocol
from fedssl.engine import persistent_grid
from fedssl.engine.local_grid import Apps
from fedssl.engine.persistent_grid import PersistentGrid
from fedssl.engine.serial_grid import SerialGrid
from tests.contract.test_grids import toy


class Forgetful(SerialGrid):
    """Lose the first requests to some clients, and say what was sent to whom."""

    def __init__(self, losses):
        super().__init__(Apps(toy), 6)
        self.losses = dict(losses)
        self.sent = []

    def push_messages(self, messages):
        names = []
        for message in messages:
            client = protocol.client_of(message.metadata.dst_node_id)
            self.sent.append(client)
            (name,) = super().push_messages([message])
            names.append(name)
            if self.losses.get(client, 0):
                self.losses[client] -= 1
                del self._pushed[name]
        return names


def requests(clients):
    arrays = protocol.to_record({"w": np.ones(3)})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
    return [protocol.new_message("train", protocol.node_of(c), content) for c in clients]


def asked(inner, clients, timeout=None):
    grid = PersistentGrid(inner, least_patience=0.2)
    replies = grid.send_and_receive(requests(clients), timeout=timeout)
    return sorted(protocol.client_of(reply.metadata.src_node_id) for reply in replies)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(persistent_grid, "POLL_SECONDS", 0.01)


def test_who_answers_is_asked_once():
    inner = Forgetful({})
    assert asked(inner, [0, 3, 5]) == [0, 3, 5]
    assert inner.sent == [0, 3, 5]


def test_a_lost_request_is_sent_again_until_it_arrives(caplog):
    inner = Forgetful({3: 2})
    assert asked(inner, [0, 3, 5], timeout=60) == [0, 3, 5]
    assert inner.sent == [0, 3, 5, 3, 3]
    assert caplog.text.count(f"no reply from node {protocol.node_of(3)}: asked again") == 2


def test_an_error_is_a_reply():
    inner = Forgetful({})
    assert asked(inner, [4]) == [4]
    assert inner.sent == [4]


def test_what_the_superlink_says_in_a_clients_place_is_that_clients():
    class Away(Forgetful):
        def pull_messages(self, names):
            for reply in super().pull_messages(names):
                if protocol.client_of(reply.metadata.src_node_id) == 3:
                    reply = protocol.refused(reply, "Node Unavailable")
                    reply.metadata.__dict__["_src_node_id"] = 1
                yield reply

    grid = PersistentGrid(Away({}))
    replies = {r.metadata.src_node_id: r for r in grid.send_and_receive(requests([0, 3]))}
    assert set(replies) == {protocol.node_of(0), protocol.node_of(3)}
    away = replies[protocol.node_of(3)]
    assert away.error.reason == "Node Unavailable"
    assert protocol.is_away(away)


def test_nobody_is_asked_again_before_anybody_has_answered():
    inner = Forgetful({0: 9, 1: 9})
    assert asked(inner, [0, 1], timeout=0.6) == []
    assert inner.sent == [0, 1]


def test_the_deadline_holds():
    inner = Forgetful({1: 10**6})
    assert asked(inner, [0, 1], timeout=0.6) == [0]
