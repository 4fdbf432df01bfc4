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


def test_a_list_of_nothing_names_the_families():
    refused(fedssl("list"), "which family", "methods", "strategies")
    result = fedssl("ls")
    assert result.exit_code == 2
    assert result.output.count("Did you mean 'list'?") == 1
