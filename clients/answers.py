"""The account of a node's answers: a node answers each round once, and no more often than its owner allows.

Noise hides an update only once: a server that gets the same update twice, with fresh noise each time, can take the
mean of the two. So a node keeps its last reply. If the same request comes again, byte for byte, the node sends this
very reply again. It refuses any other request for a round that it has answered. The account is a small file that
outlives the node's process and every run, because the server chooses a run's number and what Flower keeps of the run.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
from flwr.app import Context, Message

from fedssl.core.errors import InputError
from fedssl.core.files import write_atomically
from fedssl.data.cache import cache_folder
from fedssl.exchange import protocol


def account_of(context: Context) -> Path:
    """Return the folder of a node's account; the node's data path and number name it, which no server can change."""
    config = context.node_config
    path = config.get(protocol.DATA_PATH)
    where = str(Path(str(path)).expanduser().resolve()) if path else ""
    name = hashlib.sha256(json.dumps([where, config.get(protocol.PARTITION_ID)]).encode())
    return cache_folder() / "answers" / name.hexdigest()[:32]


def answer_once(
    message: Message,
    context: Context,
    server_round: int,
    most: int | None,
    answer: Callable[[], Message],
) -> Message:
    """Answer a request, or send the last reply again if the request is the same as the last one.

    The account is locked until the reply is kept. The request is entered into the account before the reply is made. If
    the process dies before it keeps the reply, it has sent nothing, so the node may answer the same request again.

    Args:
        message: The request.
        context: The node's context.
        server_round: The round that the request names.
        most: Most requests that the node answers in all; None: any number.
        answer: Makes the reply.

    Raises:
        InputError: The node has already answered this round, or has answered as often as its owner allows, or its
            account cannot be read.
    """
    folder = account_of(context)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = message.metadata
    # Flower calls the same function for "train.NAME" as for "train".
    series = f"{about.message_type.partition('.')[0]} in run {context.run_id}"
    digest = hashlib.sha256(f"{series}\n".encode() + _content(message)).hexdigest()
    kept = folder / "reply.bin"
    with filelock.FileLock(folder / "lock", thread_local=False):
        account = _read(folder)
        if account["last"] != digest:
            _refuse(account, series, server_round, most)
            kept.unlink(missing_ok=True)
            account["answers"] += 1
            account["rounds"][series] = server_round
            account["last"] = digest
            write_atomically(folder / "account.json", json.dumps(account).encode())
        elif kept.exists():
            content = protocol.state_from_bytes(kept.read_bytes())
            return Message(content=content, reply_to=message)
        reply = answer()
        if not reply.has_error():
            write_atomically(kept, protocol.state_to_bytes(reply.content) or b"")
        return reply


def _refuse(account: dict[str, Any], series: str, server_round: int, most: int | None) -> None:
    last = account["rounds"].get(series, 0)
    if server_round <= last:
        raise InputError(
            "server-round",
            f"is {server_round}, but this node has answered round {last} already: {series}",
            "a node answers every round once; only the same request gets the same reply again",
        )
    if most is not None and account["answers"] >= most:
        raise InputError(
            "privacy-rounds",
            f"is {most} at this node, and the node has answered {account['answers']} requests",
            "the node's owner can raise it",
        )


def _content(message: Message) -> bytes:
    return protocol.state_to_bytes(message.content) or b""


def _read(folder: Path) -> dict[str, Any]:
    path = folder / "account.json"
    if not path.exists():
        return {"answers": 0, "rounds": {}, "last": ""}
    try:
        account: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kinds = [type(account[name]) for name in ("answers", "rounds", "last")]
        if kinds != [int, dict, str]:
            raise ValueError("it does not hold 'answers', 'rounds' and 'last' as an account does")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path),
            f"is damaged: {error}",
            "this node cannot tell what it has answered; its owner decides whether to delete the file",
        ) from None
    return account
