"""Plugins by name: found by their module, built from tables, refused with the nearest match."""

import importlib
import sys
import uuid
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.registry import Plugin, Section
from fedssl.core.trust import trust_only, trusting
from fedssl.experiment.families import PLUGIN_SECTIONS, STRATEGIES
from fedssl.methods.base import METHODS
from fedssl.methods.supervised import Supervised
from fedssl.models.base import MODELS
from tests.helpers import small_experiment


def test_a_name_is_a_module():
    assert METHODS.names() == sorted(METHODS.names())
    assert {"supervised", "fixmatch", "mean_teacher"} <= set(METHODS.names())
    assert "base" not in METHODS.names()
    assert "functional" not in METHODS.names()
    assert METHODS.build("fixmatch").kind == "fixmatch"
    optimizers = {"fedadagrad", "fedadam", "fedavgm", "fedyogi"}
    assert {"fedavg", "flwr"} | optimizers <= set(STRATEGIES.names())
    assert {"adaptive", "base", "keeping", "server_optimizer"}.isdisjoint(STRATEGIES.names())


def test_named_plugins():
    model = MODELS.build({"kind": "torchvision:resnet18", "resize": 32})
    assert model.kind == "torchvision:resnet18"
    assert model.to_dict() == {
        "kind": "torchvision:resnet18",
        "weights": None,
        "new_head": False,
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


def test_a_message_names_only_the_last_of_many_folders(tmp_path, monkeypatch):
    folders = [tmp_path / str(number) for number in range(30)]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr("sys.path", list(map(str, folders)))
    with pytest.raises(InputError, match="there is no such file") as caught:
        METHODS.build("sharp.py")
    said = str(caught.value)
    assert f"searched {', '.join(map(str, folders[-4:]))} and 26 more" in said


def test_plugins_are_frozen_and_equal_by_value():
    first, second = METHODS.build("fixmatch"), METHODS.build({"kind": "fixmatch"})
    assert first == second
    assert hash(first) == hash(second)
    with pytest.raises(ValueError, match="frozen"):
        first.threshold = 0.1


def test_nearest():
    assert suggest_nearest("fixmach", ["fixmatch", "mixmatch"]) == "did you mean 'fixmatch'?"
    assert suggest_nearest("zzz", ["b", "a"]) == "one of: a, b"


METHOD = """
from fedssl.methods import Loss, Method, Views
from fedssl.methods.functional import supervised_loss

class {name}({base}):
    {body}
    def views(self):
        return Views()
    def loss(self, network, batch, state, progress):
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels))
"""


def a_method(name="Mine", base="Method", body="pass"):
    return METHOD.format(name=name, base=base, body=body)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Write modules of a package of its own name and return that name."""
    package = f"lab_{uuid.uuid4().hex}"
    (tmp_path / package).mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    monkeypatch.chdir(tmp_path)

    def write(**modules):
        for name, text in modules.items():
            (tmp_path / package / f"{name}.py").write_text(text)
        importlib.invalidate_caches()
        return package

    yield write
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


@pytest.mark.parametrize("base", ["Method", "Base"])
def test_a_module_with_two_plugins_is_refused_with_both_names(lab, base):
    """The first of them would run under the name of the one that is meant."""
    package = lab(mine=a_method("Base") + a_method("Mine", base))
    with pytest.raises(
        InputError,
        match=r"more than one method: Base and Mine; write '.*mine:Base' .*is_abstract.*underscore",
    ):
        METHODS.get(f"{package}.mine")
    method = METHODS.build(f"{package}.mine:Mine")
    assert type(method).__name__ == "Mine"
    assert method.kind == f"{package}.mine:Mine"
    assert METHODS.build(method.to_dict()) == method
    with pytest.raises(InputError, match="more than one method"):
        METHODS.build(f"{package}.mine:Other")


@pytest.mark.parametrize(
    ("name", "body"),
    [("_Base", "pass"), ("Base", "is_abstract: __import__('typing').ClassVar = True")],
)
def test_a_base_that_says_so_is_none_of_the_plugins(lab, name, body):
    package = lab(mine=a_method(name, body=body) + a_method("Mine", name) + "\nAlias = Mine\n")
    assert METHODS.get(f"{package}.mine").__name__ == "Mine"


def test_a_module_may_hold_plugins_of_two_families(lab):
    """A strategy's family takes no method for a strategy, though its declared base is every plug-in's."""
    strategy = """
from fedssl.strategies.base import Strategy
class Careful(Strategy):
    def build(self, cohorts):
        raise NotImplementedError
"""
    package = lab(both=a_method() + strategy)
    assert METHODS.get(f"{package}.both").__name__ == "Mine"
    assert STRATEGIES.get(f"{package}.both").__name__ == "Careful"


@pytest.mark.parametrize("family", list(PLUGIN_SECTIONS.values()), ids=lambda f: f.section)
def test_a_family_refuses_a_plugin_of_another(lab, family):
    package = lab(mine="from fedssl.core.registry import Plugin\nclass One(Plugin):\n    pass\n")
    with pytest.raises(InputError, match=f"defines no {family.noun}"):
        family.get(f"{package}.mine")


def test_a_module_that_only_imports_its_method_names_the_right_one(lab):
    package = lab(one=a_method(), two="")
    lab(two=f"from {package}.one import Mine\n")
    with pytest.raises(InputError, match=rf"only imports Mine from {package}.one; write"):
        METHODS.get(f"{package}.two")


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ("end: float = 0.5", "'end' of Mine has the name of a hook of Method"),
        ("step: int", "'step' of Mine"),
        ("begin = 3", "'begin' of Mine"),
        ("to_dict: float = 1.0", "'to_dict' of Mine has the name of a hook of Plugin"),
        ("kind: str = 'x'", "'kind' of Mine"),
    ],
)
def test_a_setting_with_the_name_of_a_hook_is_refused(lab, body, wrong):
    package = lab(mine=a_method(body=body))
    with pytest.raises(InputError, match=wrong):
        METHODS.get(f"{package}.mine")


def test_a_method_without_its_loss_is_refused(lab):
    package = lab(mine="from fedssl.methods import Method\nclass Mine(Method):\n    pass\n")
    with pytest.raises(InputError, match=r"Mine of .* lacks loss, views"):
        METHODS.get(f"{package}.mine")


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(0)",
        "def f(): f()\nf()",
        "1 / 0",
        "class E(BaseException): pass\nraise E('x')",
        "import sys\nsys.exit('gone')",
        "import does_not_exist",
        "def",
    ],
)
def test_a_module_that_cannot_be_imported_is_one_message(lab, code):
    package = lab(mine=code)
    with pytest.raises(InputError, match=rf"{package}.mine cannot be imported") as caught:
        METHODS.get(f"{package}.mine")
    assert "\n" not in str(caught.value)


def test_ctrl_c_in_an_import_is_nobodys_fault(lab):
    package = lab(mine="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        METHODS.get(f"{package}.mine")


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("shrp.py", "there is no such file .*did you mean 'sharp.py'"),
        (
            "../sharp.py",
            "from the folder of the experiment file.*put the file there, and write 'sharp.py'",
        ),
        ("/somewhere/sharp.py", "put the file there, and write 'sharp.py'"),
        ("mylab/sharp", "write 'mylab.sharp'"),
        ("mylab.sharp.py", "write 'mylab/sharp.py'"),
        ("my-lab/sharp.py", "put the file there, and write 'sharp.py'"),
        ("sharp", "without a dot is built in; write 'sharp.py' to name .*sharp.py"),
        ("sharpp", "your own are named 'mine.py' or 'mylab.mine'"),
        ("random.py", "'random' is a module of Python itself; give your file another name"),
        ("unittest.__main__", "a notebook or a script is not a module"),
        ("__main__", "a notebook or a script is not a module.*workers import it by that name"),
        ("unittest.mock", "'unittest' is a module of Python itself"),
        ("antigravity.x", "'antigravity' is a module of Python itself"),
        ("a..b", "not the name of a module"),
        ("x" * 500, "not the name of a module"),
        ("\n\\", "put the file there, and write 'mine.py'"),
    ],
)
def test_what_is_meant_by_another_name_is_said(lab, tmp_path, kind, remedy):
    (tmp_path / "sharp.py").write_text("raise AssertionError('it was imported')")
    with pytest.raises(InputError, match=f"there is no method .*{remedy}") as caught:
        METHODS.build(kind)
    assert len(str(caught.value)) < 1000


@pytest.fixture
def sharp(lab, tmp_path):
    """Write a file of its own name, and return that name without its ending."""
    stem = f"sharp_{uuid.uuid4().hex}"
    (tmp_path / f"{stem}.py").write_text(a_method("Sharp"))
    importlib.invalidate_caches()
    yield stem
    sys.modules.pop(stem, None)


@pytest.mark.parametrize("form", ["{}.py", "./{}.py", ".\\{}.py", "{}.py:Sharp"])
def test_a_file_of_ones_own_is_a_kind(sharp, form):
    method = METHODS.build(form.format(sharp))
    assert method.kind == f"{sharp}.py"
    assert METHODS.build(method.to_dict()) == method
    assert METHODS.kind_of({"kind": "./sharp.py:Sharp"}) == "sharp.py:Sharp"


def test_an_installed_file_is_found_by_the_same_name(sharp, tmp_path, monkeypatch):
    """A deployed client may have the file among its installed modules."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert METHODS.build(f"{sharp}.py").kind == f"{sharp}.py"


def test_a_client_allows_a_file_by_the_name_of_its_module(sharp):
    for allowed in (sharp, f"{sharp}.py"):
        with trusting(trust_only(allowed)):
            assert METHODS.build(f"./{sharp}.py").kind == f"{sharp}.py"
    with trusting(trust_only("mylab")), pytest.raises(InputError) as caught:
        METHODS.build(f"{sharp}.py")
    assert f'allowed-plugins="{sharp}"' in str(caught.value)


def test_a_file_in_a_folder_is_the_module_that_it_makes(lab):
    package = lab(mine=a_method())
    assert METHODS.build(f"./{package}/mine.py").kind == f"{package}.mine"


def test_a_class_that_a_file_does_not_define_is_told(sharp):
    with pytest.raises(InputError, match="defines no method 'Shrp'; did you mean 'Sharp'"):
        METHODS.build(f"{sharp}.py:Shrp")


def test_two_files_of_one_name_are_never_taken_for_each_other(sharp, tmp_path, monkeypatch):
    """A process has one module of each name; which of two files it is must not depend on the order of folders."""
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(sys, "path", [str(other), *sys.path])
    copy = other / f"{sharp}.py"
    copy.write_text((tmp_path / copy.name).read_text())
    assert METHODS.build(copy.name).kind == copy.name
    copy.write_text(a_method("Other"))
    with pytest.raises(InputError, match="have that name and are not the same; rename one"):
        METHODS.build(copy.name)


def test_a_file_called_as_an_installed_module_is_refused(lab, tmp_path):
    (tmp_path / "pydantic.py").write_text("raise AssertionError('it was imported')")
    with pytest.raises(
        InputError, match=r"Python finds .*pydantic.__init__.py in place of .*; give"
    ):
        METHODS.build("pydantic.py")


@pytest.mark.parametrize(
    ("code", "line"),
    [("\n1 / 0", 2), ("def", 1), (a_method(body="end: float = 0.5"), 5)],
    ids=["raises", "cannot be read", "a setting called as a hook"],
)
def test_an_error_in_ones_own_file_names_its_line(lab, tmp_path, code, line):
    package = lab(mine=code)
    with pytest.raises(InputError, match=rf"{package}.mine.py, line {line}\)"):
        METHODS.get(f"{package}.mine")


def test_a_typo_in_a_dotted_name_says_what_lies_there_and_imports_nothing(lab, tmp_path):
    package = lab(__init__="raise AssertionError('it was imported')", sharp="")
    with pytest.raises(InputError) as caught:
        METHODS.build(f"{package}.shrp")
    assert f"did you mean '{package}.sharp'?" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_an_object_whose_class_workers_would_not_find_is_refused(lab):
    """A class made in a function, or of another family, would run as another class, or as none."""

    class Local(Supervised):
        """A method that no worker can import."""

    with pytest.raises(InputError, match="workers import it by that name"):
        small_experiment().model_validate({"data": "digits", "method": Local()})
    with pytest.raises(InputError, match="there is no method 'cnn'"):
        METHODS.build(MODELS.build("cnn"))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.one_of(
        st.text(max_size=30),
        st.lists(st.text(max_size=6), min_size=2, max_size=5).map(".".join),
        st.lists(
            st.sampled_from(["a", "..", "/", "__main__", "os", "ü", "\ud800", ":", ""]), max_size=6
        ).map(".".join),
    )
)
def test_no_name_ends_in_anything_but_one_message(kind):
    """Random names are refused, and nothing is imported for them."""
    for family in (METHODS, STRATEGIES):
        if kind.partition(":")[0] in family.names():
            continue
        known = set(sys.modules)
        with pytest.raises(InputError) as caught:
            family.build(kind)
        assert "\n" not in str(caught.value)
        assert set(sys.modules) == known


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


class Loose(Section):
    """Settings of types that have no hash of their own."""

    sizes: list[int] = []  # noqa: RUF012  (pydantic copies it)
    named: dict[str, list[float]] = {}  # noqa: RUF012
    chosen: set[int] = set()  # noqa: RUF012


@given(
    st.lists(st.integers(0, 3), max_size=3),
    st.dictionaries(st.sampled_from("abc"), st.lists(st.sampled_from([0.0, 1.0]), max_size=2)),
    st.sets(st.integers(0, 3)),
)
def test_equal_sections_have_equal_hashes_whatever_their_settings_are(sizes, named, chosen):
    section = Loose(sizes=sizes, named=named, chosen=chosen)
    turned = dict(reversed(named.items()))
    same = Loose(sizes=list(sizes), named=turned, chosen=set(chosen))
    assert section == same
    assert hash(section) == hash(same)
    other = Loose(sizes=[*sizes, 9], named=named, chosen=chosen)
    assert {section: 1}.get(other) is None
    assert {section: 1}[same] == 1


def test_sections_of_an_experiment_are_looked_up_by_their_settings():
    first, second = small_experiment(), small_experiment()
    assert hash(first.federation.deal) == hash(second.federation.deal)
    assert hash(first.recipe) == hash(second.recipe)
    assert hash(small_experiment(train={"lr": 0.1}).train) != hash(first.train)
