"""The tested pages, and the fenced code blocks on them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
FOR_DEVELOPERS = ("C*.md", "experiments/*.md", "benchmarks/*.md")
NOTES = [page for pattern in FOR_DEVELOPERS for page in sorted(ROOT.glob(pattern))]
"""Pages beside those, for who works on the code; the site shows some of them."""

FENCE = re.compile(r"^(?P<marks>`{3,})(?P<info>[^\n`]*)\n(?P<text>.*?)^(?P=marks)\s*$", re.M | re.S)
TITLE = re.compile(r'title="([^"]+)"')
SHELL = ("", "sh")
RULE_OF_A_TABLE = "─"


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Args:
        page: Where it stands.
        line: Of its first line of text, from 1.
        language: As its fence says; empty if it says none.
        title: Path of the file that it is the content of, if it is one.
        text: What it says.
    """

    page: Path
    line: int
    language: str
    title: str | None
    text: str

    @property
    def is_shell(self) -> bool:
        """Whether these are commands: what a command prints is marked ``text``, or holds a table."""
        return self.language in SHELL and RULE_OF_A_TABLE not in self.text


def blocks(page: Path) -> list[Block]:
    """Return a page's blocks in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        language, _, _ = fence["info"].strip().partition(" ")
        title = TITLE.search(fence["info"])
        line = text.count("\n", 0, fence.start("text")) + 1
        found.append(Block(page, line, language, title[1] if title else None, fence["text"]))
    return found


def is_read_through(page: Path) -> bool:
    """Whether a page's commands are run one after the other: the README's, the tutorial's, and wherever Python stands."""
    return page in (README, ROOT / "docs" / "tutorial.md") or any(
        block.language == "python" for block in blocks(page)
    )


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))
