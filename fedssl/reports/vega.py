"""The library that draws the charts of a page: Vega-Lite, whose JavaScript travels inside the page.

Reference: Satyanarayan et al., Vega-Lite: A Grammar of Interactive Graphics, IEEE TVCG 2017. The JavaScript is vl-convert's.
"""

import contextlib
import functools
import importlib.metadata
import os
import tempfile
from pathlib import Path

from fedssl.data.cache import cache_folder


@functools.lru_cache(maxsize=1)
def javascript() -> str:
    """Return the text of a script that defines ``vegaEmbed``, 0.9 MB.

    To put it together takes a second, so it is kept in the cache folder for the version at hand.
    """
    version = importlib.metadata.version("vl-convert-python")
    kept = cache_folder() / "vega" / f"{version}.js"
    if kept.exists():
        return kept.read_text(encoding="utf-8")
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Whatever stands in a page's script must not end it.
    text = text.replace("</script", "<\\/script")
    with contextlib.suppress(OSError):  # where nothing can be kept, the next process waits again
        _keep(kept, text)
    return text


def _keep(path: Path, text: str) -> None:
    """Write a file whole, whoever else writes it at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    Path(name).replace(path)
