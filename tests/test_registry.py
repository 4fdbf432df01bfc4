"""Plugins by name: found by their module, built from tables, refused with the nearest match."""

from typing import Annotated

import pytest

from fedssl.config import PLUGIN_SECTIONS, STRATEGIES
from fedssl.errors import InputError, nearest
from fedssl.methods.base import METHODS
from fedssl.models.base import MODELS
from fedssl.registry import Plugin, Section


def test_a_name_is_a_module():
    assert METHODS.names() == sorted(METHODS.names())
    assert {"supervised", "fixmatch", "mean_teacher"} <= set(METHODS.names())
    assert "base" not in METHODS.names()
    assert "functional" not in METHODS.names()
    assert METHODS.build("fixmatch").kind == "fixmatch"
    assert STRATEGIES.names() == ["fedavg", "flwr"]


def test_named_plugins():
    model = MODELS.build({"kind": "torchvision:resnet18", "resize": 32})
    assert model.kind == "torchvision:resnet18"
    assert model.to_dict() == {
        "kind": "torchvision:resnet18",
        "resize": 32,
        "norm": None,
        "groups": 8,
    }
    assert MODELS.build(model.to_dict()) == model
    with pytest.raises(
        InputError, match=r"model.kind: is 'torchvision'; write 'torchvision:NAME' \(NAME: name"
    ):
        MODELS.build("torchvision")


def test_a_users_own_module():
    method = METHODS.build({"kind": "tests.plugins.raising", "sizes": [3]})
    assert method.kind == "tests.plugins.raising"
    assert METHODS.build(method.to_dict()) == method


@pytest.mark.parametrize(
    "kind", ["base", "functional", "nowhere.to.be.found", "tests.helpers", "../x"]
)
def test_what_is_not_a_plugin(kind):
    with pytest.raises(InputError, match="there is no method"):
        METHODS.build(kind)


def test_a_plugin_that_is_there_but_broken_says_why(tmp_path, monkeypatch):
    """An import error inside a user's module is theirs to see, not "no such method"."""
    (tmp_path / "broken_plugin_pkg").mkdir()
    (tmp_path / "broken_plugin_pkg" / "__init__.py").write_text("")
    (tmp_path / "broken_plugin_pkg" / "mine.py").write_text("import does_not_exist\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        InputError, match=r"broken_plugin_pkg.mine.*cannot be imported.*does_not_exist"
    ):
        METHODS.build("broken_plugin_pkg.mine")


def test_plugins_are_frozen_and_equal_by_value():
    first, second = METHODS.build("fixmatch"), METHODS.build({"kind": "fixmatch"})
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(ValueError, match="frozen"):
        first.threshold = 0.1


def test_nearest():
    assert nearest("fixmach", ["fixmatch", "mixmatch"]) == "did you mean 'fixmatch'?"
    assert nearest("zzz", ["b", "a"]) == "one of: a, b"


@pytest.mark.parametrize("family", list(PLUGIN_SECTIONS.values()), ids=lambda f: f.section)
def test_the_schema_names_what_a_kind_cannot_do_without(family):
    """A kind whose required settings are missing is refused, and the schema says which those are."""

    class Holder(Section):
        field: Annotated[Plugin, family]

    (schema,) = Holder.model_json_schema()["properties"].values()
    kinds = {kind["title"]: kind for kind in schema["anyOf"] if "properties" in kind}
    for name in family.names():
        needed = {n for n, info in family.get(name).model_fields.items() if info.is_required()}
        assert set(kinds[name].get("required", ())) - {family.key} == needed - {"name"}
