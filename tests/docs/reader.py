"""A new user who follows a page in an empty folder: saves its files, and runs its Python and its commands.

The reader deviates from the page in four ways only. It shortens all experiments by the same rule (`cut`). A pattern
such as ``experiments/digits/*.toml`` stands for the first two matching files, and any number of seeds for two at most.
`fedssl deploy init` gets ``--no-containers``, which the page offers, and free ports. A command that the reader does not
know fails the test.
"""

import os
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from typer.main import get_command

from fedssl.cli import app
from fedssl.record.run_directory import RunDirectory
from tests.docs.pages import ROOT, Block
from tests.helpers import command, fedssl
from tests.ports import give_free_ports

INTERRUPTED = 130


def cut(text: str) -> str:
    """Return an experiment file of two rounds, or one a phase, of one step in this process."""
    table = tomllib.loads(text)
    for phase in table.get("phases", ()):
        phase["rounds"] = 1
    if not table.get("phases"):
        table["rounds"] = 2
    table["train"] = {**table.get("train", {}), "local_steps": 1}
    table["engine"] = {"kind": "serial"}
    return tomli_w.dumps(table)


def copy_experiments(to: Path) -> None:
    """Copy the repository's experiments, each of them cut."""
    for file in (ROOT / "experiments").rglob("*.toml"):
        target = to / file.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(cut(file.read_text(encoding="utf-8")), encoding="utf-8")


def file_of(block: Block) -> str | None:
    """Return where a reader would save a block: under its title, or an experiment under its name."""
    if block.title or block.language != "toml":
        return block.title
    name = tomllib.loads(block.text).get("name")
    return f"{name}.toml" if name else None


class Reader:
    """Follows a page in the current folder.

    Args:
        monkeypatch: Lets it interrupt a run.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._programs: dict[str, Callable[[list[str], bool], None]] = {
            "fedssl": self._fedssl,
            "make": self._make,
            ".": self._activate,
            **dict.fromkeys(("ls", "head"), self._look),
        }

    def follow(self, block: Block) -> None:
        """Do what a block says."""
        saved = file_of(block)
        if saved:
            Path(saved).parent.mkdir(parents=True, exist_ok=True)
            text = cut(block.text) if block.language == "toml" else block.text
            Path(saved).write_text(text, encoding="utf-8")
        elif block.language == "python":
            exec(compile(block.text, f"{block.page}:{block.line}", "exec"), self._names)
        elif block.is_shell:
            for line in block.text.splitlines():
                self._run(line)

    def _run(self, line: str) -> None:
        words = [found for word in shlex.split(line, comments=True) for found in _expanded(word)]
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            assert words[0] in self._programs, f"nobody taught the reader to run: {line}"
            self._programs[words[0]](words[:end], "Ctrl-C" in line.partition(" #")[2])
            words = words[end + 1 :]

    def _fedssl(self, words: list[str], is_interrupted: bool) -> None:
        """Run a command in this process; where its comment says Ctrl-C, that comes after the first round."""
        if words[1] == "deploy":
            _deploy(words)
            return
        with self._monkeypatch.context() as patch:
            if is_interrupted:
                patch.setattr(
                    RunDirectory, "round_ended", _then_interrupted(RunDirectory.round_ended)
                )
            result = fedssl(*_with_few_seeds(words[1:]))
        assert result.exit_code == (INTERRUPTED if is_interrupted else 0), result.output

    def _make(self, words: list[str], is_interrupted: bool) -> None:
        check_target(*words[1:])

    def _activate(self, words: list[str], is_interrupted: bool) -> None:
        """Have what activating the environment gives: this process is in it already."""
        assert words[1:] == [".venv/bin/activate"]
        assert Path(sys.executable).with_name("fedssl").exists()

    def _look(self, words: list[str], is_interrupted: bool) -> None:
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


MOST_FILES = 2
"""Of a pattern; thirteen methods with five seeds would take a minute or two, and tests/contract runs each anyway."""


MOST_SEEDS = 2
"""Seeds of a command: the second shows all that more of them would, such as means, intervals and paired gains."""


def _with_few_seeds(words: list[str]) -> list[str]:
    return [
        str(min(int(word), MOST_SEEDS)) if option == "--seeds" else word
        for option, word in zip(["", *words], words, strict=False)
    ]


def _expanded(word: str) -> list[str]:
    return sorted(map(str, Path().glob(word)))[:MOST_FILES] if "*" in word else [word]


def _then_interrupted(round_ended: Callable[..., None]) -> Callable[..., None]:
    def interrupted(*arguments: Any) -> None:
        round_ended(*arguments)
        raise KeyboardInterrupt

    return interrupted


def _deploy(words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    makes = words[2] == "init"
    parts = command(*words[1:], *(["--no-containers"] if makes else []))
    done = subprocess.run(parts, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    if makes:
        give_free_ports(Path("deployment"))


def check_target(*arguments: str) -> None:
    """Assert that a target of the Makefile is there, that its programs are, and that they take their arguments."""
    settings = [f"VENV={Path(sys.executable).parent.parent}"]
    done = subprocess.run(
        ["make", "--dry-run", *settings, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        program, *rest = shlex.split(line)
        if Path(program).name == "fedssl":
            parse(rest)


def parse(words: list[str]) -> None:
    """Have the command line read its arguments, without running anything; a wrong one is an error."""
    parser, rest = get_command(app), list(words)
    while hasattr(parser, "commands"):
        parser = parser.commands[rest.pop(0)]
    parser.make_context("fedssl", rest)
    for word in words:
        assert not word.endswith(".toml") or (ROOT / word).exists(), word
