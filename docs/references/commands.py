"""The reference of the command line, made from the application: every command, argument and option."""

import warnings
from collections.abc import Iterator

import click

with warnings.catch_warnings():
    # A deprecation between typer and click, which is not fedssl's to fix.
    warnings.filterwarnings("ignore", ".*Click 9.0", DeprecationWarning)
    from typer.main import get_command

    from fedssl.cli import app

HEAD = "| | what it is | default |\n|---|---|---|"


def reference() -> str:
    """Return the reference as Markdown, with a heading for each command."""
    return "\n\n".join(_command("fedssl", get_command(app)))


def _command(path: str, command: click.Command) -> Iterator[str]:
    """Yield a command's usage, help and parameters, then those of the commands below it."""
    context = click.Context(command, info_name=path)
    yield f"## `{path}`"
    summary, _, more = (command.help or "").partition("\n\n")
    yield " ".join(summary.split())
    yield f"```text\n{path} {' '.join(command.collect_usage_pieces(context))}\n```"
    if more:
        yield f"```text\n{more.strip()}\n```"
    rows = [_row(parameter) for parameter in command.params]
    if rows:
        yield "\n".join([HEAD, *rows])
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(f"{path} {name}", below)


def _row(parameter: click.Parameter) -> str:
    names = (
        parameter.opts if isinstance(parameter, click.Option) else [parameter.human_readable_name]
    )
    default = parameter.default
    shown = "" if callable(default) or default in (None, False, ()) else f"`{default}`"
    if parameter.required:
        shown = "required"
    what = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {what} | {shown} |"
