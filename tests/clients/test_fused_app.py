"""Requests that are answered together get the replies of single clients, up to rounding."""

import dataclasses
import logging

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fedssl.clients import fused_app
from fedssl.clients.client_app import app
from fedssl.clients.fused_app import fusion_keys, train_together, why_not_together
from fedssl.clients.local_data import simulated_federation
from fedssl.data.federation import Federation
from fedssl.data.shard import as_float
from fedssl.exchange import protocol
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import WEIGH_STATE, Reduction, by_examples
from fedssl.exchange.unit_replies import Replies
from fedssl.training.learn import fill_slots
from fedssl.training.network import build_network
from tests.helpers import small_experiment

protocol.claim_identity(1)

CLIENTS = [4, 0, 3, 5]


@pytest.fixture(scope="module")
def fusible():
    """Every client of it has labels, and all take as many steps."""
    experiment = small_experiment(federation={"labels": {"per_class": 8}})
    assert len(set(fusion_keys(experiment, range(6)))) == 1
    return experiment


def requests(experiment, clients, content=None):
    """Return messages that share one content, and fresh contexts."""
    if content is None:
        federation = simulated_federation(experiment)
        network = build_network(experiment.model, experiment.method, federation.data.spec, 0)
        config = protocol.request_config(experiment.to_client_json(), 0, 1, 2)
        config[protocol.ROUND] = 3
        arrays = protocol.to_record(network.state_dict())
        content = RecordDict({protocol.CONFIG: config, protocol.ARRAYS: arrays})
    messages = [protocol.new_message("train", protocol.node_of(c), content) for c in clients]
    contexts = [protocol.new_context(1, client, 6, "cpu", None) for client in clients]
    for message in messages:
        protocol.set_message_id(message, f"1.{message.metadata.dst_node_id}")
    return messages, contexts


def alone(messages, contexts):
    return [app(message, context) for message, context in zip(messages, contexts, strict=True)]


def check_reply(fused, expected):
    assert fused.metadata.reply_to_message_id == expected.metadata.reply_to_message_id
    assert fused.metadata.src_node_id == expected.metadata.src_node_id
    assert list(fused.content) == list(expected.content)
    found, wanted = (protocol.all_metrics_of(reply) for reply in (fused, expected))
    assert list(found) == list(wanted)
    for name in set(wanted) - {"seconds"}:
        assert found[name] == pytest.approx(wanted[name], rel=1e-4), name
    check_arrays(fused.content[protocol.ARRAYS], expected.content[protocol.ARRAYS])


def check_arrays(fused, expected):
    here, there = protocol.from_record(fused), protocol.from_record(expected)
    assert list(here) == list(there)
    for name, array in there.items():
        assert here[name].dtype == array.dtype
        np.testing.assert_allclose(here[name], array, atol=1e-5, err_msg=name)


def test_replies_are_those_of_each_alone(fusible):
    messages, contexts = requests(fusible, CLIENTS)
    replies = train_together(messages, contexts).messages
    for reply, expected in zip(replies, alone(*requests(fusible, CLIENTS)), strict=True):
        check_reply(reply, expected)
    assert not any(context.state for context in contexts)


WITH_STATE = {
    "sent and merged": {"method": {"kind": "freematch"}},
    "kept by clients": {"method": {"kind": "mean_teacher", "teacher_scope": "client"}},
    "of the strategy": {"strategy": "scaffold"},
    "both": {"method": {"kind": "mean_teacher", "teacher_scope": "server"}, "strategy": "scaffold"},
}


def with_state(experiment):
    """Return requests that carry the first state of every slot that travels, and fresh contexts."""
    content = requests(experiment, CLIENTS)[0][0].content
    federation, recipe = simulated_federation(experiment), experiment.recipe
    network = build_network(experiment.model, experiment.method, federation.data.spec, 0)
    state = fill_slots(recipe, network, federation.shard(0), {})
    for slot in recipe.slots_in("server"):
        record = protocol.STATE_RECORDS[slot.merge.weight]
        tensors = {protocol.slot_key(slot.name, n): t for n, t in state[slot.name].items()}
        before = content.array_records.get(record, {})
        content[record] = protocol.to_record(
            {**protocol.from_record(before), **tensors} if before else tensors
        )
    return requests(experiment, CLIENTS, content)


@pytest.mark.parametrize("overrides", WITH_STATE.values(), ids=WITH_STATE)
def test_state_is_kept_and_sent_as_by_each_alone(overrides):
    """In the second round, clients begin with what they kept in the first."""
    experiment = small_experiment(federation={"labels": {"per_class": 8}}, **overrides)
    assert why_not_together(experiment) is None
    messages, contexts = with_state(experiment)
    others, own = with_state(experiment)
    for _ in range(2):
        for reply, expected in zip(
            train_together(messages, contexts).messages, alone(others, own), strict=True
        ):
            check_reply(reply, expected)
            for record in set(expected.content.array_records) - {protocol.ARRAYS}:
                check_arrays(reply.content[record], expected.content[record])
        for context, other in zip(contexts, own, strict=True):
            assert set(context.state) == set(other.state)
            for record in other.state:
                check_arrays(context.state[record], other.state[record])
    assert all(
        bool(context.state) == bool(experiment.recipe.slots_in("client")) for context in contexts
    )


@pytest.mark.parametrize("overrides", WITH_STATE.values(), ids=WITH_STATE)
def test_sums_of_state_are_those_of_the_messages_to_the_bit(overrides):
    experiment = small_experiment(federation={"labels": {"per_class": 8}}, **overrides)
    messages, contexts = with_state(experiment)
    replies = train_together(messages, contexts)
    carried = {n: protocol.from_record(r) for n, r in messages[0].content.array_records.items()}
    weigh = {protocol.ARRAYS: by_examples, **WEIGH_STATE}
    reduction = Reduction.of(carried, weigh)
    answers, part = replies.reduce(reduction, [None] * len(CLIENTS))
    expected, summed = Replies(replies.messages).reduce(reduction, [None] * len(CLIENTS))
    assert answers == expected
    assert part.keys() == summed.keys() == carried.keys()
    for record, (sums, weight) in summed.items():
        assert weight == part[record][1] > 0
        assert all(np.array_equal(part[record][0][name], array) for name, array in sums.items())


@pytest.mark.parametrize("state", [{}, {"model": {"x": np.zeros(2)}}])
def test_sums_are_those_of_the_messages_to_the_bit(fusible, state):
    messages, contexts = requests(fusible, CLIENTS)
    contexts[2].node_config["partition-id"] = 77
    if state:
        messages[0].content[protocol.STATE] = protocol.to_record(state["model"])
    replies = train_together(messages, contexts)
    sent = protocol.from_record(messages[0].content[protocol.ARRAYS])
    carried = {protocol.ARRAYS: sent, protocol.STATE: {}}
    reduction = Reduction.of(carried, {protocol.ARRAYS: by_examples, protocol.STATE: by_examples})
    sizes, labeled = (
        simulated_federation(fusible).sizes,
        simulated_federation(fusible).labeled_sizes,
    )
    holdings = [Holding(client, int(sizes[client]), int(labeled[client])) for client in CLIENTS]
    holdings[3] = holdings[3]._replace(num_examples=1)
    answers, part = replies.reduce(reduction, holdings)
    expected, summed = Replies(replies.messages).reduce(reduction, holdings)
    assert [answer.metrics is None for answer in answers] == [False, False, True, True]
    assert replies.failed == [False, False, True, False]
    assert "the census says 1" in answers[3].reason
    assert answers == expected
    assert part.keys() == summed.keys() == {protocol.ARRAYS}
    (sums, weight), (others, other_weight) = part[protocol.ARRAYS], summed[protocol.ARRAYS]
    assert weight == other_weight > 0
    for name, array in others.items():
        assert np.array_equal(sums[name], array), name


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("fit_together", RuntimeError("DefaultCPUAllocator: can't allocate memory: 12 bytes")),
        ("fit_together", TimeoutError("no reply within 2 s")),
        ("local_data", TimeoutError("no reply within 2 s")),
    ],
)
def test_want_of_memory_or_time_is_no_reason_to_train_one_by_one(
    fusible, monkeypatch, where, error
):
    def greedy(*args, **kwargs):
        raise error

    monkeypatch.setattr(fused_app, where, greedy)
    with pytest.raises(type(error), match=str(error)[:10]):
        train_together(*requests(fusible, CLIENTS))


def test_what_an_earlier_phase_left_is_dropped(fusible):
    messages, contexts = requests(fusible, CLIENTS)
    contexts[1].state["phase-9.ensemble"] = protocol.to_record({"x": np.zeros(2)})
    train_together(messages, contexts)
    assert not contexts[1].state


def test_a_client_that_cannot_be_prepared_harms_nobody_else(fusible):
    messages, contexts = requests(fusible, CLIENTS)
    contexts[2].node_config["partition-id"] = 77
    replies = train_together(messages, contexts).messages
    assert "the experiment's 6 clients have the numbers 0 to 5" in replies[2].error.reason
    expected = alone(*requests(fusible, CLIENTS))
    for i in (0, 1, 3):
        check_reply(replies[i], expected[i])


@pytest.mark.parametrize(
    ("augment", "words"),
    [
        ({"weak": "identity", "strong": "noise"}, "training diverged"),
        ({}, "out of bounds"),  # histograms are equalized, and it raises amid the group
    ],
)
def test_a_client_that_diverges_or_raises_harms_nobody_else(augment, words, monkeypatch):
    experiment = small_experiment(federation={"labels": {"per_class": 8}}, augment=augment)
    whole = Federation.shard

    def shard(self, client):
        own = whole(self, client)
        images = as_float(own.images)
        return dataclasses.replace(own, images=images / 0 if client == CLIENTS[1] else images)

    monkeypatch.setattr(Federation, "shard", shard)
    replies = train_together(*requests(experiment, CLIENTS)).messages
    monkeypatch.undo()
    assert words in replies[1].error.reason
    assert "During handling" not in replies[1].error.reason
    expected = alone(*requests(experiment, CLIENTS))
    for i in (0, 2, 3):
        check_reply(replies[i], expected[i])


def test_nobody_can_be_prepared(fusible):
    messages, contexts = requests(fusible, CLIENTS)
    for context in contexts:
        context.node_config["partition-id"] = -1
    replies = train_together(messages, contexts).messages
    assert all(
        "the experiment's 6 clients have the numbers 0 to 5" in reply.error.reason
        for reply in replies
    )


@pytest.mark.parametrize("method", [{"kind": "vat"}, {"kind": "tests.plugins.raising"}])
def test_what_cannot_be_fused_is_trained_one_by_one_to_the_same_bits_and_says_why(method, caplog):
    experiment = small_experiment(method=method)
    with caplog.at_level(logging.WARNING, "fedssl.fusion.fit"):
        replies = train_together(*requests(experiment, CLIENTS)).messages
    assert why_not_together(experiment) in caplog.text
    for reply, expected in zip(replies, alone(*requests(experiment, CLIENTS)), strict=True):
        assert reply.has_error() == expected.has_error()
        if not reply.has_error():
            arrays = expected.content[protocol.ARRAYS]
            assert reply.content[protocol.ARRAYS] == arrays


def test_a_broken_request_is_answered_as_alone():
    content = RecordDict({protocol.CONFIG: ConfigRecord()})
    replies = train_together(*requests(None, CLIENTS, content)).messages
    assert all("carries no 'experiment'" in reply.error.reason for reply in replies)


def test_requests_of_other_contents_are_answered_one_by_one(fusible, caplog):
    first, second = requests(fusible, [0]), requests(fusible, [1])
    with caplog.at_level(logging.WARNING, "fedssl.fusion.fit"):
        replies = train_together(first[0] + second[0], first[1] + second[1]).messages
    assert "do not share one content" in caplog.text
    assert (
        replies[1].content[protocol.ARRAYS]
        == (alone(*requests(fusible, [1]))[0].content[protocol.ARRAYS])
    )


def test_clients_are_told_apart_by_their_steps_and_whether_they_have_labels():
    federation = {"labels": {"per_class": 1}, "partition": {"alpha": 0.05}}
    train = {"local_epochs": 1, "local_steps": None}
    experiment = small_experiment(federation=federation, train=train)
    drawn = simulated_federation(experiment)
    keys = fusion_keys(experiment, range(6))
    for client, key in enumerate(keys):
        shard = drawn.shard(client)
        num_steps = experiment.recipe.num_steps(len(shard.labeled), len(shard))
        assert key == (num_steps, len(shard.labeled) > 0)
    assert len(set(keys)) > 1
