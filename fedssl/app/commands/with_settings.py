"""Commands that take ``--set``: an unknown option that is a setting, or an option of another command, is told as that."""

import click
from typer.core import TyperCommand

DRY_RUN = "--dry-run"
CHECKS = "; fedssl validate FILE checks a file and trains one step"
"""What somebody looks for who asks for a dry run of a command that has none."""


class WithSettings(TyperCommand):
    """A command whose error about an unknown option says how to set the setting of that name, or which command has it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the arguments as any command does.

        Raises:
            click.NoSuchOption: An option is unknown.
        """
        given = list(args)  # click takes them away
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            option = error.option_name
            if setting := _as_setting(option, given):
                said = f"No such option: {option}. It is a setting: --set {setting}"
            elif others := _commands_with(option, ctx):
                said = f"No such option: {option}. {' and '.join(others)} {'has' if len(others) == 1 else 'have'} it"
                said += CHECKS if option == DRY_RUN else ""
            else:
                raise
            raise click.NoSuchOption(option, said, ctx=ctx) from None


def _commands_with(option: str, ctx: click.Context) -> list[str]:
    """Return the other commands of the same level that have an option."""
    group = ctx.parent.command if ctx.parent is not None else None
    commands = group.commands if isinstance(group, click.Group) else {}
    return [
        f"fedssl {name}"
        for name, command in commands.items()
        if not isinstance(command, click.Group)
        if any(option in parameter.opts for parameter in command.params)
    ]


def _as_setting(option: str, given: list[str]) -> str:
    """Return the setting that an option names, as ``--set`` takes it; empty if there is no such setting."""
    from fedssl.core.processes import quick_imports

    with quick_imports():
        from fedssl.experiment.elsewhere import keys_of
        from fedssl.experiment.outline import Outline

    name = option.removeprefix("--").replace("-", "_")
    keys = keys_of(name.rpartition(".")[2], Outline.read().experiment)
    if "." in name:
        keys = [key for key in keys if key == name or key.endswith(f".{name}")]
    if not keys:
        return ""
    key = keys[0]
    # The value follows the option, after an equals sign or as the next word.
    for word, after in zip(given, [*given[1:], ""], strict=True):
        if word.startswith(f"{option}="):
            return f"{key}={word.partition('=')[2]}"
        if word == option:
            return f"{key}={after if after and not after.startswith('-') else 'VALUE'}"
    return f"{key}=VALUE"
