"""The library that draws the charts of a page: Vega-Lite, whose JavaScript travels inside the page.

Reference: Satyanarayan et al., Vega-Lite: A Grammar of Interactive Graphics, IEEE TVCG 2017. The JavaScript is vl-convert's.
"""

import contextlib
import functools
import importlib.metadata

import filelock

from fedssl.data.cache import cache_folder
from fedssl.record.files import write_atomically


@functools.lru_cache(maxsize=1)
def javascript() -> str:
    """Return the text of a script that defines ``vegaEmbed``, 0.9 MB.

    To put it together takes a second, so it is kept in the cache folder for the version at hand.
    """
    version = importlib.metadata.version("vl-convert-python")
    kept = cache_folder() / "vega" / f"{version}.js"
    with contextlib.suppress(OSError):
        return kept.read_text(encoding="utf-8")
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # Whatever stands in a page's script must not end it.
    text = text.replace("</script", "<\\/script")
    with contextlib.suppress(OSError):  # where nothing can be kept, the next process waits again
        kept.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(kept.with_suffix(".lock")):
            write_atomically(kept, text.encode())
    return text
