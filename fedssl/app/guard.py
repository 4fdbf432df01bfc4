"""Turn the errors of commands into one message and an exit code."""

from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec, TypeVar

import typer
from rich.text import Text

from fedssl.core.console import Console
from fedssl.core.errors import FedsslError, InputError
from fedssl.core.text import printable

DONE, FAILED, WRONG_INPUT, INTERRUPTED = 0, 1, 2, 130

Parameters = ParamSpec("Parameters")
Returned = TypeVar("Returned")

LONGEST_REASON = 300
"""A message repeats at most this many characters of an error's text."""


def guarded(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Turn a command's errors into one message on stderr and the fitting exit code."""

    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return command(*args, **kwargs)
        except InputError as error:
            _stop(error, WRONG_INPUT)
        except FedsslError as error:
            _stop(error, FAILED)
        except KeyboardInterrupt as error:
            _stop(error, INTERRUPTED)

    return run


def guarded_reader(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Turn any error of a command that reads records into one message, as `guarded` does.

    A record may be damaged or a stranger's, so reading it may raise anything.
    """

    @guarded
    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return command(*args, **kwargs)
        except (FedsslError, OSError, typer.Exit):
            # The code that reads a file names it already; a file that cannot be written is no fault of the record.
            raise
        except Exception as error:
            raise unreadable(error) from error

    return run


def unreadable(error: Exception) -> InputError:
    """Return the error for a record in which something is not as fedssl writes it."""
    said = " ".join(str(error).split())[:LONGEST_REASON]
    problem = f"cannot be read, as a file in it is not as fedssl writes it: {type(error).__name__}: {said}"
    return InputError("the record", problem, "run the experiment again, or use another record")


def _stop(error: BaseException, code: int) -> NoReturn:
    complain(error)
    raise typer.Exit(code)


def complain(error: BaseException | str, where: str = "") -> None:
    """Print an error and its notes on stderr.

    Args:
        error: The error, or its text.
        where: Text to print before the error, such as the title of a run.
    """
    lines = [str(error) or "interrupted", *getattr(error, "__notes__", ())]
    _print(("error:", "bold red"), where + "\n".join(lines))


def warn(text: str, where: str = "") -> None:
    """Print on stderr what a person has to know of a run that goes on; `where` as in `complain`."""
    _print(("warning:", "bold yellow"), where + text)


def _print(head: tuple[str, str], said: str) -> None:
    Console(stderr=True).tell(Text.assemble(head, " ", printable(said)))
