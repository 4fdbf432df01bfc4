"""The library that draws the charts of a page: Vega-Lite, whose JavaScript is embedded in the page.

The JavaScript comes from vl-convert.

Reference: Satyanarayan et al., Vega-Lite: A Grammar of Interactive Graphics, IEEE TVCG 2017.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import stat
from pathlib import Path

import filelock

from fedssl.core.files import write_atomically
from fedssl.data.cache import PRIVATE_FILE, cache_folder, make_private_folder


@functools.lru_cache(maxsize=1)
def javascript() -> str:
    """Return the text of a script that defines ``vegaEmbed``, 0.9 MB.

    Building the script takes a second, so it is kept in the cache folder, one file per version of vl-convert. The
    script runs in every page, so a file that another user could have written, or whose checksum is wrong, is not used.
    """
    version = importlib.metadata.version("vl-convert-python")
    kept = cache_folder() / "vega" / f"{version}.js"
    with contextlib.suppress(OSError, ValueError):
        digest, _, text = _read_own_file(kept).partition("\n")
        if digest == _digest(text):
            return text
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Text inside a script element must not close the element.
    text = text.replace("</script", "<\\/script")
    with contextlib.suppress(OSError):  # without a writable cache, the next process builds it again
        make_private_folder(cache_folder())
        make_private_folder(kept.parent)
        with filelock.FileLock(kept.with_suffix(".lock"), mode=PRIVATE_FILE):
            write_atomically(kept, f"{_digest(text)}\n{text}".encode())
            kept.chmod(PRIVATE_FILE)
    return text


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_own_file(path: Path) -> str:
    """Return the text of a file that only this user can write to.

    Raises:
        OSError: The file does not exist, or another user owns it or can write to it.
    """
    with path.open(encoding="utf-8", newline="") as file:
        found = os.fstat(file.fileno())
        others = stat.S_IWGRP | stat.S_IWOTH
        if os.name == "posix" and (found.st_uid != os.geteuid() or found.st_mode & others):
            raise PermissionError(f"{path} can be written by another user")
        return file.read()
