"""Names behind a colon are those that the libraries themselves list, read without importing them."""

import subprocess
import sys

from flwr.serverapp import strategy as flower_strategies
from torchvision import models

from fedssl.core import known_names


def test_torchvisions_classifiers_are_those_that_it_lists():
    listed = models.list_models(module=models)
    assert len(listed) > 50
    assert [name for name in listed if not known_names.is_torchvision_model(name)] == []
    others = sorted({*dir(models), *models.list_models()} - {*listed})
    assert [name for name in others if known_names.is_torchvision_model(name)] == []


def test_flowers_strategies_are_those_that_it_exports_and_that_run_here():
    exported = set(flower_strategies.__all__)
    known = {name for name in dir(flower_strategies) if known_names.is_flower_strategy(name)}
    assert known == exported - {*known_names.NOT_OURS, *known_names.NO_STRATEGIES}
    assert {*known_names.NOT_OURS, *known_names.NO_STRATEGIES} <= exported
    assert "FedAdam" in known


def test_folders_and_files_are_those_that_are_there(tmp_path):
    folder, file = tmp_path / "a.npz", tmp_path / "b.npz"
    folder.mkdir()
    file.touch()
    assert [known_names.is_folder(str(path)) for path in (folder, file)] == [True, False]
    assert [known_names.is_npz_file(str(path)) for path in (folder, file)] == [False, True]
    assert not known_names.is_npz_file(str(tmp_path / "c.npz"))


def test_without_the_library_no_name_is_known(monkeypatch):
    monkeypatch.setattr(known_names.importlib.util, "find_spec", lambda name: None)
    assert not known_names.is_torchvision_model("resnet18")
    assert not known_names.is_flower_strategy("FedAdam")


def test_no_library_is_imported():
    code = """
import sys
from fedssl.core.known_names import is_flower_strategy, is_torchvision_model
assert is_torchvision_model("resnet18") and is_flower_strategy("FedAdam")
assert not {"torch", "torchvision", "flwr"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
