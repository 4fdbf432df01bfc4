"""Messages that a SuperLink loses are sent again, and no other messages are."""

import threading
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedssl.engine import persistent_grid
from fedssl.engine.local_grid import Apps
from fedssl.engine.persistent_grid import PersistentGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.packing import PACKED, pack, unpack
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
    said = f"no reply from node {protocol.node_of(3)}: the request is sent again"
    assert caplog.text.count(said) == 2


class Restarted(Forgetful):
    """Refuse the first pushes, as a SuperLink does that was restarted while it stored them."""

    def __init__(self, refusals):
        super().__init__({})
        self.refusals = refusals

    def push_messages(self, messages):
        if self.refusals:
            self.refusals -= 1
            raise ObjectPushError("an object", 1, "a session")
        return super().push_messages(messages)


def test_what_a_restarted_superlink_refuses_is_pushed_again(caplog):
    assert asked(Restarted(2), [0, 3]) == [0, 3]
    assert caplog.text.count("the requests are pushed again: Failed to push object") == 2


def test_a_superlink_that_always_refuses_ends_the_run():
    with pytest.raises(ObjectPushError):
        asked(Restarted(persistent_grid.PUSH_ATTEMPTS), [0, 3])


def test_an_error_is_a_reply():
    inner = Forgetful({})
    assert asked(inner, [4]) == [4]
    assert inner.sent == [4]


class Away(Forgetful):
    """The SuperLink answers in place of client 3 for a while, and lists it as connected again after some looks."""

    def __init__(self, times, looks=0):
        super().__init__({})
        self.times, self.looks, self.given = times, looks, {}

    def pull_messages(self, names):
        names = list(names)
        yield from (self.given[name] for name in names if name in self.given)
        for reply in super().pull_messages([name for name in names if name not in self.given]):
            if protocol.client_of(reply.metadata.src_node_id) == 3 and self.times:
                self.times -= 1
                reply = protocol.refuse_reply(reply, "Node Unavailable")
                reply.metadata.__dict__["_src_node_id"] = 1
                self.given[reply.metadata.reply_to_message_id] = reply  # Flower keeps such answers
            yield reply

    def get_node_ids(self):
        self.looks -= 1
        there = set(super().get_node_ids())
        return there if self.looks < 0 else there - {protocol.node_of(3)}


def test_a_node_that_goes_away_is_asked_again_when_it_is_back():
    inner = Away(times=2, looks=3)
    assert asked(inner, [0, 3]) == [0, 3]
    assert inner.sent == [0, 3, 3, 3]


def test_a_node_that_does_not_come_back_is_waited_for_once():
    inner = Away(times=99, looks=10**6)
    grid = PersistentGrid(inner, away_patience=0.1)
    for attempt in range(3):
        began = time.monotonic()
        replies = list(grid.send_and_receive(requests([3])))
        assert [protocol.is_away(reply) for reply in replies] == [True]
        assert (time.monotonic() - began > 0.1) == (attempt == 0)
    inner.times = 0  # it is there again, and is waited for the next time
    assert not any(reply.has_error() for reply in grid.send_and_receive(requests([3])))
    inner.times, began = 99, time.monotonic()
    list(grid.send_and_receive(requests([3])))
    assert time.monotonic() - began > 0.1


def test_the_deadline_and_a_query_wait_for_nobody():
    inner = Away(times=99, looks=10**6)
    grid = PersistentGrid(inner)
    began = time.monotonic()
    assert all(map(protocol.is_away, grid.send_and_receive(requests([3]), timeout=0.2)))
    assert time.monotonic() - began < 5
    (query,) = requests([3])
    query.metadata.__dict__["_message_type"] = "query"
    (reply,) = PersistentGrid(inner).send_and_receive([query])
    assert protocol.is_away(reply)


def test_what_the_superlink_says_in_a_clients_place_is_that_clients():
    grid = PersistentGrid(Away(times=99, looks=10**6), away_patience=0.0)
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


class Node(Forgetful):
    """A grid at which client 3 replies as it likes; `reply` makes what is pulled of its honest reply."""

    def __init__(self, reply):
        super().__init__({})
        self.reply = reply

    def pull_messages(self, names):
        for honest in super().pull_messages(names):
            is_honest = protocol.client_of(honest.metadata.src_node_id) != 3
            yield honest if is_honest else self.reply(honest)


def replies_of(reply, timeout=60):
    came = PersistentGrid(Node(reply)).send_and_receive(requests([0, 3, 5]), timeout=timeout)
    return {protocol.client_of(message.metadata.src_node_id): message for message in came}


def raising(error):
    def raise_it(honest):
        raise error

    return raise_it


@pytest.mark.parametrize(
    "reply",
    [
        lambda honest: honest.content,  # whose object is no message
        lambda honest: None,
        lambda honest: "text",
        lambda honest: protocol.message_of(honest.metadata, "no records"),
        lambda honest: protocol.message_of(honest.metadata, None),
        raising(KeyError("arrays")),
        raising(MemoryError()),
        raising(ValueError("\x1b[2J" + "x" * 10**6)),
    ],
)
def test_what_a_reply_raises_is_that_clients_and_nobody_elses(reply):
    replies = replies_of(reply)
    assert replies.keys() == {0, 3, 5}
    assert [replies[client].has_error() for client in (0, 3, 5)] == [False, True, False]
    reason = replies[3].error.reason
    assert reason.startswith("refused: the reply cannot be read: ")
    assert len(reason) < 5000
    assert "\x1b" not in reason


class Packing(SerialGrid):
    """Answer with two arrays in packed form, whose bytes may be damaged; say what was sent."""

    def __init__(self, damage):
        super().__init__(Apps(toy), 2)
        self.damage = damage
        self.sent = []

    def push_messages(self, messages):
        self.sent += messages
        return super().push_messages([unpacked(message) for message in messages])

    def pull_messages(self, message_ids):
        for reply in super().pull_messages(message_ids):
            content = pack(RecordDict({"arrays": TWO, "metrics": MetricRecord({"a": 1})}))
            content["arrays"][PACKED].data = self.damage(content["arrays"][PACKED].data)
            yield protocol.reply_of(reply, content)


TWO = protocol.to_record({"w": np.ones(3), "b": np.zeros(2)})


def unpacked(message):
    about = message.metadata
    content = unpack(message.content)
    return protocol.new_message(about.message_type, about.dst_node_id, content, about.group_id)


def test_messages_travel_packed_and_are_unpacked_on_arrival():
    inner = Packing(damage=lambda data: data)
    content = RecordDict({"arrays": TWO, "config": ConfigRecord()})
    sent = [protocol.new_message("train", protocol.node_of(c), content, ttl=77.0) for c in (0, 1)]
    replies = list(PersistentGrid(inner).send_and_receive(sent))
    assert [list(reply.content["arrays"]) for reply in replies] == [["w", "b"]] * 2
    assert [list(message.content["arrays"]) for message in inner.sent] == [[PACKED]] * 2
    assert {id(message.content) for message in inner.sent} == {id(inner.sent[0].content)}
    assert {message.metadata.ttl for message in inner.sent} == {77.0}
    assert list(content["arrays"]) == ["w", "b"]  # the server's own is untouched


def test_a_damaged_packed_reply_is_an_error_of_its_node():
    inner = Packing(damage=lambda data: data[:-1])
    replies = list(PersistentGrid(inner).send_and_receive(requests([0, 1])))
    assert all("refused: the reply cannot be read" in reply.error.reason for reply in replies)


def test_a_reply_is_of_the_node_that_was_asked_whatever_it_says():
    def impersonate(honest):
        honest.metadata.__dict__["_src_node_id"] = protocol.node_of(0)
        honest.metadata.__dict__["_reply_to_message_id"] = "another"
        return honest

    replies = replies_of(impersonate)
    assert replies.keys() == {0, 3, 5}
    for client, reply in replies.items():
        assert int(reply.content["metrics"]["client"]) == client


@pytest.mark.parametrize("code", [protocol.RAISED, protocol.REFUSED_BY_FLOOR])
def test_a_clients_own_error_stays_what_it_is(code):
    def refuse(honest):
        reply = protocol.refuse_reply(honest, "no")
        reply.error.__dict__["_code"] = code
        return reply

    refused = replies_of(refuse)[3]
    assert refused.error.reason == "no"
    assert protocol.is_refused_by_floor(refused) == (code == protocol.REFUSED_BY_FLOOR)
    assert not protocol.is_away(refused)


def told_by(inner, clients, timeout, **options):
    """Return what those who follow a run are told while it waits for replies, with the seconds that are left."""
    told = []

    def on_wait(what, until):
        told.append((what, (until - datetime.now(UTC)).total_seconds()))

    grid = PersistentGrid(inner, on_wait=on_wait, **options)
    list(grid.send_and_receive(requests(clients), timeout=timeout))
    return told


def test_late_replies_are_told_once_with_the_deadline():
    numbers = {protocol.node_of(3): 3}
    ((what, left),) = told_by(
        Forgetful({1: 9, 3: 9}), [0, 1, 3], 0.5, late_seconds=(0.1, 9.0), numbers=numbers
    )
    assert what == f"no answer yet from client 3, node {protocol.node_of(1)}"
    assert 0.1 < left < 0.41


def test_before_the_first_reply_of_a_kind_there_is_more_patience():
    assert not told_by(Forgetful({3: 9}), [3], 0.3, late_seconds=(0.1, 9.0))
    assert told_by(Forgetful({3: 9}), [3], 0.3, late_seconds=(9.0, 0.1))


def test_a_node_that_went_away_is_told_with_the_end_of_patience():
    ((what, left),) = told_by(
        Away(times=99, looks=10**6), [0, 3], 60, away_patience=0.2, numbers={protocol.node_of(3): 7}
    )
    assert what == "client 7 went away"
    assert 0.1 < left < 0.2


def test_of_two_replies_the_first_counts():
    class Twice(Forgetful):
        def pull_messages(self, names):
            for reply in super().pull_messages(names):
                second = protocol.error_reply(requests([3])[0], "the second one")
                yield from (reply, second)

    came = list(PersistentGrid(Twice({})).send_and_receive(requests([0, 3]), timeout=60))
    assert [reply.has_error() for reply in came] == [False, False]


def test_a_reply_that_never_comes_whole_holds_up_nobody_and_no_deadline(monkeypatch):
    monkeypatch.setattr(persistent_grid, "LOOK_SECONDS", 0.1)
    ended = threading.Event()
    began = time.monotonic()
    replies = replies_of(lambda honest: ended.wait(60), timeout=1.0)
    took = time.monotonic() - began
    ended.set()
    assert replies.keys() == {0, 5}
    assert 1.0 <= took < 10.0


def test_a_process_that_is_to_end_does():
    with pytest.raises(SystemExit):
        replies_of(raising(SystemExit(3)))
