"""The board's server: on the loopback only, under a secret address, and for no other origin.

Another user of the machine does not know the secret in the address. A page of another origin may guess the port, but it
is refused by its ``Origin``, or by its ``Host`` if it has bound its own name to 127.0.0.1 (DNS rebinding). A report may come
from a stranger's run, so it is shown in a sandbox: its scripts have an origin of their own, which is refused as well.
"""

import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from fedssl import __version__
from fedssl.app.board.catalog import Catalog
from fedssl.app.board.pages import Pages
from fedssl.core.errors import FedsslError, InputError
from fedssl.core.processes import LOOPBACK
from fedssl.record.overview import accuracy_by_round
from fedssl.record.removal import check_removable, remove_run
from fedssl.record.tags import change_tags

ADDRESS = "127.0.0.1"

LARGEST_BODY = 1 << 20
"""A request has at most this many bytes."""

MOST_POINTS = 200
"""A curve on the board has at most this many points."""

SILENCE = 30.0
"""A connection on which nothing comes for this many seconds is closed."""

HERE = Path(__file__).parent
ASSETS = {
    "": (HERE / "board.html", "text/html"),
    "board.js": (HERE / "board.js", "text/javascript"),
    "board.css": (HERE / "board.css", "text/css"),
    "page.css": (HERE.parents[1] / "views" / "reports" / "page.css", "text/css"),
}
"""The files of the board itself: the file and its type by the last part of the address."""

OWN_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The board loads its own files and nothing else; a text that became markup by mistake could run no script."""

PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; sandbox allow-scripts allow-downloads"
)
"""Reports and comparisons load nothing, and are not of the board's origin."""

HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Answer:
    """An answer to a request.

    Args:
        content: The text, in UTF-8.
        kind: Type of the content.
        policy: What the browser lets the content do.
        status: HTTP's status.
        location: Address at which the browser asks again; empty: this is the answer.
    """

    content: bytes
    kind: str = "application/json"
    policy: str = OWN_POLICY
    status: HTTPStatus = HTTPStatus.OK
    location: str = ""


class Refused(Exception):
    """A request that the board does not answer."""

    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class Board(ThreadingHTTPServer):
    """Serve the runs of a folder on the loopback.

    Args:
        folder: The folder with the runs.
        port: The port; 0: any free port.

    Raises:
        InputError: There is no such folder, or the port cannot be used.
    """

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.catalog = Catalog(folder)
        self.pages = Pages()
        self.key = secrets.token_urlsafe(16)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            problem = f"{port} cannot be used: {error.strerror}"
            remedy = "name another one, or --port 0 for any that is free"
            raise InputError("--port", problem, remedy) from None

    def server_bind(self) -> None:
        """Bind the port without asking a name server for this machine's name, as `http.server` would."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = ADDRESS, int(self.server_address[1])

    @property
    def url(self) -> str:
        """The address of the board, with its secret."""
        return f"http://{ADDRESS}:{self.server_port}/{self.key}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a browser that closed a connection; every other error is answered in its handler."""


class _Handler(BaseHTTPRequestHandler):
    """Answer one request."""

    server: Board
    timeout = SILENCE
    server_version = f"fedssl/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer a request that changes nothing."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a request that changes something."""
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:
        """Write no line per request to the terminal."""

    def _answer(self, answer: Callable[[str, Mapping[str, list[str]]], Answer]) -> None:
        try:
            found = answer(*self._checked())
        except Refused as error:
            found = _error(error.status, str(error))
        except FedsslError as error:
            found = _error(HTTPStatus.BAD_REQUEST, str(error))
        except FileNotFoundError:
            found = _error(HTTPStatus.NOT_FOUND, "the run is not there any more")
        except Exception as error:  # one request must not end the board
            found = _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")
        self.send_response(found.status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        if found.location:
            self.send_header("Location", found.location)
        self.send_header("Content-Security-Policy", found.policy)
        self.send_header("Content-Type", f"{found.kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(found.content)))
        self.end_headers()
        self.wfile.write(found.content)

    def _checked(self) -> tuple[str, Mapping[str, list[str]]]:
        """Return the address below the secret, and its query, of a request that comes from the board or its user.

        Raises:
            Refused: The request comes from elsewhere.
        """
        host = self.headers.get("Host", "")
        name = urlsplit(f"//{host}").hostname
        if name not in LOOPBACK:
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, "this is not the host of the board")
        origin = self.headers.get("Origin")
        if origin != f"http://{host}" and (origin is not None or self.command != "GET"):
            raise Refused(HTTPStatus.FORBIDDEN, "the board answers no other origin")
        parts = urlsplit(self.path)
        key, slash, place = parts.path.removeprefix("/").partition("/")
        if not secrets.compare_digest(key.encode(), self.server.key.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "open the address that fedssl board printed")
        return place if slash else self.server.key, parse_qs(parts.query)

    def _get(self, place: str, query: Mapping[str, list[str]]) -> Answer:
        if place in ASSETS:
            path, kind = ASSETS[place]
            return Answer(path.read_bytes(), kind)
        if place == self.server.key:
            # Without a slash at its end, the address of the board is no folder.
            return Answer(b"", status=HTTPStatus.PERMANENT_REDIRECT, location=f"/{place}/")
        if place == "runs":
            return _json(self.server.catalog.as_table())
        if place == "curves":
            entries = self.server.catalog.find(query.get("run", []))
            return _json({entry.id: _curve(entry.run.path) for entry in entries})
        if place in ("report", "comparison"):
            try:
                return _page(self._opened(place, query))
            except FedsslError as error:
                return _problem(error, f"{place}?{urlencode(query, doseq=True)}")
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _opened(self, place: str, query: Mapping[str, list[str]]) -> str:
        paths = [entry.run.path for entry in self.server.catalog.find(query.get("run", []))]
        if place == "comparison" and len(paths) > 1:
            return self.server.pages.comparison(paths, force="force" in query)
        if place == "report" and len(paths) == 1:
            return self.server.pages.report(paths[0])
        raise Refused(HTTPStatus.BAD_REQUEST, "a report is of one run, and a comparison of several")

    def _post(self, place: str, query: Mapping[str, list[str]]) -> Answer:
        asked = self._body()
        ids = list(dict.fromkeys(_texts(asked, "runs")))
        paths = [entry.run.path for entry in self.server.catalog.find(ids)]
        if place == "tag":
            add, remove = _texts(asked, "add"), _texts(asked, "remove")
            for path in paths:
                change_tags(path, add, remove)
            return _json({})
        if place == "remove":
            for path in paths:
                check_removable(path)
            for path in paths:
                remove_run(path)
            return _json({})
        raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "the request is too long")
        try:
            found = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Refused(HTTPStatus.BAD_REQUEST, "the request is no JSON table")
        return found


def _texts(asked: Mapping[str, Any], name: str) -> Sequence[str]:
    texts = asked.get(name, [])
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{name} is no list of texts")
    return texts


def _curve(path: Path) -> list[list[float]]:
    """Return (round, accuracy in %) of a run, evenly thinned; the last point is always there."""
    try:
        points = accuracy_by_round(path)
    except Exception:  # a record may hold anything; the list says which file cannot be read
        return []
    step = -(-len(points) // MOST_POINTS) or 1
    return [[round, value * 100] for round, value in points[::-1][::step][::-1]]


def _json(table: Mapping[str, Any]) -> Answer:
    return Answer(json.dumps(table).encode())


def _page(text: str) -> Answer:
    return Answer(text.encode(), "text/html", PAGE_POLICY)


def _problem(error: FedsslError, address: str) -> Answer:
    """Return a page that says why there is no report or no comparison, with the way to compare runs all the same."""
    more = ""
    if isinstance(error, InputError) and "--force" in error.remedy:
        more = f'<p><a href="{escape(address)}&amp;force=yes">compare them all the same</a></p>'
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f'<link rel="stylesheet" href="page.css"><title>fedssl board</title><p class="warn">{escape(str(error))}</p>{more}'
    )
    return Answer(text.encode(errors="replace"), "text/html", status=HTTPStatus.BAD_REQUEST)


def _error(status: HTTPStatus, why: str) -> Answer:
    return Answer(why.encode(errors="replace"), "text/plain", status=status)
