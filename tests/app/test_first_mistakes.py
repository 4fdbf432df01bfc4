"""The mistakes of a first hour, each told with one line that leads on, and at once where nothing need be computed."""

import subprocess
import sys

import pytest

from tests.helpers import fedssl, refused, small_toml


@pytest.mark.parametrize("command", ["run", "sweep", "validate", "show", "baseline"])
def test_a_mistyped_file_is_told_before_torch_is_imported(command, tmp_path):
    """Most of the time that a command takes to start is torch's."""
    arguments = [command, str(tmp_path / "nothere.toml")]
    code = f"""
import sys
from fedssl.cli import app
try:
    app({arguments})
except SystemExit as error:
    print(error.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "2 False\n", done.stdout + done.stderr
    assert "nothere.toml: no such file" in done.stderr


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("data.source=cells", ("no data source 'cells'", "or folder:NAME")),
        ("model.kind=resnet50", ("did you mean 'resnet9'?", "or torchvision:NAME")),
        (
            "federation.partition=dirichlet:0.3",
            ("'dirichlet' has no ':NAME'", "a table with its settings: min_size, alpha"),
        ),
    ],
)
def test_a_wrong_kind_names_the_way_on(tmp_path, setting, words):
    refused(fedssl("validate", small_toml(tmp_path / "e.toml"), "--set", setting), *words)


def test_a_kind_by_its_name_alone_may_have_settings_beside_it(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    pair = ("--set", "method=flexmatch", "--set", "method.threshold=0.3")
    result = fedssl("validate", file, *pair)
    assert result.exit_code == 0, result.output
    assert "flexmatch" in result.output


def test_a_list_of_nothing_names_the_families():
    refused(fedssl("list"), "which family", "methods", "strategies")
    result = fedssl("ls")
    assert result.exit_code == 2
    assert result.output.count("Did you mean 'list'?") == 1
