"""Statistics over seeds agree with arithmetic by hand and with scipy's own intervals."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedssl.views.comparison.statistics import (
    curves_of,
    lines_of,
    mean_interval,
    spent_by_round,
    with_gains,
    with_reach,
)

NAN = float("nan")


def test_an_interval_by_hand():
    """Mean 2, deviation 1, and 4.302653 is the .975 quantile of Student's t with two degrees of freedom."""
    half = 4.302652729911275 / math.sqrt(3)
    assert mean_interval(pd.Series([1.0, 2.0, 3.0])) == pytest.approx((2 - half, 2 + half))


@given(st.lists(st.floats(0, 1), min_size=3, max_size=9).filter(lambda v: np.std(v) > 1e-3))
def test_an_interval_is_scipys(values):
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert mean_interval(pd.Series(values)) == pytest.approx(expected)


def test_what_is_not_known_is_not_counted():
    with_gap, without = pd.Series([1.0, NAN, 3.0, 4.0]), pd.Series([1.0, 3.0, 4.0])
    assert mean_interval(with_gap) == mean_interval(without)


def test_two_seeds_have_no_interval():
    """By Student's t it would be 12.7 / sqrt(2), which is nine deviations, to either side."""
    for few in ([], [0.5], [0.5, NAN], [0.5, 0.6], [0.5, NAN, 0.6]):
        assert np.isnan(mean_interval(pd.Series(few, dtype=float))).all()


def runs_of(accuracies):
    """Return runs by {label: {seed: EMA accuracy}}, seed n having cost n MB, n seconds, n failed and 10 n inactive clients."""
    return pd.DataFrame(
        [
            {
                "label": label,
                "name": label,
                "seed": seed,
                "ema_accuracy": accuracy,
                "server_accuracy": accuracy / 2,
                "pseudo_label_accuracy": 0.9,
                "pseudo_label_coverage": 0.5,
                "seconds": float(seed),
                "virtual_seconds": NAN,
                "bytes_up": seed * 1e6,
                "bytes_down": seed * 2e6,
                "clients_failed": float(seed),
                "clients_lost": 0.0,
                "clients_inactive": seed * 10.0,
            }
            for label, seeds in accuracies.items()
            for seed, accuracy in seeds.items()
        ]
    )


def rounds_of(accuracies):
    """Return rounds by {label: {seed: [EMA accuracies]}}, every one of a second and of 3 MB."""
    return pd.DataFrame(
        [
            {
                "label": label,
                "seed": seed,
                "round": number,
                "ema_accuracy": accuracy,
                "server_accuracy": accuracy,
                "pseudo_label_accuracy": NAN,
                "pseudo_label_coverage": 0.5,
                "bytes_up": 1_000_000,
                "bytes_down": 2_000_000,
                "seconds": 1.0,
                "virtual_seconds": 10.0 * number,
            }
            for label, seeds in accuracies.items()
            for seed, course in seeds.items()
            for number, accuracy in enumerate(course, 1)
        ]
    )


def test_gains_are_paired_by_seed_and_unknown_without_a_partner():
    runs = with_gains(runs_of({"base": {1: 0.5, 2: 0.7}, "ours": {2: 0.8, 3: 0.9, 1: 0.55}}))
    gains = runs.set_index(["label", "seed"]).gain
    assert gains["ours"].to_dict() == pytest.approx({2: 0.1, 3: NAN, 1: 0.05}, nan_ok=True)
    assert (gains["base"] == 0).all()


def summed_up(accuracies, courses=None):
    runs = runs_of(accuracies)
    courses = courses or {k: {s: [a] for s, a in v.items()} for k, v in accuracies.items()}
    rounds = spent_by_round(rounds_of(courses), runs)
    target = runs.ema_accuracy[runs.label == runs.label[0]].mean()
    return lines_of(with_reach(with_gains(runs), rounds, target)).set_index("label")


def test_a_line_sums_its_seeds_up():
    lines = summed_up({"base": {1: 0.5, 2: 0.7}, "ours": {1: 0.8, 2: 0.9, 3: 0.1}})
    assert lines.index.tolist() == ["base", "ours"]
    ours = lines.loc["ours"]
    assert ours.seeds == 3
    assert ours.ema_accuracy == pytest.approx(0.6)
    assert ours.ema_accuracy_std == pytest.approx(np.std([0.8, 0.9, 0.1], ddof=1))
    expected = stats.t.interval(0.95, 2, 0.6, stats.sem([0.8, 0.9, 0.1]))
    assert (ours.ema_accuracy_ci95_low, ours.ema_accuracy_ci95_high) == pytest.approx(expected)
    assert ours.server_accuracy == pytest.approx(0.3)
    assert (ours.paired_seeds, ours.gain_worst, ours.gain_best) == pytest.approx((2, 0.2, 0.3))
    assert np.isnan(ours.gain_ci95_low)
    assert np.isnan(ours.gain_ci95_high)
    assert (ours.megabytes, ours.megabytes_up, ours.megabytes_down) == pytest.approx((6, 2, 4))
    assert (ours.seconds, ours.clients_failed, ours.clients_inactive) == (2.0, 6, 60)


def test_of_one_seed_there_is_a_mean_and_no_spread():
    ours = summed_up({"base": {1: 0.5}, "ours": {1: 0.8}}).loc["ours"]
    assert (ours.ema_accuracy, ours.gain) == pytest.approx((0.8, 0.3))
    assert ours.filter(regex="std|ci95").isna().all()


def test_lines_without_a_common_seed_have_no_gain():
    ours = summed_up({"base": {1: 0.5}, "ours": {2: 0.8}}).loc["ours"]
    assert ours.paired_seeds == 0
    assert ours.filter(regex="gain").isna().all()


def test_what_it_took_to_get_there_is_a_mean_if_all_did():
    """The target is .6; seed 1 is there after round 2, seed 2 after 4 and not when it was not evaluated, seed 3 of others never."""
    courses = {
        "base": {1: [0.1, 0.6, 0.6, 0.6]},
        "ours": {1: [0.1, 0.7, 0.2, 0.7], 2: [0.1, 0.5, NAN, 0.6]},
        "others": {1: [0.1, 0.7, 0.2, 0.7], 3: [0.1, 0.2, 0.3, 0.4]},
    }
    ends = {"base": {1: 0.6}, "ours": {1: 0.7, 2: 0.6}, "others": {1: 0.7, 3: 0.4}}
    lines = summed_up(ends, courses)
    others = lines.loc["others"]
    assert others.reached == 1
    assert others.filter(regex="to_reach").isna().all()
    ours = lines.loc["ours"]
    assert (ours.reached, ours.rounds_to_reach) == (2, 3.0)
    assert ours.megabytes_to_reach == pytest.approx(9.0)
    assert ours.virtual_seconds_to_reach == pytest.approx(30.0)
    assert ours.seconds_to_reach == pytest.approx((1 * 2 / 4 + 2 * 4 / 4) / 2)  # of 1 s, of 2 s
    assert lines.loc["base", "rounds_to_reach"] == 2
    never = summed_up({"base": {1: 0.6}, "ours": {1: 0.4}}).loc["ours"]
    assert never.reached == 0
    assert np.isnan(never.rounds_to_reach)


def test_what_is_spent_by_the_last_round_is_what_the_run_took():
    """Rounds of a second each: what a run took is shared out among them."""
    runs = runs_of({"a": {3: 0.5, 5: 0.5}})
    rounds = spent_by_round(rounds_of({"a": {3: [0.1] * 4, 5: [0.1] * 4}}), runs)
    assert rounds.seconds.tolist() == pytest.approx([0.75, 1.5, 2.25, 3, 1.25, 2.5, 3.75, 5])
    assert rounds.megabytes.tolist() == [3, 6, 9, 12] * 2


def test_the_start_of_the_workers_is_left_out():
    """The first round takes nine seconds more than the others: of 13 s, the curve ends at 4 s, as that of the run after it."""
    rounds = rounds_of({"a": {1: [0.1] * 4}, "b": {1: [0.1] * 4}, "c": {1: [0.1]}})
    runs = runs_of({"a": {1: 0.5}, "b": {1: 0.5}, "c": {1: 0.5}}).assign(seconds=[13.0, 4.0, 1.0])
    rounds.loc[0, "seconds"] = 10.0
    spent = spent_by_round(rounds, runs)
    assert spent.seconds.tolist() == pytest.approx([1, 2, 3, 4, 1, 2, 3, 4, 1])


def test_curves_are_mean_worst_and_best_of_each_round():
    rounds = rounds_of({"b": {1: [0.1, NAN, 0.5], 2: [0.3, NAN, 0.9]}, "a": {1: [0.2]}})
    runs = runs_of({"b": {1: 0.5, 2: 0.9}, "a": {1: 0.2}})
    curves = curves_of(spent_by_round(rounds, runs))
    assert curves.label.tolist() == ["b", "b", "b", "a"]
    assert curves.seeds.tolist() == [2, 2, 2, 1]
    assert curves.ema_accuracy.tolist() == pytest.approx([0.2, NAN, 0.7, 0.2], nan_ok=True)
    assert curves.ema_accuracy_low.tolist() == pytest.approx([0.1, NAN, 0.5, 0.2], nan_ok=True)
    assert curves.ema_accuracy_high.tolist() == pytest.approx([0.3, NAN, 0.9, 0.2], nan_ok=True)
    assert curves.megabytes.tolist() == pytest.approx([3, 6, 9, 3])
    assert curves.seconds.tolist() == pytest.approx([0.5, 1, 1.5, 1])
    assert curves.virtual_seconds.tolist() == pytest.approx([10, 20, 30, 10])
