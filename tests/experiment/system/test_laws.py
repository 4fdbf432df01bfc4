"""Every law gives K finite numbers, the same for the same stream, with its documented effect and clear errors."""

import os
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import create_model

from fedssl.core.errors import InputError
from fedssl.experiment.system.csv_file import read_columns
from fedssl.experiment.system.laws import LAWS, Law
from fedssl.experiment.system.laws.base import LawFamily
from fedssl.experiment.system.laws.choices import apportion

SETTINGS = {
    "fixed": {"value": 2.5},
    "uniform": {"low": 1, "high": 3},
    "lognormal": {"median": 100.0, "sigma": 0.5},
    "choices": {"values": [1.0, 10.0], "shares": [0.75, 0.25]},
    "trace": {"path": "trace.csv", "column": "speed"},
}
"""Some settings of each kind."""

DRAWN = {"uniform", "lognormal", "choices"}
"""Kinds whose numbers depend on the stream."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Stand in a folder with a trace of 10 clients."""
    monkeypatch.chdir(tmp_path)
    lines = [f"{client},{client + 0.5}" for client in range(10)]
    (tmp_path / "trace.csv").write_text("\n".join(["client,speed", *lines]))
    return tmp_path


def law(kind, **settings):
    return LAWS.build({"kind": kind, **(settings or SETTINGS[kind])})


def draw(law, num_clients, seed=0):
    return law.draw(num_clients, np.random.default_rng(seed))


def test_every_law_is_tested():
    assert set(SETTINGS) == set(LAWS.names())


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.usefixtures("here")
class TestEvery:
    @pytest.mark.parametrize("num_clients", [1, 10])
    def test_a_number_each(self, kind, num_clients):
        numbers = draw(law(kind), num_clients)
        assert numbers.shape == (num_clients,)
        assert numbers.dtype == np.float64
        assert np.isfinite(numbers).all()
        assert numbers.flags.writeable
        assert np.array_equal(numbers, draw(law(kind), num_clients))

    def test_only_what_is_drawn_depends_on_the_stream(self, kind):
        first, second = (draw(law(kind), 10, seed) for seed in (0, 3))
        assert np.array_equal(first, second) != (kind in DRAWN)

    def test_settings_survive_being_written_down(self, kind):
        again = LAWS.build(law(kind).to_dict())
        assert again == law(kind)
        assert hash(again) == hash(law(kind))


class TestShorthand:
    @pytest.mark.parametrize("number", [3, 0.25, -1])
    def test_a_number_is_a_fixed_law(self, number):
        assert LAWS.build(number) == law("fixed", value=number)
        assert LAWS.build(number).to_dict() == {"kind": "fixed", "value": float(number)}
        assert LAWS.as_table(number) == {"kind": "fixed", "value": number}

    def test_a_table_without_a_kind_is_one_too(self):
        assert LAWS.build({"value": 3}) == LAWS.build(3)

    def test_a_name_is_still_a_kind(self):
        assert LAWS.as_table("uniform") == {"kind": "uniform"}
        assert LAWS.as_table(True) is True

    @pytest.mark.parametrize("value", [True, [1.0], None, float("inf"), float("nan")])
    def test_what_is_no_number(self, value):
        with pytest.raises(InputError, match=r"^system\.speed"):
            LAWS.build(value)

    def test_other_places_of_the_file_have_it_too(self):
        family = LAWS.at("system.download", None)
        assert isinstance(family, LawFamily)
        assert family.build(7) == LAWS.build(7)
        with pytest.raises(InputError, match=r"^system\.download\.kind: is missing"):
            family.build({})

    def test_a_section_takes_it_and_its_schema_says_so(self):
        family = LAWS.at("system.download", None)
        section = create_model("Section", download=(Annotated[Law, family], ...))
        assert section.model_validate({"download": 7}).download == LAWS.build(7)
        ways = section.model_json_schema()["properties"]["download"]["anyOf"]
        assert ways[0] == {"type": "number"}
        assert [way["title"] for way in ways if "properties" in way] == sorted(SETTINGS)


class TestBounds:
    def within(self, numbers, least, most, num_clients=4):
        built = law("choices", values=numbers, shares=[1] * len(numbers))
        stream = np.random.default_rng(0)
        return built.draw_within(num_clients, stream, "system.download", least, most)

    def test_numbers_within_are_what_was_drawn(self):
        assert sorted(self.within([0.5, 2], 0, 2)) == [0.5, 0.5, 2, 2]

    @pytest.mark.parametrize("wrong", [0, -1, 2.25])
    def test_the_lower_bound_is_out_and_the_upper_one_is_in(self, wrong):
        with pytest.raises(InputError) as caught:
            self.within([1, 1, 1, wrong], 0, 2)
        drawn = draw(law("choices", values=[1, 1, 1, wrong], shares=[1] * 4), 4)
        client = drawn.tolist().index(wrong)
        assert caught.value.field == "system.download"
        assert caught.value.problem == f"is {float(wrong)!r} at client {client}"
        assert caught.value.remedy == "it must be above 0 and at most 2"

    def test_the_lower_bound_may_be_in(self):
        stream = np.random.default_rng(0)
        numbers = LAWS.build(0).draw_within(2, stream, "system.x", 0, 1, including_least=True)
        assert numbers.tolist() == [0, 0]
        with pytest.raises(InputError, match=r"it must be at least 0 and at most 1"):
            LAWS.build(-0.5).draw_within(2, stream, "system.x", 0, 1, including_least=True)

    def test_infinity_is_never_within(self):
        far = law("lognormal", median=1e308, sigma=5)
        with pytest.raises(InputError, match=r"system\.speed: is inf at client .* and finite"):
            far.draw_within(100, np.random.default_rng(0), "system.speed", 0)

    def test_bounds_may_be_left_open(self):
        numbers = law("fixed", value=1e300).draw_within(2, np.random.default_rng(), "system.x", 0)
        assert numbers.tolist() == [1e300, 1e300]


class TestUniformAndLognormal:
    def test_uniform_is_between_its_bounds(self):
        numbers = draw(law("uniform", low=-1, high=3), 20_000)
        assert ((numbers >= -1) & (numbers < 3)).all()
        assert numbers.mean() == pytest.approx(1, abs=5 * (16 / 12 / 20_000) ** 0.5)
        assert numbers.var() == pytest.approx(16 / 12, rel=0.03)

    def test_equal_bounds_are_one_number(self):
        assert draw(law("uniform", low=2, high=2), 3).tolist() == [2, 2, 2]

    def test_lognormal_has_its_median_and_sigma(self):
        logs = np.log(draw(law("lognormal", median=50, sigma=0.8), 40_000))
        assert logs.mean() == pytest.approx(np.log(50), abs=5 * 0.8 / 200)
        assert np.median(logs) == pytest.approx(np.log(50), abs=5 * 1.2533 * 0.8 / 200)
        assert logs.std() == pytest.approx(0.8, rel=0.02)

    def test_sigma_zero_is_the_median_exactly(self):
        assert draw(law("lognormal", median=0.1, sigma=0), 3).tolist() == [0.1] * 3


class TestChoices:
    def test_exactly_the_mix_of_the_file(self):
        mix = law("choices", values=[1, 5, 20], shares=[0.5, 0.3, 0.2])
        for seed in range(5):
            values, counts = np.unique(draw(mix, 1000, seed), return_counts=True)
            assert values.tolist() == [1, 5, 20]
            assert counts.tolist() == [500, 300, 200]

    def test_which_client_has_which_is_drawn(self):
        """Over 2,000 seeds every one of 10 clients has the rare one a tenth of the time; five deviations."""
        mix = law("choices", values=[0, 1], shares=[9, 1])
        rare = sum(draw(mix, 10, seed) for seed in range(2000))
        assert rare.sum() == 2000
        assert np.abs(rare - 200).max() < 5 * (2000 * 0.1 * 0.9) ** 0.5

    @given(
        st.integers(0, 5000),
        st.lists(st.floats(0, 1e308), min_size=1, max_size=8).filter(any),
    )
    def test_apportionment_is_complete_and_off_by_less_than_one(self, num_items, shares):
        counts = apportion(num_items, tuple(shares))
        assert counts.sum() == num_items
        scaled = [share / max(shares) for share in shares]
        quotas = [num_items * share / sum(scaled) for share in scaled]
        assert all(
            abs(count - quota) < 1 + 1e-9 for count, quota in zip(counts, quotas, strict=True)
        )
        assert all(count == 0 for count, share in zip(counts, shares, strict=True) if share == 0)

    @pytest.mark.parametrize(
        ("num_items", "shares", "counts"),
        [
            (10, (0.1, 0.2, 0.7), [1, 2, 7]),
            (10, (1, 1, 1), [4, 3, 3]),  # 3.33 each: of equal remainders the first
            (7, (0.5, 0.3, 0.2), [4, 2, 1]),  # 3.5, 2.1, 1.4
            (3, (0, 2, 3), [0, 1, 2]),  # 0, 1.2, 1.8
            (1, (0, 0.4, 0.6), [0, 0, 1]),
            (0, (1, 2), [0, 0]),
            (20, (1,) * 40, [1] * 20 + [0] * 20),
        ],
    )
    def test_the_largest_remainders_get_what_is_left(self, num_items, shares, counts):
        assert apportion(num_items, shares).tolist() == counts


class TestTrace:
    def test_lines_in_any_order_and_clients_to_spare(self, here):
        (here / "trace.csv").write_text("speed, note,client\n7,a,2\n\n5,b,0\n9,c,3\n6,d,1\n,,\n")
        assert draw(law("trace"), 3).tolist() == [5, 6, 7]
        assert draw(law("trace"), 4).tolist() == [5, 6, 7, 9]

    def test_as_spreadsheets_write_it(self, here):
        (here / "trace.csv").write_bytes(b'\xef\xbb\xbfclient,speed\r\n1, "1e3"\r\n0," 2.5"\r\n')
        assert draw(law("trace"), 2).tolist() == [2.5, 1000]

    def test_the_home_folder(self, here, monkeypatch):
        monkeypatch.setenv("HOME", str(here))
        assert draw(law("trace", path="~/trace.csv", column="speed"), 1).tolist() == [0.5]

    def test_a_changed_file_is_read_again(self, here):
        assert draw(law("trace"), 1).tolist() == [0.5]
        (here / "trace.csv").write_text("client,speed\n0,8\n")
        os.utime("trace.csv", ns=(1, 1))
        assert draw(law("trace"), 1).tolist() == [8]

    @pytest.mark.usefixtures("here")
    def test_what_is_given_away_is_not_what_is_kept(self):
        table = read_columns(Path("trace.csv"), ("speed",))
        for array in (table.lines, table.clients, table.numbers["speed"]):
            with pytest.raises(ValueError, match="read-only"):
                array[:] = 0
        draw(law("trace"), 10)[:] = 0
        assert draw(law("trace"), 2).tolist() == [0.5, 1.5]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", r"trace.csv: has no column 'client'; its first line names -"),
            ("client,velocity\n0,1\n", r"has no column 'speed'; .*client, velocity"),
            ("id,speed\n0,1\n", r"has no column 'client'; .*id, speed"),
            ("client,speed,speed\n0,1,1\n", r"has 2 columns 'speed'"),
            ("client,speed\n", r"trace.csv: has no line below"),
            ("client,speed\n0,1\n1,fast\n", r"trace.csv, line 3: speed is 'fast', not a finite"),
            ("client,speed\n0,1\n1,nan\n", r"trace.csv, line 3: speed is 'nan'"),
            ("client,speed\n0,1\n\n1,inf\n", r"trace.csv, line 4: speed is 'inf'"),
            ("client,speed\n0,1\n1\n", r"trace.csv, line 3: speed is ''"),
            ("client,speed\n0,1\n-1,2\n", r"trace.csv, line 3: client is '-1'; .*whole number"),
            ("client,speed\n0,1\n1.0,2\n", r"trace.csv, line 3: client is '1.0'"),
            (f"client,speed\n{'9' * 19},1\n", r"trace.csv, line 2: client is '9999"),
            ("client,speed\n1,1\n0,1\n1,2\n", r"trace.csv: line 4: client 1 is on line 2 already"),
            ("client,speed\n0,1\n7,1\n7,2\n", r"line 4: client 7 is on line 3 already"),
            ("client,speed\n1,1\n", r"trace.csv: there is no line for client 0; there are 2"),
            ("client,speed\n5,1\n", r"there is no line for client 0 \(and 1 more\)"),
        ],
    )
    def test_what_is_wrong_with_a_file(self, here, text, message):
        (here / "trace.csv").write_text(text)
        with pytest.raises(InputError, match=message):
            draw(law("trace"), 2)

    @pytest.mark.usefixtures("here")
    def test_no_such_file(self):
        with pytest.raises(InputError, match=r"^nowhere.csv: no such file"):
            draw(law("trace", path="nowhere.csv", column="speed"), 2)

    def test_what_is_no_text(self, here):
        (here / "trace.csv").write_bytes(b"client,speed\n0,\xff\xfe\n")
        with pytest.raises(InputError, match=r"^trace.csv: is not saved as UTF-8: line 2"):
            draw(law("trace"), 2)
        with pytest.raises(InputError, match=r"^\.: cannot be read"):
            draw(law("trace", path=".", column="speed"), 2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "fixed"}, r"speed\.value: is missing"),
        ({"kind": "fixed", "value": "5"}, r"speed\.value: is '5', not a number"),
        ({"kind": "fixed", "value": 1, "low": 1}, r"speed\.low: unknown key"),
        ({"kind": "uniform", "low": 2, "high": 1}, r"low = 2 is more than high = 1"),
        ({"kind": "uniform", "low": 2}, r"speed\.high: is missing"),
        ({"kind": "lognormal", "median": 0, "sigma": 1}, r"speed\.median: is 0"),
        ({"kind": "lognormal", "median": 1, "sigma": -1}, r"speed\.sigma: is -1"),
        ({"kind": "lognormal", "median": 1, "sigma": 11}, r"speed\.sigma: is 11"),
        ({"kind": "choices", "values": [], "shares": []}, r"speed\.values: .*at least 1"),
        ({"kind": "choices", "values": [1, 2], "shares": [1]}, r"has 2 values and 1 shares"),
        ({"kind": "choices", "values": [1, 2], "shares": [1, -1]}, r"speed\.shares\.1: is -1"),
        ({"kind": "choices", "values": [1, 2], "shares": [0, 0]}, r"shares are all 0"),
        ({"kind": "choices", "values": [True], "shares": [1]}, r"speed\.values\.0: is True"),
        ({"kind": "choices", "values": ["5"], "shares": [1]}, r"speed\.values\.0: is '5'"),
        ({"kind": "choices", "values": [float("inf")], "shares": [1]}, r"speed\.values\.0: is inf"),
        ({"kind": "choices", "values": [1], "shares": [float("nan")]}, r"speed\.shares\.0: is nan"),
        ({"kind": "trace", "path": "x.csv"}, r"speed\.column: is missing"),
        ({"kind": "gaussian"}, r"speed\.kind: there is no law 'gaussian'"),
    ],
)
def test_settings_that_are_refused(table, message):
    with pytest.raises(InputError, match=r"^system\." + message + r"|^system\.speed: " + message):
        LAWS.build(table)
