"""What pydantic finds in settings is one message that names the setting as a person writes it."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

from fedssl.core.findings import MOST_NAMED, Form, input_error
from fedssl.core.registry import Section


class Inner(Section):
    size: int | tuple[int, int] | None = None
    widths: tuple[int, ...] = ()
    amount: int | tuple[int, ...] | Literal["all"] = 1
    rate: float = Field(0.5, le=1)
    rates: dict[str, float] = Field(default_factory=dict)
    called: Annotated[str, Form("small letters")] = Field("a", pattern="^[a-z]+$")
    bare: str = Field("a", pattern="^[a-z]+$")


class Outer(Section):
    inner: Inner = Inner()
    maybe: Inner | None = None
    needed: int


def message(**table):
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"needed": 1, **table})
    return str(input_error(caught.value, Outer))


@pytest.mark.parametrize(
    ("inner", "said"),
    [
        ({"size": "abc"}, "size: is 'abc': input should be a valid integer or a list"),
        ({"size": [3]}, "size: is [3]: input should be a valid integer or list[int, int]"),
        ({"amount": "x"}, "amount: is 'x': input should be a valid integer or a list or 'all'"),
        ({"amount": [1, "x"]}, "amount: is [1, 'x']: input should be a valid integer or list[int, ...] or 'all'"),
        ({"widths": 3}, "widths: is 3: input should be a list"),
        ({"rate": 2}, "rate: is 2: input should be less than or equal to 1"),
        ({"rates": {"a": "x"}}, "rates.a: is 'x': input should be a valid number, unable to parse string as a number"),
        ({"called": "A"}, "called: is 'A': input should be small letters"),
        ({"bare": "A"}, "bare: is 'A': string should match pattern '^[a-z]+$'"),
        ({"sise": 3}, "sise: unknown key; did you mean 'size'?"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("section", ["inner", "maybe"])
def test_a_setting_is_named_without_the_types_that_were_tried(section, inner, said):
    assert message(**{section: inner}) == f"{section}.{said}"


def test_a_section_that_is_none():
    assert message(inner=3) == "inner: is 3: input should be a table"


def test_other_settings_that_are_wrong_are_named():
    said = message(inner={"rate": 2, "size": "abc", "wide": 1}, needed="x")
    assert said == (
        "inner.size: is 'abc': input should be a valid integer or a list "
        "(also wrong: inner.rate, inner.wide, needed)"
    )


def test_many_wrong_settings_are_counted_no_further():
    said = message(inner={f"x{number}": 1 for number in range(20)})
    assert said.count("inner.x") == 1 + MOST_NAMED
    assert ", ...)" in said


def test_a_missing_setting():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({})
    assert str(input_error(caught.value, Outer, "top")) == "top.needed: is missing"
