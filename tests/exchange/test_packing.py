"""A packed message holds few objects whatever the network, and is the same message once it is unpacked."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as some

from fedssl.exchange import protocol
from fedssl.exchange.packing import (
    LENGTH_BYTES,
    MOST_HEADER_BYTES,
    PACKED,
    answer_as_asked,
    is_packed,
    pack,
    unpack,
)

arrays = some.dictionaries(
    some.text(max_size=5),
    some.tuples(
        some.sampled_from(["float32", "float64", "int64", "uint8", "bool"]),
        some.lists(some.integers(0, 3), max_size=3),
    ).map(lambda kind: np.ones(kind[1], kind[0])),
    max_size=4,
)


def content_of(records):
    others = {"config": ConfigRecord({"a": 1}), "metrics": MetricRecord({"b": 2.0})}
    return RecordDict({**{n: protocol.to_record(a) for n, a in records.items()}, **others})


@given(some.dictionaries(some.sampled_from(["arrays", "state", "extra.x"]), arrays, max_size=3))
def test_what_is_packed_and_unpacked_is_what_it_was(records):
    content = content_of(records)
    packed = pack(content)
    assert unpack(packed).object_id == content.object_id
    assert is_packed(packed) == any(len(found) > 1 for found in records.values())
    assert list(packed) == list(content)


def test_a_message_of_a_hundred_tensors_has_few_objects():
    """A message, its content, two records, and an array with its bytes."""
    tensors = {f"layer{i}.weight": np.full(3, float(i)) for i in range(100)}
    content = RecordDict({"arrays": protocol.to_record(tensors), "config": ConfigRecord()})
    messages = [protocol.new_message("train", 7, c) for c in (content, pack(content))]
    assert [len(get_all_nested_objects(message)) for message in messages] == [204, 6]


def test_a_record_that_several_clients_get_is_one_object():
    shared = protocol.to_record({"w": np.ones(2), "b": np.ones(1)})
    own = [protocol.to_record({"v": np.full(2, i), "u": np.ones(1)}) for i in range(2)]
    packed = [pack(RecordDict({"arrays": shared, "extra.own": record})) for record in own]
    assert packed[0]["arrays"].object_id == packed[1]["arrays"].object_id
    assert packed[0]["extra.own"].object_id != packed[1]["extra.own"].object_id


def damaged(rows, data=b"", length=None):
    header = rows if isinstance(rows, bytes) else json.dumps(rows).encode()
    blob = (len(header) if length is None else length).to_bytes(LENGTH_BYTES, "little")
    blob += header + data
    return RecordDict({"arrays": ArrayRecord({PACKED: Array("uint8", (1,), PACKED, blob)})})


ROW = ["w", "float32", [1], "numpy.ndarray", 4]


def test_the_rows_of_these_tests_are_well_without_damage():
    assert unpack(damaged([ROW], b"1234"))["arrays"]["w"].data == b"1234"


@pytest.mark.parametrize(
    "content",
    [
        damaged([ROW], b"123"),
        damaged([ROW], b"12345"),
        damaged([ROW, ROW], b"12345678"),  # one name twice
        damaged([ROW], b"1234", length=2**63),
        damaged([ROW], b"1234", length=3),
        damaged({"w": 1}),
        damaged([ROW[:4]], b"1234"),
        damaged([["w", "float32", [-1], "numpy.ndarray", 4]], b"1234"),
        damaged([["w", "float32", [1], "numpy.ndarray", -4]], b""),
        damaged([["w", "float32", [1], "numpy.ndarray", 4.0]], b"1234"),
        damaged([["w", "float32", [True], "numpy.ndarray", 4]], b"1234"),
        damaged([["w", 32, [1], "numpy.ndarray", 4]], b"1234"),
        damaged(b"\xff"),
        damaged(b"", length=0),
    ],
)
def test_a_damaged_record_is_refused(content):
    with pytest.raises(ValueError):  # noqa: PT011 (some of json's own)
        unpack(content)


def test_a_header_that_is_too_long_is_not_read(monkeypatch):
    monkeypatch.setattr("fedssl.exchange.packing.json.loads", None)
    with pytest.raises(ValueError, match="has more than"):
        unpack(damaged(b" " * (MOST_HEADER_BYTES + 1)))


def request(content):
    return protocol.new_message("train", 7, content)


@pytest.mark.parametrize("form", [pack, unpack])
def test_a_client_answers_in_the_form_in_which_it_is_asked(form):
    content = content_of({"arrays": {"w": np.ones(2), "b": np.zeros(1)}})
    seen = []

    def app(message, context):
        seen.append(message.content.object_id)
        return protocol.reply_of(message, content)

    reply = answer_as_asked(request(form(content)), None, app)
    assert seen == [content.object_id]
    assert reply.content.object_id == form(content).object_id


def test_an_error_is_answered_as_it_is():
    def app(message, context):
        return protocol.error_reply(message, "no")

    content = content_of({"arrays": {"w": np.ones(2), "b": np.zeros(1)}})
    assert answer_as_asked(request(pack(content)), None, app).error.reason == "no"
