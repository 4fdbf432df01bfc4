"""The log, in a client's own folder, of every message that left the client: its owner can read what was sent.

Each message is a line of JSON in ``sent.jsonl``. It says when the message left and in answer to what. For each record it
gives the name of every array, its shape, type, length in bytes and L2 norm, or the name and value of every metric. A
message without content has the reason of its error instead.
"""

import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message

from fedssl.clients.own_folder import folder_of
from fedssl.exchange import protocol

SENT = "sent.jsonl"


def with_sent_log(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Run an app and log its reply before it leaves; a node without a folder logs nothing.

    If the log cannot be written, an error that says so leaves in place of the reply.
    """
    reply = call_next(message, context)
    folder = folder_of(context)
    if folder is None:
        return reply
    try:
        _append(folder / SENT, message, context, reply)
    except OSError as error:
        said = f"nothing was sent, because the client's log cannot be written: {error}"
        return protocol.error_reply(message, said)
    return reply


def _append(file: Path, message: Message, context: Context, reply: Message) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = message.content.get(protocol.CONFIG)
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "run": str(context.run_id),
        "answer_to": message.metadata.message_type,
        "round": config.get(protocol.ROUND) if isinstance(config, ConfigRecord) else None,
    }
    if reply.has_error():
        line["error"] = reply.error.reason
    else:
        line["bytes"] = protocol.num_bytes(reply.content)
        line["records"] = {
            name: _describe_arrays(record)
            if isinstance(record, ArrayRecord)
            else _plain(dict(record))
            for name, record in reply.content.items()
        }
    only_owner = partial(os.open, mode=0o600)
    with open(file, "a", encoding="utf-8", opener=only_owner) as log:
        log.write(json.dumps(line, allow_nan=False) + "\n")


def _describe_arrays(record: ArrayRecord) -> dict[str, Any]:
    """Return what is logged of each array, by its name."""
    return {
        name: {
            "shape": list(array.shape),
            "type": str(array.dtype),
            "bytes": len(record[name].data),
            "norm": _plain(float(np.linalg.norm(array.astype(np.float64).ravel()))),
        }
        for name, array in protocol.from_record(record).items()
    }


def _plain(value: Any) -> Any:
    """Return a value as JSON can say it; numbers that are not finite, and bytes, become texts."""
    if isinstance(value, dict):
        return {name: _plain(own) for name, own in value.items()}
    if isinstance(value, list):
        return [_plain(own) for own in value]
    if isinstance(value, bytes) or (isinstance(value, float) and not math.isfinite(value)):
        return str(value)
    return value
