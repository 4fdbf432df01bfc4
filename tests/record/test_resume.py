"""A run goes on with the settings that it began with."""

import pytest

from fedssl.core.errors import InputError
from fedssl.record.resume import refuse_changes
from fedssl.record.run_directory import EXPERIMENT
from tests.helpers import small_experiment


def with_rates(*patterns):
    phase = {"rounds": 1, "train": {"rates": {p: 0.5 / (i + 1) for i, p in enumerate(patterns)}}}
    return small_experiment(rounds=None, phases=[phase])


def reordered(experiment):
    """Return the same experiment with the rates of its only phase in the opposite order."""
    table = experiment.to_dict()
    rates = table["phases"][0]["train"]["rates"]
    table["phases"][0]["train"]["rates"] = dict(reversed(rates.items()))
    return type(experiment).from_dict(table)


def test_the_order_of_rates_is_a_setting(tmp_path):
    """The first pattern that matches a parameter gives its rate, so another order is another experiment."""
    experiment = with_rates("*.weight", "head.*", "trunk.*")
    (tmp_path / EXPERIMENT).write_text(experiment.to_toml(), encoding="utf-8")
    refuse_changes(tmp_path, experiment)
    with pytest.raises(InputError, match=r"order of phases\.0\.train\.rates was \*\.weight, head"):
        refuse_changes(tmp_path, reordered(experiment))
