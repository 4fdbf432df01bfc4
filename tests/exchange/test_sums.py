"""Weighted sums in a fixed tree, and the two means that are right."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.exchange.sums import (
    WeightedSum,
    as_type,
    cohort_mean,
    is_finite,
    move_average,
    parts,
    population_mean,
    without,
)


def models(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return [
        {
            "w": generator.standard_normal((3, 4)).astype(np.float32),
            "n": np.array(generator.integers(100), dtype=np.int64),
        }
        for _ in range(count)
    ]


def summed(parts, weights, order=None):
    total = WeightedSum(len(parts))
    for position in order if order is not None else range(len(parts)):
        total.add(position, parts[position], weights[position])
    return total.result()


def same_bits(first, second) -> bool:
    return all(first[k].tobytes() == second[k].tobytes() for k in first)


@given(st.integers(1, 40), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_order_of_arrival_cannot_change_a_bit(count, random):
    parts = models(count)
    weights = [random.randint(1, 1000) for _ in parts]
    order = list(range(count))
    random.shuffle(order)
    first, first_weight = summed(parts, weights)
    second, second_weight = summed(parts, weights, order)
    assert first_weight == second_weight == sum(weights)
    assert same_bits(first, second)


def test_a_plain_running_sum_would_depend_on_the_order():
    """The property above is not vacuous: added left to right, these bits do change with the order."""
    parts = [{"w": np.array([x])} for x in (1e16, 1.0, -1e16, 1.0, 3.0)]
    sums = {
        float(sum(parts[i]["w"][0] for i in order)) for order in itertools.permutations(range(5))
    }
    assert len(sums) > 1
    trees = {
        summed(parts, [1] * 5, order)[0]["w"].tobytes()
        for order in itertools.permutations(range(5))
    }
    assert len(trees) == 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any))
@settings(max_examples=60, deadline=None)
def test_the_cohort_mean_equals_a_naive_one(weights):
    parts = models(len(weights))
    sums, total = summed(parts, weights)
    mean = cohort_mean(sums, total, parts[0])
    naive = sum(w * p["w"].astype(np.float64) for w, p in zip(weights, parts, strict=False)) / sum(
        weights
    )
    np.testing.assert_allclose(mean["w"], naive, rtol=1e-6)
    assert mean["w"].dtype == np.float32


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=33))
@settings(max_examples=60, deadline=None)
def test_equal_models_are_the_mean_exactly(weights):
    model = models(1, seed=3)[0]
    sums, total = summed([model] * len(weights), weights)
    assert same_bits(cohort_mean(sums, total, model), model)
    assert same_bits(population_mean(sums, total, 7 * total, model), model)


def test_the_population_mean_keeps_the_old_model_for_the_rest():
    old, first, second = models(3)
    sums, total = summed([first, second], [2, 3])
    mean = population_mean(sums, total, 20, old)
    expected = old["w"] + 2 / 20 * (first["w"] - old["w"]) + 3 / 20 * (second["w"] - old["w"])
    np.testing.assert_allclose(mean["w"], expected, rtol=1e-5)
    whole = population_mean(sums, total, total, old)
    np.testing.assert_allclose(whole["w"], cohort_mean(sums, total, old)["w"], rtol=1e-6)


def test_integers_stay_integers():
    counters = [{"n": np.array(n, dtype=np.int64)} for n in (10, 11)]
    sums, total = summed(counters, [1, 3])
    mean = cohort_mean(sums, total, counters[0])
    assert mean["n"].dtype == np.int64
    assert mean["n"] == 11  # 10.75, rounded


def test_skipped_positions_count_for_nothing():
    parts = models(5)
    total = WeightedSum(5)
    total.skip(1)
    for position in (4, 0, 3):
        total.add(position, parts[position], 2.0)
    total.add(2, parts[2], 0.0)
    sums, weight = total.result()
    assert weight == 6
    np.testing.assert_allclose(
        sums["w"],
        2.0 * (parts[0]["w"] + parts[3]["w"] + parts[4]["w"].astype(np.float64)),
        rtol=1e-6,
    )
    nothing = WeightedSum(3)
    for position in range(3):
        nothing.skip(position)
    assert nothing.result() == (None, 0.0)


def test_memory_is_logarithmic_when_replies_come_in_order():
    total = WeightedSum(1000)
    held = 0
    for position in range(1000):
        total.add(position, {"w": np.ones(1)}, 1.0)
        held = max(held, len(total._nodes))
    assert held <= 10


def test_misuse_is_an_error():
    total = WeightedSum(2)
    total.add(0, {"w": np.ones(1)}, 1.0)
    with pytest.raises(ValueError, match="twice"):
        total.add(0, {"w": np.ones(1)}, 1.0)
    with pytest.raises(ValueError, match="neither added nor skipped"):
        total.result()
    with pytest.raises(ValueError, match="not among"):
        total.add(2, {"w": np.ones(1)}, 1.0)
    with pytest.raises(ValueError, match="at least one"):
        WeightedSum(0)


def test_finite_and_moving_average():
    assert is_finite({"w": np.ones(2), "n": np.array(3)})
    assert not is_finite({"w": np.array([1, np.inf])})
    assert not is_finite({"w": np.array([np.nan])})
    average = {"w": np.zeros(2, np.float32), "mean": np.zeros(2, np.float32), "n": np.array(1)}
    latest = {"w": np.ones(2, np.float32), "mean": np.ones(2, np.float32), "n": np.array(5)}
    moved = move_average(average, latest, 0.75, {"mean"})
    assert moved["w"].tolist() == [0.25, 0.25]
    assert moved["mean"].tolist() == [1, 1]
    assert moved["n"] == 5


@given(st.integers(1, 60), st.integers(1, 20), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_parts_summed_apart_in_any_order_give_the_bits_of_the_whole(size, count, random):
    """What workers do: each sums some nodes of the tree by itself, some of them cut around a place that is run again."""
    given_models = models(size)
    weights = [random.randint(0, 9) for _ in given_models]
    whole, whole_weight = summed(given_models, weights)
    spans = parts((0, size), count)
    assert [place for span in spans for place in range(*span)] == list(range(size))
    assert len(spans) == min(count, size)
    lost = random.choice(spans)
    place = random.randrange(*lost)
    spans.remove(lost)
    around = without(lost, place)
    assert sorted([*around, (place, place + 1)]) == sorted({*around, (place, place + 1)})
    spans += [*around, (place, place + 1)]
    random.shuffle(spans)
    total = WeightedSum(size)
    for low, high in spans:
        below = WeightedSum(high - low)
        for i in range(low, high):
            below.add(i - low, given_models[i], weights[i])
        total.add_part((low, high), *frozen(*below.result()))
    sums, weight = total.result()
    assert weight == whole_weight
    assert (sums is None) == (whole is None)
    assert sums is None or same_bits(sums, whole)


def frozen(sums, weight):
    """Return sums as they come out of shared memory: read-only."""
    for array in (sums or {}).values():
        array.flags.writeable = False
    return sums, weight


def test_what_is_no_node_of_the_tree_cannot_be_added():
    total = WeightedSum(10)
    for span in ((0, 4), (1, 3), (4, 6), (9, 11), (3, 3), (-1, 1)):
        with pytest.raises(ValueError, match=r"no node|not among"):
            total.add_part(span, None, 0.0)
    total.add_part((0, 5), None, 0.0)
    total.add_part((5, 10), None, 0.0)
    assert total.result() == (None, 0.0)


def test_values_too_large_for_their_type_become_infinite_without_a_warning():
    like = np.zeros(2, np.float32)
    assert np.isinf(as_type(np.array([1e39, -1e39]), like)).all()
