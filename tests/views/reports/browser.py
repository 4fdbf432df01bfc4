"""Open pages in headless Chromium as a person does: from a file, without a network."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

LIGHT: dict[str, Any] = {"viewport": {"width": 1300, "height": 900}}
DARK: dict[str, Any] = {**LIGHT, "color_scheme": "dark"}
PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 800}, "is_mobile": True}

MARKS = "g.role-mark:not(.mark-group) > :is(path, line, text):not([d=''])"
"""What a chart draws of its data: not axes, grids and legends."""


@contextlib.contextmanager
def opened(path: Path, settings: dict[str, Any]) -> Iterator[Any]:
    """Open a page and wait until its charts are drawn; whatever the console says or the page asks for is an error."""
    with visited(path.absolute().as_uri(), settings) as (page, said):
        yield page
    assert said == [f"asked for {path.absolute().as_uri()}"]


@contextlib.contextmanager
def visited(url: str, settings: dict[str, Any]) -> Iterator[tuple[Any, list[str]]]:
    """Visit an address; yield the page once it is drawn, and a list of what its console says and what it asks for."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser on this machine: one of {', '.join(BROWSERS)} is looked for")
    from playwright.sync_api import sync_playwright

    said: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        context = browser.new_context(**settings)
        context.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        context.on("weberror", lambda error: said.append(f"error: {error.error}"))
        context.on("request", lambda request: said.append(f"asked for {request.url[:200]}"))
        page = context.new_page()
        page.goto(url)
        page.locator("body[data-drawn=true]").wait_for(timeout=30_000)
        yield page, said
        browser.close()


def marks(page: Any) -> dict[str, int]:
    """Return how many marks each chart of a page has drawn."""
    counts: dict[str, int] = page.evaluate(
        "marks => Object.fromEntries([...document.querySelectorAll('figure')].map("
        "figure => [figure.id, figure.querySelectorAll('.plot svg ' + marks).length]))",
        MARKS,
    )
    return counts


def is_as_wide_as_the_screen(page: Any) -> bool:
    """Say whether nothing of a page has to be looked for beside the screen."""
    wide: int = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    return wide <= 0
