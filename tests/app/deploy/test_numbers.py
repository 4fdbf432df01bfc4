"""A client number that is bound to a key cannot be claimed by a client with another key."""

import json

import pytest
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.app.deploy.roster import Registered, Roster
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.server.bound_numbers import numbers_of, with_bound_numbers

BIG = 2**63 + 5


def said(nodes_and_claims):
    """Return a way to ask nodes that say these numbers."""

    def ask(messages):
        claims = dict(nodes_and_claims)
        for message in messages:
            metrics = MetricRecord({protocol.CLIENT: claims[message.metadata.dst_node_id]})
            yield Message(RecordDict({"metrics": metrics}), reply_to=message)

    return ask


def census_of(nodes_and_claims, numbers):
    protocol.claim_identity(1)
    messages = [
        protocol.new_message(MessageType.QUERY, node, RecordDict()) for node in nodes_and_claims
    ]
    replies = with_bound_numbers(said(nodes_and_claims), numbers)(messages)
    return {reply.metadata.src_node_id: reply for reply in replies}


def test_a_false_claim_is_refused_with_both_named_and_the_owner_is_believed():
    replies = census_of({BIG: 0, 7: 0, 8: 1}, {BIG: 0, 8: 1})
    assert not replies[BIG].has_error()
    assert not replies[8].has_error()
    assert (
        f"node 7 says that it is client 0, but that number is bound to the key of node {BIG}"
        in (replies[7].error.reason)
    )
    swapped = census_of({BIG: 1, 8: 1}, {BIG: 0, 8: 1})
    assert (
        "says that it is client 1, but its key is registered as client 0"
        in swapped[BIG].error.reason
    )
    assert not swapped[8].has_error()


@given(
    claims=st.dictionaries(st.integers(1, 6), st.integers(0, 5), min_size=1),
    bound=st.dictionaries(st.integers(1, 6), st.integers(0, 5)).filter(
        lambda numbers: len(set(numbers.values())) == len(numbers)
    ),
)
@settings(max_examples=80, deadline=None)
def test_who_is_believed_says_its_own_number_or_a_free_one(claims, bound):
    for node, reply in census_of(claims, bound).items():
        owners = [owner for owner, number in bound.items() if number == claims[node]]
        believed = bound.get(node, claims[node]) == claims[node] and owners in ([], [node])
        assert reply.has_error() != believed


@pytest.mark.parametrize("claim", [float("nan"), float("inf"), -1.0, 0.5])
def test_a_claim_that_is_no_number_of_anybodys_is_left_to_the_census(claim):
    assert not census_of({7: claim}, {8: 0})[7].has_error()
    assert census_of({8: claim}, {8: 0})[8].has_error()


def test_a_roster_round_trips_and_gives_a_number_once(tmp_path):
    roster = Roster(tmp_path / "registered.json")
    assert roster.read() == {}
    roster.add("a", Registered(str(BIG), 0))
    roster.add("b", Registered("7", None))
    assert numbers_of(json.dumps(dict(roster.numbers()))) == {BIG: 0}
    assert numbers_of("") == {}
    assert roster.name_of("7") == "b"
    assert roster.name_of("8") == ""
    assert roster.owner_of(0) == "a"
    assert roster.owner_of(1) == roster.owner_of(None) == ""
    roster.remove("a")
    assert roster.read() == {"b": Registered("7", None)}
    (tmp_path / "registered.json").write_text("[1]")
    with pytest.raises(InputError, match="cannot be read"):
        roster.read()
