"""`fedssl board`: shows all runs of a folder in a browser while they go on."""

import contextlib
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from fedssl.app.guard import guarded
from fedssl.core.console import Console
from fedssl.record.run_path import RUNS

PORT = 8642


@guarded
def board(
    folder: Annotated[Path, typer.Argument(help="The runs below this folder are shown.")] = RUNS,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on this machine; 0: any that is free.")
    ] = PORT,
    open_browser: Annotated[
        bool, typer.Option("--open", help="Also open the page in a browser.")
    ] = False,
) -> None:
    """Show all runs of a folder on a page: their state, their curves, reports and comparisons; Ctrl-C ends it.

    The page is served to this machine only, at an address with a secret, and follows runs that go on. Runs can be compared,
    tagged and deleted there.

    Examples:
      fedssl board

      fedssl board runs/sweep-mine --port 0 --open
    """
    from fedssl.app.board.server import Board

    console = Console()
    with Board(folder, port) as server, contextlib.suppress(KeyboardInterrupt):
        server.catalog.entries()  # the first page must not wait for all runs to be read
        console.print(f"board of {folder}: {server.url}", soft_wrap=True)
        console.say("Ctrl-C ends it")
        if open_browser:
            webbrowser.open(server.url)
        server.serve_forever()
