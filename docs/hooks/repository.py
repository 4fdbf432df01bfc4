"""Links that leave docs/: their targets become pages of the site, so that a link works on the site and on a code host.

A Markdown file is shown as it is, and its own links are changed in the same way. Any other text is shown as a block of
code, and a folder as the blocks of its files. Nothing is written beside the pages. A link to a missing file is a
warning.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs"
SHOWN = "repository"
"""The folder of the site for pages of files outside docs/."""

LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)\s#]+)(#[^)\s]*)?(?=\))")
LANGUAGES = {".toml": "toml", ".py": "python", ".yml": "yaml", ".json": "json", ".ipynb": "json"}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to, added pages included."""
    pages = [
        (f"{DOCS}/{file.src_uri}", file.content_string) for file in files.documentation_pages()
    ]
    seen = set()
    while pages:
        place, text = pages.pop()
        for target in _linked(text, place):
            if target in seen or target.startswith(f"{DOCS}/") or not (ROOT / target).exists():
                continue
            seen.add(target)
            content = _content(target)
            files.append(File.generated(config, _uri(target), content=content))
            pages.append((target, content if _is_markdown(target) else ""))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to the places of their targets in the site."""
    here = page.file.src_uri
    place = next((p for p in (f"{DOCS}/{here}", _place(here)) if (ROOT / p).is_file()), None)
    if place is None:
        return markdown

    def mended(link: re.Match[str]) -> str:
        uri = _uri(_target(link[1], place))
        known = uri in files.src_uris
        return (posixpath.relpath(uri, posixpath.dirname(here)) if known else link[1]) + (
            link[2] or ""
        )

    return LINK.sub(mended, markdown)


def _linked(text: str, place: str) -> Iterator[str]:
    return (_target(link[1], place) for link in LINK.finditer(text))


def _target(link: str, place: str) -> str:
    """Return the target of a link in the file `place`, relative to the repository's root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(place), link))


def _is_markdown(target: str) -> bool:
    return target.endswith(".md")


def _uri(target: str) -> str:
    """Return the path of a repository file in the site's sources."""
    if target.startswith(f"{DOCS}/"):
        return target.removeprefix(f"{DOCS}/")
    return f"{SHOWN}/{target}" if _is_markdown(target) else f"{SHOWN}/{target}.md"


def _place(uri: str) -> str:
    """Return the repository file of a page below `SHOWN`."""
    return uri.removeprefix(f"{SHOWN}/")


def _content(target: str) -> str:
    path = ROOT / target
    if path.is_dir():
        return "\n".join([f"# {target}", "", *map(_block, sorted(path.glob("*.*")))])
    text = path.read_text(encoding="utf-8")
    return text if _is_markdown(target) else f"# {target}\n\n{_block(path)}"


def _block(path: Path) -> str:
    text = path.read_text(encoding="utf-8").rstrip()
    return f"````{LANGUAGES.get(path.suffix, 'text')} title={path.name!r}\n{text}\n````\n".replace(
        "'", '"', 2
    )
