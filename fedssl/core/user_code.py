"""Find the line of the user's own code at which an error arose."""

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from fedssl.core.errors import FedsslError, InputError

_OURS = Path(__file__).parents[1]

_FRAME = re.compile(r'^ *File "(.+)", line (\d+), in (.+)$', re.MULTILINE)
"""The line of a printed traceback that names a line of code: its file, number and function."""


def place_in_user_code(error: BaseException) -> str:
    """Return the file, the line and the function of the user's that an error passed last; empty if it passed none.

    A line of fedssl, of Python or of an installed library is not the user's.
    """
    if isinstance(error, SyntaxError) and error.filename and _is_the_users(error.filename):
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_the_users(frame.filename)]
    if not own:
        return _wrongly_called(error)
    inside = "" if own[-1].name == "<module>" else f", in {own[-1].name}"
    return f"{own[-1].filename}, line {own[-1].lineno}{inside}"


def place_in_traceback(text: str) -> str:
    """Return the last file, line and function of the user's in a printed traceback, such as a client's; empty if there is none.

    A client on another machine has other files, so a file counts only if it is on this machine.
    """
    own = [
        frame
        for frame in _FRAME.findall(text)
        if _is_the_users(frame[0]) and Path(frame[0]).is_file()
    ]
    return "{}, line {}, in {}".format(*own[-1]) if own else ""


@contextlib.contextmanager
def naming_user_code(what: str = "", remedy: str = "") -> Iterator[None]:
    """Turn an error that arises in the user's code into one message, which begins with the line.

    Args:
        what: What is tried in the block. It is the field of the message for an error that passes no line of the user's;
            if it is empty, such an error stays as it is.
        remedy: What to do.

    Raises:
        InputError: The block raised an error.
    """
    try:
        yield
    except FedsslError:
        raise
    except Exception as error:
        place = place_in_user_code(error)
        if not place and not what:
            raise
        during = f" (during {what})" if place and what else ""
        said = " ".join(str(error).split())
        raise InputError(
            place or what, f"{type(error).__name__}: {said}{during}", remedy
        ) from error


def _wrongly_called(error: BaseException) -> str:
    """Return the place of the user's method that was called with arguments which it does not take; else empty.

    Python raises such an error where the method is called, so no line of the method is passed.
    """
    called = re.match(r"(\w+)\.(\w+)\(\) ", str(error)) if isinstance(error, TypeError) else None
    if called is None:
        return ""
    for module in list(sys.modules.values()):
        owner = getattr(module, "__dict__", {}).get(called[1])
        function = getattr(owner, called[2], None) if isinstance(owner, type) else None
        code = getattr(function, "__code__", None)
        if code is not None and _is_the_users(code.co_filename):
            return f"{code.co_filename}, line {code.co_firstlineno}, in {called[2]}"
    return ""


def _is_the_users(file: str) -> bool:
    path = Path(file)
    if file.startswith("<") or not path.is_absolute() or path.is_relative_to(_OURS):
        return False
    return not any(path.is_relative_to(root) for root in {sys.prefix, sys.base_prefix})
