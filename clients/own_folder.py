"""A client's own folder: what it keeps between rounds outlives its process, and its owner can read what left it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flwr.app import Context, RecordDict

from fedssl.core.files import write_atomically
from fedssl.exchange import protocol
from fedssl.exchange.protocol import Request

KEPT = "kept"
"""Name of the folder, in a client's folder, of what the client keeps: one file for each run."""

MOST_RUNS = 3
"""A client keeps the states of this many runs; a further run replaces the one that was not asked for the longest time."""


def folder_of(context: Context) -> Path | None:
    """Return a client's own folder, which its node's config names; None: it has none. No server can change it."""
    named = context.node_config.get(protocol.FOLDER)
    return Path(str(named)) if named else None


@contextlib.contextmanager
def kept_in_folder(context: Context, request: Request) -> Iterator[None]:
    """Let a client's context hold, inside the block, what the client's folder has kept of the run, and keep it afterwards.

    Without a folder, or if the request belongs to no run, Flower keeps the context in its memory.

    Args:
        context: The client's context; its state is empty after the block if it went to the folder.
        request: The request.

    Raises:
        ValueError: The file in the folder is damaged.
        OSError: The file cannot be read or written.
    """
    folder = folder_of(context)
    if folder is None or request.run is None:
        yield
        return
    file = folder / KEPT / f"{request.run}.bin"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    context.state.clear()
    if file.exists():
        context.state.update(_read(file))
    try:
        yield
    finally:
        write_atomically(file, protocol.state_to_bytes(context.state) or b"")
        context.state.clear()
        _forget_old_runs(file.parent)


def _read(file: Path) -> RecordDict:
    try:
        return protocol.state_from_bytes(file.read_bytes())
    except Exception as error:  # protobuf has errors of its own
        raise ValueError(
            f"{file} is damaged ({error}); remove it, and the client begins anew"
        ) from None


def _forget_old_runs(folder: Path) -> None:
    files = sorted(folder.glob("*.bin"), key=lambda file: file.stat().st_mtime_ns)
    for file in files[:-MOST_RUNS]:
        file.unlink(missing_ok=True)
