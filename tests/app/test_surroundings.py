"""Surroundings of a process: terminals of any encoding, proxies, no home folder, the user's own modules, telemetry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from fedssl.cli import app
from fedssl.core.processes import DISCREET, LOOPBACK, path_for_other_processes, without_proxy
from tests.helpers import command, fedssl, finished, small_experiment, small_toml

SHADOWED = ("torch", "numpy", "flwr", "rich", "clients", "strategies", "pydantic")
"""Modules of libraries, or of ours, that a user may have a file called after."""


def run_in(
    folder: Path, *arguments: object, **variables: str | None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in a folder, in an environment with some variables set or, where None, taken out."""
    known = {**os.environ, "PYTHONPATH": path_for_other_processes(), **variables}
    environment = {name: value for name, value in known.items() if value is not None}
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment, capture_output=True, timeout=300
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_cannot_show_all_costs_neither_run_nor_table(tmp_path, encoding):
    small_toml(tmp_path / "e.toml", rounds=1, federation={"labels": {"per_class": 2}})
    done = run_in(
        tmp_path,
        "run",
        "e.toml",
        "--plain",
        "--seeds",
        2,
        "--out",
        "o",
        PYTHONIOENCODING=f"{encoding}:strict",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "comparison.csv").exists()
    shown = run_in(tmp_path, "show", "e.toml", PYTHONIOENCODING=f"{encoding}:strict")
    assert shown.returncode == 0, shown.stderr
    table = done.stdout.decode(encoding)
    assert "?" not in table + shown.stdout.decode(encoding)
    assert ("+-" if encoding == "ascii" else "±") in table
    assert b"Traceback" not in done.stderr + shown.stderr


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Return a folder with an experiment and two runs of it."""
    folder = tmp_path_factory.mktemp("ascii")
    file = small_toml(folder / "e.toml", rounds=1, train={"local_steps": 1})
    for seed in (0, 1):
        finished(
            fedssl(
                "run",
                file,
                "--plain",
                "--set",
                f"seed={seed}",
                "--out",
                folder / "runs" / str(seed),
            )
        )
    return folder


READING = {
    "validate": ("validate", "e.toml"),
    "show": ("show", "e.toml"),
    "compare": ("compare", "runs", "--yardsticks", "--latex", "--out", "compared"),
    "baseline": ("baseline", "e.toml", "--seeds", "2"),
    "report": ("report", "runs/0"),
    "predict": ("predict", "runs/0", "images"),
    "export": ("export", "runs/0", "--out", "model.pt", "--format", "torchscript"),
    "explain": ("explain",),
    "explain data": ("explain", "method.fixmatch"),
    "list": ("list", "methods"),
    "schema": ("schema",),
    "doctor": ("doctor",),
    "run": ("run", "e.toml", "--out", "again"),
}
"""Each command of the command line, as it reads what `compared` returns."""


@pytest.mark.parametrize("words", READING.values(), ids=READING)
def test_no_command_needs_more_than_ascii(compared, monkeypatch, words):
    """Even where nothing has made the stream ready, as in a program that calls fedssl."""
    (compared / "images").mkdir(exist_ok=True)
    Image.new("L", (8, 8)).save(compared / "images" / "one.png")
    monkeypatch.chdir(compared)
    result = CliRunner(charset="ascii").invoke(app, list(words))
    assert result.exit_code == 0, result.output
    assert result.output
    assert "?" not in result.output.replace("more than luck?", "")


def test_help_in_a_terminal_of_ascii(tmp_path):
    for words in ([], ["run"], ["deploy"]):
        done = run_in(tmp_path, *words, "--help", PYTHONIOENCODING="ascii:strict")
        assert done.returncode == 0, done.stderr
        assert b"?" not in done.stdout


def paths_of_commands(command=None, path=()):
    """Yield the words of every command of the command line."""
    command = get_command(app) if command is None else command
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from paths_of_commands(below, (*path, name))


@pytest.mark.parametrize("words", [*paths_of_commands()], ids=" ".join)
def test_help_is_whole_at_80_columns(words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0
    assert "…" not in result.output


def test_a_reader_that_has_gone_ends_no_run(tmp_path):
    small_toml(tmp_path / "e.toml", rounds=3)
    line = " ".join(f"'{word}'" for word in command("run", "e.toml", "--plain", "--out", "o"))
    environment = {**os.environ, "PYTHONPATH": path_for_other_processes()}
    subprocess.run(
        f"{line} | head -c 1",
        shell=True,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert (tmp_path / "o" / "summary.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is Linux's /dev/full")
def test_an_output_on_a_full_disk_ends_no_run_and_is_said_once(tmp_path):
    small_toml(tmp_path / "e.toml", rounds=3)
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("run", "e.toml", "--plain", "--out", "o"),
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path_for_other_processes()},
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "summary.json").exists()
    assert done.stderr.count(b"cannot be written") == 1
    assert b"Traceback" not in done.stderr


def test_without_a_home_folder_that_can_be_written_flower_has_one_beside_the_cache(
    tmp_path, monkeypatch
):
    from fedssl.engine.flower import HOME_VARIABLE, _find_home

    def home_is(folder):
        monkeypatch.delenv(HOME_VARIABLE, raising=False)
        monkeypatch.setattr(Path, "home", folder)
        _find_home()
        return os.environ.get(HOME_VARIABLE)

    def nowhere():
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setenv("FEDSSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(HOME_VARIABLE, "mine")
    _find_home()
    assert os.environ[HOME_VARIABLE] == "mine"
    beside = str(tmp_path / "cache" / "flower")
    assert home_is(nowhere) == beside
    assert home_is(lambda: tmp_path / "gone") == beside
    assert home_is(lambda: Path("here")) == beside
    assert home_is(lambda: tmp_path) is None


def test_python_m_looks_for_modules_of_the_user_last(tmp_path):
    for name in ("typing", "json", "random", *SHADOWED):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the module of the user')")
    done = subprocess.run(
        [sys.executable, "-m", "fedssl", "schema"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path_for_other_processes()},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("home", [None, "", "here"])
def test_a_user_without_a_home_folder_runs(tmp_path, home):
    small_toml(tmp_path / "e.toml", rounds=1)
    gone = {
        "FEDSSL_CACHE": None,
        "XDG_CACHE_HOME": None,
        "USER": None,
        "LOGNAME": None,
        "HOME": home,
    }
    code = """
import pwd
def nobody(number): raise KeyError("no entry")
pwd.getpwuid = nobody
from fedssl.cli import app, prepare_process
prepare_process()
assert not app(["doctor"], standalone_mode=False)
assert not app(["run", "e.toml", "--plain", "--out", "o"], standalone_mode=False)
"""
    environment = {
        **os.environ,
        "PYTHONPATH": path_for_other_processes(),
        "TMPDIR": str(tmp_path),
        **gone,
    }
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "o" / "summary.json").exists()
    assert (tmp_path / f"fedssl-{os.getuid()}").is_dir()
    assert not (tmp_path / "here").exists()


def test_no_home_folder_and_a_cache_below_it_is_one_message(tmp_path):
    small_toml(tmp_path / "e.toml", rounds=1)
    done = run_in(tmp_path, "validate", "e.toml", FEDSSL_CACHE="~nobody-of-this-name/x")
    assert done.returncode == 2
    assert b"FEDSSL_CACHE" in done.stderr
    assert b"Traceback" not in done.stderr


def test_own_modules_called_as_libraries_harm_neither_command_nor_script(tmp_path):
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text(
            "raise RuntimeError('the module of the user was imported')"
        )
    small_toml(tmp_path / "e.toml", rounds=1)
    script = tmp_path / "script.py"
    script.write_text("from fedssl import run\nprint(run('e.toml', out='s', progress=False))\n")
    for arguments in (
        [*command("run", "e.toml", "--plain", "--out", "o")],
        [sys.executable, str(script)],
    ):
        done = subprocess.run(
            arguments,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path_for_other_processes()},
            capture_output=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr.decode()[-2000:]
    assert (tmp_path / "s" / "summary.json").exists()


@pytest.mark.parametrize("chosen", [{}, {"ORT_DISABLE_TELEMETRY": "0"}])
def test_libraries_report_nothing_unless_the_user_lets_them(chosen):
    code = "import fedssl; fedssl.Experiment; import os, json; print(json.dumps(dict(os.environ)))"
    environment = {k: v for k, v in os.environ.items() if k not in DISCREET}
    environment |= {"PYTHONPATH": path_for_other_processes(), **chosen}
    import json

    found = json.loads(subprocess.check_output([sys.executable, "-c", code], env=environment))
    assert {name: found[name] for name in DISCREET} == {**DISCREET, **chosen}


def test_proxies_stay_out_of_the_loopback():
    assert without_proxy({"PATH": "/bin"}) == {}
    found = without_proxy(
        {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "a.org, b.org", "no_proxy": "c.org"}
    )
    assert found["NO_PROXY"] == found["no_proxy"]
    assert found["no_proxy"].split(",") == ["c.org", "a.org", "b.org", *LOOPBACK]


def test_a_display_that_fails_costs_no_run(tmp_path, monkeypatch):
    from fedssl import run
    from fedssl.app import library

    class Broken(library.Observer):
        def round_ended(self, end):
            raise UnicodeEncodeError("latin-1", "▁", 0, 1, "not there")

    monkeypatch.setattr(library, "make_display", lambda console: Broken())
    found = run(small_experiment(rounds=2), out=tmp_path / "o")
    assert found.is_finished
    assert len(found.rounds) == 2


def test_a_terminal_without_width_and_a_backend_that_is_not_there_cost_no_output(tmp_path):
    small_toml(tmp_path / "e.toml", rounds=1)
    done = run_in(tmp_path, "show", "e.toml", COLUMNS="0", MPLBACKEND="bogus")
    assert done.returncode == 0, done.stderr
    assert b"labeled" in done.stdout
    assert list(tmp_path.glob("*.png"))


def test_one_set_is_one_setting(tmp_path):
    small_toml(tmp_path / "e.toml", rounds=1)
    done = run_in(tmp_path, "validate", "e.toml", "--set", "rounds=1\nseed=3")
    assert done.returncode == 2
    assert b"is more than one value" in done.stderr


def test_a_plug_in_with_a_type_that_only_checkers_see_is_one_error(tmp_path):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "mine.py").write_text(
        "from __future__ import annotations\n"
        "from typing import TYPE_CHECKING\n"
        "from fedssl.methods.fixmatch import FixMatch\n"
        "if TYPE_CHECKING:\n    from pathlib import Path\n"
        "class Mine(FixMatch):\n    where: Path | None = None\n"
    )
    small_toml(tmp_path / "e.toml", rounds=1)
    done = run_in(tmp_path, "validate", "e.toml", "--set", "method.kind=lab.mine")
    assert done.returncode == 2, done.stderr
    assert b"there is no method 'lab.mine'" in done.stderr
    assert b"Traceback" not in done.stderr
