"""The mistakes of a first hour, each told with one line that leads on, and at once where nothing need be computed."""

import os
import subprocess
import sys

import pytest

from fedssl.app.commands.listing import FAMILIES
from fedssl.core.processes import path_for_other_processes
from tests.helpers import fedssl, finished, refused, small_toml

MISTYPED = [
    *(((*words, "nothere.toml"), "no such file") for words in (("run",), ("deploy", "run"))),
    *(
        ((one, "nothere.toml"), "no such file")
        for one in ("sweep", "validate", "show", "baseline", "advise")
    ),
    (("run", "e.toml", "nothere.toml"), "no such file"),
    *(
        ((*command.split(), "e.toml", "--set", "nothere"), "is not of the form a.b=value")
        for command in ("run", "sweep", "validate", "show", "baseline", "advise", "deploy run")
    ),
    (("run", "folder"), "is a folder that holds no run"),
    *(
        ((one, "folder"), "is a folder; did you mean 'folder/mine.toml'?")
        for one in ("sweep", "validate", "show", "baseline", "advise")
    ),
    (("compare", "nothere"), "no such folder"),
    (("predict", "nothere", "x"), "holds no run"),
    (("report", "nothere"), "holds no run"),
    (("export", "nothere", "--format", "onnx"), "holds no run"),
    (("list", "nothere"), "there is no family"),
]


@pytest.mark.parametrize(("words", "said"), MISTYPED)
def test_a_mistyped_argument_is_told_before_torch_is_imported(words, said, tmp_path):
    """Most of the time that a command takes to start is that of torch and pandas."""
    (tmp_path / "folder").mkdir()
    small_toml(tmp_path / "folder" / "mine.toml")
    small_toml(tmp_path / "e.toml")
    code = f"""
import sys
from fedssl.cli import app
try:
    app({words!r})
except SystemExit as error:
    print(error.code, {{"torch", "pandas", "pydantic"}} & set(sys.modules))
"""
    environment = {**os.environ, "PYTHONPATH": path_for_other_processes()}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout == "2 set()\n", done.stdout + done.stderr
    assert said in done.stderr
    assert "nothere" in done.stderr or "folder" in words


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.source=cells", ("no data source 'cells'", "or folder:NAME")),
        ("model.kind=resnet5", ("did you mean 'resnet9'?", "or torchvision:NAME")),
        ("model.kind=resnet50", ("did you mean 'torchvision:resnet50'?",)),
        ("strategy=FedMedian", ("did you mean 'flwr:FedMedian'?",)),
        (
            "federation.partition=dirichlet:0.3",
            ("'dirichlet' has no ':NAME'", "a table with its settings: min_size, alpha"),
        ),
    ],
)
def test_a_wrong_kind_names_the_way_on(tmp_path, setting, words):
    refused(fedssl("validate", small_toml(tmp_path / "e.toml"), "--set", setting), *words)


def test_data_that_are_there_are_suggested_with_their_kind(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_toml(tmp_path / "e.toml")
    (tmp_path / "cells" / "ring").mkdir(parents=True)
    (tmp_path / "cells.npz").touch()
    for name, kind in (("cells", "folder"), ("cells/ring", "folder"), ("cells.npz", "npz")):
        found = fedssl("validate", "e.toml", "--set", f"data.source={name}")
        refused(found, f"no data source '{name}'; did you mean '{kind}:{name}'?")


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    finished(fedssl("validate", file))


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("server.kind=fedavg", "server.kind: unknown key; did you mean strategy.kind?"),
        ("lr=0.1", "lr: unknown key; did you mean train.lr or"),
        ("method.lr=0.1", "did you mean train.lr or"),
        ("server.clients=4", "did you mean federation.clients?"),
        ("federation.alpha=0.1", "did you mean federation.partition.alpha or"),
        ("train.threshold=0.9", "did you mean 'threads' or method.threshold or"),
        ("method.alpha=0.2", "only these kinds have it: dividemix, mixmatch"),
        ("method.treshold=0.2", "did you mean 'threshold'?"),
        ("train.learning_rate=0.1", "train.learning_rate: unknown key; did you mean train.lr or"),
        ("learning_rate=0.1", "learning_rate: unknown key; did you mean train.lr or"),
        ("nothing=1", "one of: augment, data"),
    ],
)
def test_a_setting_in_the_wrong_section_names_its_own(tmp_path, setting, remedy):
    refused(fedssl("validate", small_toml(tmp_path / "e.toml"), "--set", setting), remedy)


def test_a_setting_in_the_wrong_section_of_a_phase_names_its_own(tmp_path):
    file = tmp_path / "e.toml"
    file.write_text('data = "digits"\n[[phases]]\nrounds = 1\ntrain = { clients = 3 }\n')
    remedy = "phases[0].train.clients: unknown key; did you mean federation.clients?"
    refused(fedssl("validate", file), remedy)


def test_a_kind_by_its_name_alone_may_have_settings_beside_it(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    pair = ("--set", "method=flexmatch", "--set", "method.threshold=0.3")
    result = fedssl("validate", file, *pair)
    assert result.exit_code == 0, result.output
    assert "flexmatch" in result.output


def test_a_list_without_a_family_shows_all_families():
    result = fedssl("list")
    assert result.exit_code == 0, result.output
    words = result.output.split()
    for word in (*FAMILIES, "federation.partition", "augment.weak", "fixmatch,", "mlflow,"):
        assert word in words
    refused(fedssl("list", "method"), "methods")
    refused(fedssl("list", "train"), "there is no family 'train'", "`fedssl explain train`")
    result = fedssl("ls")
    assert result.exit_code == 2
    assert result.output.count("Did you mean 'list'?") == 1


@pytest.mark.parametrize(
    ("words", "setting"),
    [
        (("--rounds", "3"), "rounds=3"),
        (("--rounds=3",), "rounds=3"),
        (("--lr", ".1"), "train.lr=.1"),
        (("--learning-rate", ".1"), "train.lr=.1"),
        (("--threshold", "--plain"), "method.threshold=VALUE"),
        (("--engine.workers", "3"), "engine.workers=3"),
    ],
)
def test_an_option_that_is_a_setting_is_told_as_one(words, setting, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = fedssl("run", "e.toml", *words)
    assert result.exit_code == 2
    assert f"No such option: {words[0].partition('=')[0]}. It is a setting: --set {setting}" in (
        result.output
    )


@pytest.mark.parametrize(
    "command", ["sweep", "validate", "show", "baseline", "advise", "deploy run"]
)
def test_every_command_with_settings_tells_it(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert "--set rounds=3" in fedssl(*command.split(), "e.toml", "--rounds", "3").output


@pytest.mark.parametrize(
    ("command", "option", "said"),
    [
        ("run", "--dry-run", "fedssl sweep has it; fedssl validate FILE checks a file"),
        ("run", "--latex", "fedssl compare has it"),
        ("validate", "--jobs", "fedssl run and fedssl sweep have it"),
    ],
)
def test_an_option_of_another_command_is_told_with_that_command(command, option, said, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = fedssl(command, "e.toml", option)
    assert result.exit_code == 2
    assert f"No such option: {option}. {said}" in result.output


def test_an_option_that_is_nothing_is_told_as_before():
    output = fedssl("run", "e.toml", "--nothing", "3").output
    assert "No such option" in output
    assert "setting" not in output


def test_a_folder_with_several_files_or_none_names_none_of_them(tmp_path):
    refused(fedssl("validate", tmp_path), f"{tmp_path}: is a folder; name a TOML file")
    for name in ("a.toml", "b.toml"):
        small_toml(tmp_path / name)
    refused(fedssl("validate", tmp_path), f"{tmp_path}: is a folder; name a TOML file")


@pytest.mark.parametrize("name", ["<script>", "a b", "-x", ""])
def test_a_name_that_cannot_be_one_is_told_in_words(tmp_path, name):
    result = fedssl(
        "validate", small_toml(tmp_path / "e.toml", name="x"), "--set", f'name="{name}"'
    )
    refused(
        result,
        f"name: is {name!r}: input should be letters, digits, . _ and -, of which the first is a letter or a digit",
    )
    assert "^" not in result.output


def test_the_first_line_of_show_is_one_line_in_a_pipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = fedssl("show", small_toml(tmp_path / "e.toml")).stdout.splitlines()[0]
    assert len(first) > 80
    assert first.endswith("seed 0")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("mine", "mine.toml"), ("mine.tom", "mine.toml"), ("mien.toml", "mine.toml"), ("other", "")],
)
def test_a_missing_file_names_the_one_that_is_meant(tmp_path, given, meant):
    small_toml(tmp_path / "mine.toml")
    remedy = f"no such file; did you mean '{tmp_path / meant}'?" if meant else "no such file"
    result = fedssl("run", tmp_path / given)
    refused(result, f"{tmp_path / given}: {remedy}")
    assert bool(meant) == ("did you mean" in result.output)
