"""The site builds without a warning, works without a network, and has complete references."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.main import get_command

from fedssl.app.commands.listing import FAMILIES, members_of
from fedssl.cli import app
from fedssl.experiment.experiment import Experiment
from tests.docs.pages import PAGES, ROOT

FETCHED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "srcset"}
"""What a browser fetches by itself, by tag."""

LARGEST_PICTURE = 150_000

LEFT = {".git", ".venv", "runs", "site", "data"}
"""Of the repository's folder, what no page links to."""


class Resources(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if FETCHED.get(tag) == name and value]


WRONG = ("../nowhere.toml", "data.md#nowhere", "../README.md#nowhere", "nopage.md")
"""Links that the copy's first page is given: to no file, to no heading of two pages, and to no page."""


def build(folder: Path, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return the site of a copy of the pages, beside the files that they link to, and how its build ended.

    The copy has some wrong links, of which MkDocs (1.6) tells once the whole site is written. So one build shows both
    the pages and what is said of wrong links.
    """
    folder = tmp_path_factory.mktemp("site")
    copy = folder / "copy"
    shutil.copytree(ROOT, copy, ignore=lambda place, names: LEFT if place == str(ROOT) else ())
    with (copy / "docs" / "index.md").open("a", encoding="utf-8") as page:
        page.write("".join(f"\n[wrong]({link})\n" for link in WRONG))
    return folder / "site", build(folder / "site", copy)


@pytest.fixture(scope="module")
def site(built):
    return built[0]


def test_links_to_nowhere_are_refused_and_nothing_else(built):
    """The pages have no warning but those of the wrong links, and each of these is named."""
    _, done = built
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert f"with {len(WRONG)} warnings" in said, said
    for link in WRONG:
        assert link.partition("#")[0].removeprefix("../") in said, said


def test_every_resource_is_a_file_of_the_site(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        resources = Resources()
        resources.feed(page.read_text(encoding="utf-8"))
        for resource in resources.found:
            assert not re.match(r"(\w+:)?//", resource), f"{page.name} fetches {resource}"
            target = (page.parent / resource.partition("#")[0].partition("?")[0]).resolve()
            assert target.exists() or resource.startswith("/"), f"{page.name}: {resource}"


def test_style_sheets_fetch_nothing(site):
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", sheet.read_text(encoding="utf-8"))


def test_files_outside_docs_are_pages_with_their_own_links_mended(site):
    readme = (site / "repository" / "index.html").read_text(encoding="utf-8")
    assert 'href="../log.html"' in readme
    assert 'src="../images/digits.png"' in readme
    labels = (site / "repository" / "experiments" / "labels.html").read_text(encoding="utf-8")
    assert "at_server.toml" in labels


def settings(schema, path=""):
    """Yield (path, schema) of everything that the experiment file may say."""
    for name, field in schema.get("properties", {}).items():
        if name not in ("kind", "source") or "description" in field:
            yield f"{path}.{name}".lstrip("."), field
        for below in field.get("anyOf", [field]):
            for kind in below.get("anyOf", [below]):
                yield from settings(kind, f"{path}.{name}")


def all_settings():
    schema = Experiment.model_json_schema()
    yield from settings(schema)
    for name, section in schema["$defs"].items():
        yield from settings(section, name)


def test_every_setting_has_a_description_and_a_row(site):
    text = (site / "reference.html").read_text(encoding="utf-8")
    found = list(all_settings())
    assert len(found) > 200
    for path, field in found:
        assert field.get("description"), f"{path} has no description"
        assert f"<code>{path.rpartition('.')[2]}</code>" in text, path


@pytest.mark.parametrize("family", FAMILIES)
def test_every_kind_has_a_heading(site, family):
    text = (site / "reference.html").read_text(encoding="utf-8")
    kinds = members_of(family)
    assert kinds
    for kind in kinds:
        assert re.search(rf"<h3 id=[^>]*><code>[\w.]+\.{kind}</code>", text), kind


def test_every_command_and_option_has_a_place(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    waiting = [("fedssl", get_command(app))]
    while waiting:
        name, command = waiting.pop()
        assert f"<code>{name}</code></h2>" in re.sub(r"<a class=\"headerlink.*?</a>", "", text), (
            name
        )
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert f"<code>{option}</code>" in text, f"{name} {option}"
        waiting += [(f"{name} {k}", c) for k, c in getattr(command, "commands", {}).items()]


def test_settings_are_searchable(site):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = {entry["location"] for entry in index["docs"]}
    assert "reference.html#methodfixmatch" in places
    assert "commands.html#fedssl-run" in places


def test_pictures_of_the_concepts_are_small():
    pictures = list(Path(ROOT, "docs", "images").glob("concept_*.png"))
    assert len(pictures) == 6
    assert max(picture.stat().st_size for picture in pictures) < LARGEST_PICTURE
