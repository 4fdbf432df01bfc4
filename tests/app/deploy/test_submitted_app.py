"""Flower's own `flwr run .` runs the submitted experiment, whatever files are beside the installed code."""

import sys

import pytest

from fedssl.core.errors import InputError
from fedssl.server.app import _submitted


def test_a_file_of_the_submitted_app_comes_before_one_beside_the_code(tmp_path, monkeypatch):
    for folder in ("app", "installed"):
        (tmp_path / folder / "experiments").mkdir(parents=True)
    installed = tmp_path / "installed" / "experiments" / "e.toml"
    installed.write_text("")
    # Flower inserts the app's folder in front of all others (1.41).
    for folder in ("installed", "app"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    assert _submitted("experiments/e.toml") == installed
    submitted = tmp_path / "app" / "experiments" / "e.toml"
    submitted.write_text("")
    assert _submitted("experiments/e.toml") == submitted
    assert _submitted(str(installed)) == installed


def test_a_file_that_is_nowhere_is_named(monkeypatch):
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(InputError, match=r"experiment: is 'experiments/none.toml', but the app"):
        _submitted("experiments/none.toml")
