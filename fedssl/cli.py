"""The command line: all commands of ``fedssl``."""

import logging
import sys
from typing import Annotated

import typer

from fedssl import __version__
from fedssl.app.commands.advise import advise
from fedssl.app.commands.baseline import baseline
from fedssl.app.commands.board import board
from fedssl.app.commands.compare import compare
from fedssl.app.commands.explain import explain
from fedssl.app.commands.export import export
from fedssl.app.commands.listing import doctor, list_plugins, schema
from fedssl.app.commands.look import show, validate
from fedssl.app.commands.new import new
from fedssl.app.commands.predict import predict
from fedssl.app.commands.report import report
from fedssl.app.commands.run import run
from fedssl.app.commands.runs import app as runs_app
from fedssl.app.commands.sweep import sweep
from fedssl.app.commands.with_settings import WithSettings
from fedssl.app.deploy.commands import app as deploy_app
from fedssl.app.guard import DONE
from fedssl.core.processes import prepare_process
from fedssl.core.text import printable

app = typer.Typer(
    name="fedssl",
    help="Federated semi-supervised learning: simulate, measure, deploy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    suggest_commands=False,  # click suggests one already
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Federated semi-supervised learning: simulate, measure, deploy."""
    if version:
        print(f"fedssl {__version__}")
        raise typer.Exit(DONE)
    _show_log_lines()


def command_line() -> None:
    """Run the command line in a process of its own, as the script ``fedssl`` and ``python -m fedssl`` do."""
    prepare_process()
    app()


class _LogLines(logging.Handler):
    """Write log lines to the standard error stream of the moment, which shows them above a live screen while there is one.

    Control characters of a message are written out, for a message may hold a user's names.
    """

    def createLock(self) -> None:  # noqa: N802
        """Do without a lock: a live screen that cannot be drawn logs this while another thread's line waits for the screen."""
        self.lock = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            sys.stderr.write(f"{printable(self.format(record))}\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _show_log_lines() -> None:
    """Show log lines on stderr: about data that is prepared, which can take minutes, and about workers."""
    log = logging.getLogger("fedssl")
    if not log.handlers:
        log.addHandler(_LogLines())
        log.setLevel(logging.INFO)


app.command()(new)
app.command(cls=WithSettings)(run)
app.command()(compare)
app.command(cls=WithSettings)(sweep)
app.command(cls=WithSettings)(baseline)
app.command(cls=WithSettings)(advise)
app.command(cls=WithSettings)(validate)
app.command("list")(list_plugins)
app.command()(explain)
app.command(cls=WithSettings)(show)
app.command()(report)
app.command()(board)
app.command()(export)
app.command()(predict)
app.command()(schema)
app.command()(doctor)
app.add_typer(runs_app, name="runs")
app.add_typer(deploy_app, name="deploy")
