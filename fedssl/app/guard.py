"""What a command raises becomes one message and an exit code."""

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
"""Characters of an error's text that a message repeats."""


def guarded(command: Callable[Parameters, Returned]) -> Callable[Parameters, Returned]:
    """Turn what a command raises into one message on stderr and the exit code that goes with it."""

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
    """Turn whatever a command on records raises into one message, as `guarded` does: a record may be damaged, or a stranger's."""

    @guarded
    @wraps(command)
    def run(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Returned:
        try:
            return command(*args, **kwargs)
        except (FedsslError, OSError, typer.Exit):
            raise  # files that cannot be read are named where they are read; what cannot be written is no fault of a record
        except Exception as error:
            said = " ".join(str(error).split())[:LONGEST_REASON]
            problem = f"cannot be read, for a file of it is not as fedssl writes it: {type(error).__name__}: {said}"
            raise InputError("the record", problem, "run it again, or take another one") from error

    return run


def _stop(error: BaseException, code: int) -> NoReturn:
    complain(error)
    raise typer.Exit(code)


def complain(error: BaseException | str, where: str = "") -> None:
    """Print an error, and what became known while it was on its way."""
    lines = [str(error) or "interrupted", *getattr(error, "__notes__", ())]
    said = printable(where + "\n".join(lines))
    text = Text.assemble(("error:", "bold red"), " ", said)
    Console(stderr=True).print(text, soft_wrap=True)
