"""`fedssl runs`: lists, removes and tags recorded runs."""

import contextlib
import dataclasses
import fnmatch
import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.core import TyperGroup

from fedssl.app.guard import guarded
from fedssl.app.run_table import run_table
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.core.text import one_line
from fedssl.record.overview import Overview, State, overview
from fedssl.record.removal import check_removable, remove_run
from fedssl.record.run_path import (
    MAKE_ONE,
    RUNS,
    check_folder_of_runs,
    check_run,
    run_below,
    run_folders,
)
from fedssl.record.tags import change_tags

WIDE = 10_000
"""Into a pipe or a file, a line of the table may have this many characters: nothing is folded or left out there."""


OTHER_WORDS = {"remove": "rm", "delete": "rm", "del": "rm", "ls": "list", "show": "list"}
"""Commands of other programs, and the command here that does the same."""


class _ListsByDefault(TyperGroup):
    """Take `fedssl runs FOLDER` as `fedssl runs list FOLDER`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command's name before arguments that name no command.

        Raises:
            UsageError: The first argument is no folder, and much like a command.
        """
        if not args or args[0] not in {*self.commands, *ctx.help_option_names}:
            if args and not Path(args[0]).exists():
                nearest = OTHER_WORDS.get(args[0]) or next(
                    iter(get_close_matches(args[0], self.commands, n=1)), None
                )
                if nearest is not None:
                    ctx.fail(f"No such command {args[0]!r}. Did you mean {nearest!r}?")
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListsByDefault,
    help="List recorded runs, remove them and tag them. `fedssl runs FOLDER` is short for `fedssl runs list FOLDER`, whose "
    "options choose and order runs.",
    pretty_exceptions_enable=False,
    suggest_commands=False,
)


class Order(StrEnum):
    """The orders in which runs can be listed."""

    when = "when"
    name = "name"
    state = "state"
    rounds = "rounds"
    accuracy = "accuracy"
    seconds = "seconds"


KEYS: dict[Order, Callable[[Overview], Any]] = {
    Order.when: lambda run: _largest_first(run.began),
    Order.name: lambda run: (run.name, run.seed or 0),
    Order.state: lambda run: list(State).index(run.state),
    Order.rounds: lambda run: -run.rounds,
    Order.accuracy: lambda run: _largest_first(run.accuracy),
    Order.seconds: lambda run: _largest_first(run.seconds),
}
"""The key of a run in each order; runs without the number come last."""

RunFolders = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Run directories.", show_default=False)
]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run directory.", show_default=False)
]
Tags = Annotated[
    list[str], typer.Argument(metavar="TAG...", help="Words of your choice.", show_default=False)
]


@app.command("list")
@guarded
def list_runs(
    folder: Annotated[Path, typer.Argument(help="The runs below this folder are listed.")] = RUNS,
    state: Annotated[
        list[State] | None,
        typer.Option(help="Only runs in this state; repeatable.", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Only runs of experiments with this name; * stands for any characters.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Only runs of this method.", show_default=False),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option(help="Only runs with this tag; repeatable.", show_default=False),
    ] = None,
    sort: Annotated[
        Order, typer.Option(help="Order: the newest, best, longest run first.")
    ] = Order.when,
    reverse: Annotated[bool, typer.Option("--reverse", help="Turn the order around.")] = False,
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="Only so many runs.", show_default=False),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, in which accuracy is a share in [0, 1].")
    ] = False,
) -> None:
    """List the runs below a folder: state, rounds, accuracy, time, age and tags.

    The accuracy is that of the global model's moving average: of a finished run the mean over its last evaluations, of
    any other run that of its last evaluation. A run is killed if it ended without a word, as after a power cut. Runs that
    were interrupted, failed or killed can go on with `fedssl run RUN --resume`.

    Examples:
      fedssl runs

      fedssl runs list runs/sweep-mine --state finished --sort accuracy -n 10

      fedssl runs list --state killed --state failed
    """
    found = [
        run
        for run in overviews_below(folder)
        if (not state or run.state in state)
        and (name is None or fnmatch.fnmatchcase(run.name, name))
        and (method is None or run.method == method)
        and set(tag or ()) <= set(run.tags)
    ]
    found.sort(key=KEYS[sort])
    if reverse:
        found.reverse()
    found = found[:limit]
    if as_json:
        typer.echo(json.dumps([as_table(run) for run in found], indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDE
    if not found:
        console.tell("no runs" if run_below(folder) else f"no runs: {MAKE_ONE}")
        return
    table, left_out = run_table(found, console.width)
    console.print(table)
    if left_out:
        console.say(f"no room for {', '.join(left_out)}: a wider terminal or --json shows them")


@app.command("rm")
@guarded
def remove(
    runs: RunFolders,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without a question.")] = False,
) -> None:
    """Remove run directories with everything in them; a run that goes on is kept.

    Nothing is removed if one of the folders is no run directory.

    Example:
      fedssl runs rm runs/digits-fixmatch/20260101-120000-seed0
    """
    paths = list({path.absolute(): path for path in runs}.values())
    for path in paths:
        check_removable(path)
    if not yes:
        for path in paths:
            typer.echo(one_line(str(path)))
        files = [file for path in paths for file in path.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        number = f"{len(paths)} runs" if len(paths) > 1 else "this run"
        if not typer.confirm(f"Remove {number} ({size / 1e6:,.1f} MB)?"):
            return
    for path in paths:
        remove_run(path)


@app.command("tag")
@guarded
def tag_run(run: RunFolder, tags: Tags) -> None:
    """Tag a run; `fedssl runs list --tag TAG` lists the runs with a tag.

    Example:
      fedssl runs tag runs/digits-fixmatch/20260101-120000-seed0 paper
    """
    check_run(run)
    _tell_tags(run, change_tags(run, add=tags))


@app.command("untag")
@guarded
def untag_run(run: RunFolder, tags: Tags) -> None:
    """Take tags away from a run.

    Example:
      fedssl runs untag runs/digits-fixmatch/20260101-120000-seed0 paper
    """
    check_run(run)
    gone = set(tags) - set(overview(run).tags)
    if gone:
        raise InputError(str(run), f"has no tag {min(gone)!r}")
    _tell_tags(run, change_tags(run, remove=tags))


def _tell_tags(run: Path, tags: Sequence[str]) -> None:
    Console().tell(f"{run}: {', '.join(tags) or 'no tags'}")


def overviews_below(folder: Path) -> list[Overview]:
    """Return the runs below a folder at a glance.

    Raises:
        InputError: There is no such folder, or a run in it cannot be read.
    """
    check_folder_of_runs(folder)
    found = []
    try:
        for path in run_folders(folder):
            with contextlib.suppress(FileNotFoundError):  # the run was removed meanwhile
                found.append(overview(path))
    except OSError as error:
        raise InputError(str(error.filename), f"cannot be read: {error.strerror}") from None
    return found


def as_table(run: Overview) -> dict[str, Any]:
    """Return a run for JSON, in which an unknown number is null and the time is in UTC."""
    known = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in dataclasses.asdict(run).items()
    }
    began = known["began"]
    if began is not None:
        known["began"] = datetime.fromtimestamp(began, UTC).isoformat(timespec="seconds")
    return {**known, "path": str(run.path)}


def _largest_first(value: float) -> float:
    return math.inf if math.isnan(value) else -value
