"""What all commands of `fedssl deploy` share before anything is opened: their options, and how they speak."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedssl.core.console import Console

DEPLOYMENT = Path("deployment")
"""The folder of a deployment unless a command says another."""


class BadImages(StrEnum):
    """What a client does with images of its own that cannot be read."""

    REFUSE = "refuse"
    SKIP = "skip"


Folder = Annotated[Path, typer.Option("--folder", help="The deployment's folder.")]
NoContainers = Annotated[
    bool | None,
    typer.Option(
        "--no-containers/--containers",
        help="Use processes on this host, or containers; unset: as init or up was told last, containers at first.",
        show_default=False,
    ),
]


def say(line: str) -> None:
    """Print a line of plain text."""
    Console().tell(line)


def deploy_command(command: str, folder: Path) -> str:
    """Return a command of `fedssl deploy` for a deployment, as its user would write it."""
    where = "" if folder == DEPLOYMENT else f" --folder {shlex.quote(str(folder))}"
    return f"fedssl deploy {command}{where}"
