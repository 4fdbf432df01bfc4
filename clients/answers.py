"""What a node has answered: one answer a round, and no more than its owner allows in all.

Noise hides an update once. Whoever gets the same update twice with fresh noise takes the mean of the two. So a node
keeps its last reply and sends that very reply again to a request that is asked again, byte for byte, and refuses any
other request for a round that it has answered. The account is a small file that outlives the node's process and every
run, for a run's number, and what Flower keeps of a run, are the server's to choose.
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
    """Return the folder of a node's account: its owner's data and number name it, which no server can change."""
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
    """Answer a request, or send the last reply again if the request is the last one.

    The account is locked meanwhile, and says what is being answered before anything is: a process that dies before its
    reply was kept has sent none, and may answer the same request.

    Args:
        message: The request.
        context: Of the node.
        server_round: That it is for, as it says.
        most: Answers in all; None: any number.
        answer: Makes the reply.

    Raises:
        InputError: The node has answered this round, or as often as it may; or its account cannot be read.
    """
    folder = account_of(context)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = message.metadata
    # Flower takes "train.NAME" to the same function as "train".
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
            f"is {server_round}, and this node has answered round {last}: {series}",
            "it answers every round once, and sends the same reply again only to the same request",
        )
    if most is not None and account["answers"] >= most:
        raise InputError(
            "privacy-rounds",
            f"is {most} at this node, and it has answered {account['answers']} requests",
            "its owner decides whether it answers more",
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
            raise ValueError("it holds other things than an account does")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            str(path),
            f"is damaged: {error}",
            "this node cannot tell what it has answered; its owner decides whether the file may go",
        ) from None
    return account
