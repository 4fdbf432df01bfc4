"""README and the pages of docs/ are true: their commands run, their files are valid, and the named things exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from typer.main import get_command

from fedssl.app.deploy.commands import down
from fedssl.cli import app
from fedssl.experiment.experiment import Experiment
from tests.docs.pages import NOTES, PAGES, ROOT, blocks, is_read_through, name_of
from tests.docs.reader import Reader, check_target, copy_experiments, cut, file_of

SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)|<img[^>]*\ssrc=\"([^\"]+)\"")
PLACEHOLDER = re.compile(r"@@|\b(?:TODO|TBD|FIXME|XXX)\b")


@pytest.fixture
def reader(tmp_path, monkeypatch):
    copy_experiments(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    modules = set(sys.modules)
    yield Reader(monkeypatch)
    for name in {name for name in sys.modules if name.startswith("mylab")} - modules:
        del sys.modules[name]
    if Path("deployment").exists():
        down(Path("deployment"), no_containers=True)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", [page for page in PAGES if is_read_through(page)], ids=name_of)
def test_a_reader_who_follows_a_page_gets_through(page, reader):
    for block in blocks(page):
        reader.follow(block)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_experiments_are_valid(page, tmp_path, monkeypatch):
    """Whole files and parts of files; a part is laid over the digits. Modules that a page shows are beside them."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for block in blocks(page):
        if block.language == "python" and block.title:
            (tmp_path / block.title).parent.mkdir(exist_ok=True)
            (tmp_path / block.title).write_text(block.text)
        if block.language == "toml":
            file = tmp_path / "block.toml"
            file.write_text(block.text, encoding="utf-8")
            whole = "data" in tomllib.loads(block.text)
            Experiment.load(file, [] if whole else ["data.source=digits"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_the_text_are_there(page):
    """A command in a sentence may have placeholders: that it exists, and each of its options."""
    for span in SPAN.findall(page.read_text(encoding="utf-8")):
        program, _, rest = span.partition(" ")
        if program == "make":
            check_target(*(w for w in rest.split() if not w.startswith("DOCKER_BUILD")))
        if program == "fedssl" and rest:
            _check_mentioned(rest)


def _check_mentioned(text: str) -> None:
    command: click.Command = get_command(app)
    words = text.split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    is_command = not hasattr(command, "commands") or not words or words[0].startswith("-")
    assert is_command or words[0].isupper(), f"there is no command fedssl {text}"
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= known, f"fedssl {text}"


def test_make_help_lists_every_target_with_its_comment():
    command = ["make", "--no-print-directory", "help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    listed = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(phony.split())
    assert all(comment.endswith(".") or "as above" in comment for comment in listed.values())


@pytest.mark.parametrize("page", [*PAGES, *NOTES], ids=name_of)
def test_no_placeholder_is_left(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if PLACEHOLDER.search(line)] == []


@pytest.mark.parametrize("page", [*PAGES, *NOTES], ids=name_of)
def test_every_image_is_there(page):
    named = images(page.read_text(encoding="utf-8"))
    assert [image for image in named if not (page.parent / image).is_file()] == []


def images(text):
    """Return the path of every image that a page shows."""
    return [markdown or html for markdown, html in IMAGE.findall(text)]


def test_images_are_found_in_either_form():
    text = 'A ![a curve](x.png), a [link](y.md), ![](d/e.png)\n<img alt="f" src="g.svg">'
    assert images(text) == ["x.png", "d/e.png", "g.svg"]


@pytest.mark.parametrize("text", ["@@TABLE@@", "TODO: measure", "TBD", "(FIXME)", "XXX points"])
def test_placeholders_are_known(text):
    assert PLACEHOLDER.search(text)


def test_an_unknown_command_fails(reader, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\nfedssl list methods\nfrobnicate --all\n```\n", encoding="utf-8")
    (block,) = blocks(page)
    with pytest.raises(AssertionError, match="frobnicate"):
        reader.follow(block)


def test_a_command_that_fails_is_seen(reader, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```\nfedssl validate nowhere.toml\n```\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no such file"):
        reader.follow(blocks(page)[0])


def test_every_command_of_readme_and_tutorial_stands_in_a_block_that_is_run():
    """A fence of another language would hide commands from the reader."""
    for page in filter(is_read_through, PAGES):
        for block in blocks(page):
            hidden = [line for line in block.text.splitlines() if re.match(r"(fedssl|make) ", line)]
            assert block.is_shell or not hidden, f"{name_of(page)}:{block.line}: {hidden}"


def test_a_cut_experiment_differs_in_length_and_engine_only():
    for file in (ROOT / "experiments").rglob("*.toml"):
        whole, short = tomllib.loads(file.read_text()), tomllib.loads(cut(file.read_text()))
        differing = {key for key in whole | short if whole.get(key) != short.get(key)}
        assert differing <= {"rounds", "phases", "train", "engine"}


def test_blocks_are_saved_where_a_reader_would(tmp_path):
    page = tmp_path / "page.md"
    text = '```toml\nname = "mine"\n```\n```toml\nseed = 1\n```\n```python title="a/b.py"\nx = 1\n```\n'
    page.write_text(text, encoding="utf-8")
    assert [file_of(block) for block in blocks(page)] == ["mine.toml", None, "a/b.py"]


def test_the_table_of_extras_has_every_extra():
    table = (ROOT / "docs" / "install.md").read_text(encoding="utf-8").partition("## Extras")[2]
    rows = re.findall(r"^\| (`.*?) \|", table.partition("\n## ")[0], re.MULTILINE)
    listed = [name for row in rows for name in SPAN.findall(row)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert sorted(listed) == sorted(project["optional-dependencies"])
