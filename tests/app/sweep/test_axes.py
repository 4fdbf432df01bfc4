"""Axes of `--set`: every combination is run once, and different settings have different names that suit a folder."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedssl.app.sweep.axes import Axis, parse_axes, settings_name, split_values, spread, value_name
from fedssl.app.sweep.ledger import Ledger
from fedssl.app.sweep.points import Point, refuse_twins
from fedssl.core.errors import InputError
from fedssl.experiment.settings import read_value
from tests.helpers import small_experiment

plain = st.text("abcxyz0123456789./:- ", min_size=1).map(str.strip).filter(bool)
quoted = st.text(min_size=0).map(lambda text: json.dumps(text, ensure_ascii=True))
numbers = st.floats(allow_nan=False, allow_infinity=False).map(repr)
flat = st.one_of(plain, quoted, numbers, st.sampled_from(["true", "false", "unset"]))
lists = st.lists(quoted | numbers).map(lambda items: "[" + ", ".join(items) + "]")
tables = st.dictionaries(st.sampled_from("ab"), quoted | lists).map(
    lambda table: "{ " + ", ".join(f"{key} = {value}" for key, value in table.items()) + " }"
)
values = flat | lists | tables


@given(st.lists(values, min_size=1))
def test_what_is_joined_by_commas_is_split_again(items):
    assert split_values(",".join(items)) == items
    assert split_values(" , ".join(items)) == items


def test_a_quote_within_a_word_is_a_letter():
    assert split_values("folder:it's,folder:photos") == ["folder:it's", "folder:photos"]
    assert split_values(r'"a,\",b",c') == [r'"a,\",b"', "c"]
    assert split_values("'a,b',{k='x,y'}") == ["'a,b'", "{k='x,y'}"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("method.threshold", "not of the form a.b=x,y"),
        ("=1", "not of the form"),
        ("a=", "empty value"),
        ("a=1,,2", "empty value"),
        ("a=1,2,", "empty value"),
        ("a=0.9,0.90", "the value 0.9 twice"),
        ("a=[1,2", "lacks a ]"),
        ('a="x,y', "lacks a closing quote"),
    ],
)
def test_what_cannot_be_read_is_refused(setting, words):
    with pytest.raises(InputError, match=re.escape(words)):
        parse_axes([setting])


def test_a_key_is_set_once():
    with pytest.raises(InputError, match="a is set twice; --set a=x,y"):
        parse_axes(["a=1", "b=1", "a=2"])


@given(st.lists(st.integers(1, 4), max_size=4))
def test_a_grid_has_every_combination_once(sizes):
    axes = [
        Axis(f"k{i}", tuple(str(value) for value in range(size))) for i, size in enumerate(sizes)
    ]
    assignments = spread(axes)
    assert len(set(assignments)) == len(assignments)
    expected = itertools.product(*(range(size) for size in sizes))
    assert [tuple(int(v) for _, v in each) for each in assignments] == list(expected)
    assert all([key for key, _ in each] == [axis.key for axis in axes] for each in assignments)


@given(values, values)
def test_values_have_the_same_name_if_and_only_if_they_are_the_same(one, other):
    def whole(text):
        return json.dumps(read_value(text), sort_keys=True)

    assert (value_name(one) == value_name(other)) == (whole(one) == whole(other))


@given(st.lists(st.tuples(st.text(min_size=1), values), unique_by=lambda each: each[0]))
def test_names_are_safe_and_do_not_depend_on_the_order(assignment):
    name = settings_name(tuple(assignment))
    assert name == settings_name(tuple(reversed(assignment)))
    assert re.fullmatch(r"[A-Za-z0-9._+=,~-]*", name)
    assert len(name) < 256


def test_names_are_readable():
    assignment = (("train.lr", "0.10"), ("method.kind", "fixmatch"), ("seed", "3"), ("name", "x"))
    assert settings_name(assignment) == "method.kind=fixmatch,train.lr=0.1"
    assert re.fullmatch(
        r"data\.root=_my_photos~\w{8}", settings_name((("data.root", "/my/photos"),))
    )


def point(*settings, varied=(), **overrides):
    return Point(small_experiment(**overrides), settings, frozenset(varied))


def test_a_run_is_named_by_what_decides_it():
    rounds, workers = ("rounds", "2"), ("engine.workers", "2")
    assert point().name == "small/seed0"
    assert point(rounds, workers, seed=3).name == "small/rounds=2/seed3"
    assert point(rounds, workers, varied=["engine.workers"]).name.split("/")[1] == (
        "engine.workers=2,rounds=2"
    )
    assert point(rounds, workers, varied=["rounds"]).label == "small (rounds 2)"
    with pytest.raises(InputError, match="two runs are called small/seed0"):
        refuse_twins([point(), point(workers)])


def test_a_folder_that_is_no_sweeps_is_left_alone(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"")
    with (
        pytest.raises(InputError, match="is not empty and holds no sweep"),
        Ledger(tmp_path / "photos", [], {}),
    ):
        pass
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat.png"]
