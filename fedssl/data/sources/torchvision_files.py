"""Reading data sets in torchvision's folder layouts, with its errors in the user's words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedssl.errors import InputError


def read_files(
    reader: Callable[..., Any], root: Path, *, what: str, files: str, folder: str, **options: Any
) -> Any:
    """Return what a reader of ``torchvision.datasets`` makes of the files under `root`.

    Args:
        reader: Class of ``torchvision.datasets``; called with `root` and the options.
        root: Folder that the layout is relative to.
        what: Name of the data set in the error.
        files: What to put there by hand, as the error says it.
        folder: Where to put them, from ROOT on.
        options: Passed to the reader.

    Raises:
        InputError: A file is missing, damaged, or could not be fetched; says how to get it.
    """
    try:
        return reader(str(root), **options)
    except (RuntimeError, OSError, ValueError, AssertionError) as error:
        raise InputError(
            "data.root",
            f"no readable {what} under {str(root)!r} ({error})",
            f"pass --set data.download=true to fetch it, or put {files} in {folder} "
            "and set data.root=ROOT",
        ) from None
