"""Pack the arrays of a record into one array, as a SuperLink carries messages.

Flower sends each array as two objects (flwr 1.41). The server, the gate, the SuperLink and the client handle a request for each object, and
the SuperLink alone takes about 20 ms of a core for it, so a network of a hundred tensors took seconds for each client and round. A packed
record has two objects, whatever its number of arrays. Records stay apart, because Flower stores a record once that several clients get.

A packed array holds the length of a header (8 bytes), the header (JSON: name, type, shape, encoding and length of every array), and the bytes
of all arrays one after the other.
"""

import json
from collections.abc import Callable
from typing import Any

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

PACKED = "fedssl.packed"
"""Name and encoding of a packed record's only array."""

LENGTH_BYTES = 8

MOST_HEADER_BYTES = 4 << 20
"""A longer header is refused: read as JSON, it could take twenty times its bytes. An array's row has about 100 bytes."""


def is_packed(content: RecordDict) -> bool:
    """Return whether a message has a packed record."""
    return any(_is_packed_record(record) for record in content.values())


def pack(content: RecordDict) -> RecordDict:
    """Return a content whose records of several arrays are packed; the other records are the same objects."""
    return RecordDict(
        {
            name: _pack_record(record)
            if isinstance(record, ArrayRecord) and len(record) > 1
            else record
            for name, record in content.items()
        }
    )


def unpack(content: RecordDict) -> RecordDict:
    """Return a content as it was before `pack`; a content without packed records is returned as it is.

    Raises:
        ValueError: A packed record is damaged.
    """
    if not is_packed(content):
        return content
    return RecordDict(
        {
            name: _unpack_record(record[PACKED].data)
            if isinstance(record, ArrayRecord) and _is_packed_record(record)
            else record
            for name, record in content.items()
        }
    )


def answer_as_asked(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Run an app, and pack its reply if the request was packed. The function has the form of a Flower mod."""
    if not is_packed(message.content):
        return call_next(message, context)
    message.content = unpack(message.content)
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = pack(reply.content)
    return reply


def _is_packed_record(record: object) -> bool:
    return (
        isinstance(record, ArrayRecord)
        and list(record) == [PACKED]
        and record[PACKED].stype == PACKED
    )


def _pack_record(record: ArrayRecord) -> ArrayRecord:
    rows = [(n, a.dtype, list(a.shape), a.stype, len(a.data)) for n, a in record.items()]
    header = json.dumps(rows).encode()
    start = len(header).to_bytes(LENGTH_BYTES, "little")
    data = b"".join([start, header, *(array.data for array in record.values())])
    return ArrayRecord({PACKED: Array("uint8", (len(data),), PACKED, data)})


def _unpack_record(data: bytes) -> ArrayRecord:
    begin = LENGTH_BYTES + int.from_bytes(data[:LENGTH_BYTES], "little")
    rows = _read_header(data[LENGTH_BYTES:begin])
    record = ArrayRecord()
    for name, dtype, shape, stype, length in rows:
        end = begin + length
        record[name] = Array(dtype, tuple(shape), stype, data[begin:end])
        begin = end
    if begin != len(data) or len(record) != len(rows):
        raise ValueError("a packed record's bytes are not those that its header describes")
    return record


def _read_header(header: bytes) -> list[tuple[str, str, list[int], str, int]]:
    """Return the rows of a header; raise `ValueError` if it is too long or has another form."""
    if len(header) > MOST_HEADER_BYTES:
        raise ValueError(f"a packed record's header has more than {MOST_HEADER_BYTES} bytes")
    rows: Any = json.loads(header)
    if not isinstance(rows, list) or not all(map(_is_row, rows)):
        raise ValueError("a packed record's header has another form than fedssl gives it")
    return rows


def _is_row(row: Any) -> bool:
    if not isinstance(row, list) or len(row) != 5:
        return False
    name, dtype, shape, stype, length = row
    return (
        all(isinstance(text, str) for text in (name, dtype, stype))
        and isinstance(shape, list)
        and all(type(number) is int and number >= 0 for number in (*shape, length))
    )
