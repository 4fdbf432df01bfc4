"""A board that is served in this process while a test lasts, and a client that may say anything to it."""

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedssl.app.board.server import ADDRESS, Board


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Board]:
    """Serve a folder on a free port."""
    with Board(folder, 0) as board:
        thread = threading.Thread(target=board.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield board
        finally:
            board.shutdown()
            thread.join()


def asked(
    board: Board,
    place: str,
    sent: Any = None,
    *,
    key: str | None = None,
    **headers: str | None,
) -> tuple[int, str, http.client.HTTPMessage]:
    """Send a request as the board's own page does, but for the given key and headers; None: without this header.

    Returns:
        The status, the text and the headers of the answer.
    """
    host = f"{ADDRESS}:{board.server_port}"
    own = {"Host": host} | ({} if sent is None else {"Origin": f"http://{host}"}) | headers
    body = None if sent is None else sent if isinstance(sent, bytes) else json.dumps(sent).encode()
    connection = http.client.HTTPConnection(ADDRESS, board.server_port, timeout=60)
    connection.putrequest(
        "GET" if sent is None else "POST",
        f"/{board.key if key is None else key}/{place}",
        skip_host=True,
    )
    for name, value in own.items():
        if value is not None:
            connection.putheader(name, value)
    if body is not None and "Content-Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return found


def listed(board: Board) -> dict[str, dict[str, Any]]:
    """Return the board's runs by their place."""
    status, text, _ = asked(board, "runs")
    assert status == 200
    return {run["place"]: run for run in json.loads(text)["runs"]}
