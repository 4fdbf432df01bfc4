"""Write the references of the experiment file and of the command line into their pages: `make references`.

The pages hold the text, so that it reads in the repository as on the site. The outline of the experiment file, with which commands check
a file before torch is imported, is written too. A test fails if one of them is not what the code says.
"""

from pathlib import Path

import commands
import outline
import settings

from fedssl.experiment.outline import FILE

MARK = "<!-- All that follows is made from the code by `make references`. -->"
"""A page has this line above its reference."""

DOCS = Path(__file__).parents[1]
PAGES = {DOCS / "reference.md": settings.reference, DOCS / "commands.md": commands.reference}
"""The function that returns the reference of each page."""


def renewed(text: str, reference: str) -> str:
    """Return the text of a page with another reference below the mark."""
    head, mark, _ = text.partition(MARK)
    assert mark, "the page has no mark"
    return f"{head}{mark}\n\n{reference}\n"


if __name__ == "__main__":
    for page, reference in PAGES.items():
        text = renewed(page.read_text(encoding="utf-8"), reference())
        page.write_text(text, encoding="utf-8")
    FILE.write_text(outline.outline(), encoding="utf-8")
