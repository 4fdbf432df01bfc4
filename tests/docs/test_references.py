"""The references of docs/reference.md and docs/commands.md, and the outline, are what the code says; pages read in the repository."""

import re
import runpy

import pytest

from tests.docs.pages import ROOT

WRITER = runpy.run_path(str(ROOT / "docs" / "references"), run_name="references")
PAGES = WRITER["PAGES"]

LINK = re.compile(r"\]\(#([^)]*)\)")


def anchors(text):
    """Return the anchors that a code host gives the headings: without punctuation, in lower case, with hyphens."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w\s-]", "", one).strip().lower().replace(" ", "-") for one in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_reference_is_what_the_code_says(page):
    text = page.read_text(encoding="utf-8")
    assert WRITER["renewed"](text, PAGES[page]()) == text, "run `make references`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_reference_lead_to_its_headings(page):
    text = page.read_text(encoding="utf-8")
    found = anchors(text)
    assert len(set(found)) == len(found)
    assert set(LINK.findall(text)) <= set(found)


def test_the_outline_is_what_the_code_says():
    assert WRITER["FILE"].read_text(encoding="utf-8") == WRITER["outline"].outline(), (
        "run `make references`"
    )


def test_a_page_keeps_what_stands_above_its_reference():
    text = f"# Page\n\nwords\n\n{WRITER['MARK']}\n\nold\n"
    assert WRITER["renewed"](text, "new") == text.replace("old", "new")
    with pytest.raises(AssertionError, match="no mark"):
        WRITER["renewed"]("# Page\n", "new")
