"""RSCFed: weights worked out by hand, what a distance sees, and the sub-cohorts of a round."""

import itertools
import math

import numpy as np
import pytest

from fedssl.exchange import protocol
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.replies import Reply
from fedssl.strategies.rscfed import RSCFed, consensus, distances_to, weigh_by_closeness

F32 = np.float32


def reply(model, size=100, labeled=0, node=1):
    metrics = {protocol.NUM_EXAMPLES: float(size), protocol.NUM_LABELED: float(labeled)}
    arrays = {name: np.asarray(array) for name, array in model.items()}
    return Reply(node, metrics, arrays={protocol.ARRAYS: arrays})


def weights_of(exponents, factors):
    each = [
        factor * math.exp(-exponent) for exponent, factor in zip(exponents, factors, strict=True)
    ]
    return [one / sum(each) for one in each]


# ---- weights ----


def test_a_client_counts_by_size_and_closeness():
    """beta d / n = 2 and 1, so the weights are e^-2 and e^-1 over their sum."""
    weights = weigh_by_closeness(np.array([100.0, 100.0]), np.array([0.02, 0.01]), 1e4)
    np.testing.assert_allclose(weights / weights.sum(), [0.26894142, 0.73105858], rtol=1e-7)


def test_a_sub_cohort_by_hand():
    """The mean by size is (100 * .04 + 300 * 0) / 400 = .01, so d = (.03, .01) and beta d / n = (3, 1/3)."""
    found = consensus([reply({"w": [0.04]}, 100), reply({"w": [0.0]}, 300)], RSCFed())
    expected = weights_of([3, 1 / 3], [100, 300])
    np.testing.assert_allclose(found.distances, [0.03, 0.01], rtol=1e-12)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    np.testing.assert_allclose(found.weights[0], 0.0226369, rtol=1e-5)
    np.testing.assert_allclose(found.model["w"], [0.04 * expected[0]], rtol=1e-12)


def test_where_a_client_has_labels_distance_counts_less_and_the_client_more():
    """With beta 100: beta d / n = (.03, 1/300); the labeled client's weight times 6, after the distance."""
    replies = [reply({"w": [0.04]}, 100), reply({"w": [0.0]}, 300, labeled=1)]
    found = consensus(replies, RSCFed())
    np.testing.assert_allclose(found.distances, [0.03, 0.01], rtol=1e-12)
    np.testing.assert_allclose(found.weights, weights_of([0.03, 1 / 300], [100, 1800]), rtol=1e-12)
    plain = consensus(replies, RSCFed(labeled_boost=1, labeled_distance_weight=1e4))
    np.testing.assert_allclose(plain.weights, weights_of([3, 1 / 3], [100, 300]), rtol=1e-12)


@pytest.mark.parametrize("labeled", [0, 5])
def test_equal_models_count_by_size_and_give_the_very_model(labeled):
    draw = np.random.default_rng(0)
    model = {
        "w": draw.standard_normal((3, 5)).astype(F32), "b": F32(1 / 3), "steps": np.array(7),
    }  # fmt: skip
    sizes = [60, 40, 85, 101, 57]
    replies = [reply(model, size, labeled) for size in sizes]
    found = consensus(replies, RSCFed())
    np.testing.assert_allclose(found.weights, np.array(sizes) / sum(sizes), rtol=1e-9)
    strategy = strategy_of(sample=5, sub_cohorts=2)
    after = strategy.aggregate(1, model, dict(enumerate(replies * 2)), ())
    assert {n: a.dtype for n, a in after.items()} == {
        n: np.asarray(a).dtype for n, a in model.items()
    }
    assert all(
        after[name].tobytes() == np.asarray(array).tobytes() for name, array in model.items()
    )


@pytest.mark.parametrize("beta", [1e4, 1e9, 1e290])
def test_far_models_fade_to_nothing_and_never_to_nan(beta):
    """All are so far away that every exponential alone is 0; the closest one has all the weight."""
    weights = weigh_by_closeness(np.array([1.0, 1.0, 2.0]), np.array([9e4, 8e4, 1.7e5]), beta)
    assert weights.tolist() == [0, 1, 0]
    found = consensus([reply({"w": [F32(1e10)]}, 1), reply({"w": [F32(-1e10)]}, 3)], RSCFed())
    assert found.weights.tolist() == [0, 1]
    assert found.model["w"].tolist() == [-1e10]


# ---- distances ----


def test_a_distance_is_the_sum_of_the_norms_of_tensors_in_any_order():
    """Norms 5 of (3, 4) and 2 of a scalar: 7, and not the norm sqrt(29) of all together."""
    mean = {"a": np.zeros((1, 2)), "b": np.zeros(())}
    model = {"a": np.array([[3, 4]], F32), "b": np.array(-2, F32)}
    assert distances_to(mean, [model]).tolist() == [7]
    draw = np.random.default_rng(1)
    tensors = {n: draw.standard_normal((4, 3)) * 10.0**n for n in range(-8, 8, 3)}
    mean = {str(n): np.zeros((4, 3)) for n in tensors}
    found = {
        distances_to(mean, [{str(n): tensors[n] for n in order}])[0]
        for order in itertools.permutations(tensors)
    }
    assert len(found) == 1


def test_the_layout_of_a_tensor_in_memory_moves_no_bit():
    array = np.random.default_rng(2).standard_normal((37, 53)).astype(F32)
    mean = {"w": np.full((37, 53), 0.1)}
    ours, theirs = distances_to(mean, [{"w": array}, {"w": np.asfortranarray(array)}])
    assert ours == theirs


@pytest.mark.parametrize("buffers", [(), ("mean", "steps")])
def test_counts_and_statistics_are_averaged_and_not_measured(buffers):
    """The final weights are 1/4 and 3/4: both models are equally far per image from the mean by size."""
    rows = [(0.0, 0.0, 10), (4.0, 8.0, 15)]
    sizes = [100, 300]
    replies = [
        reply({"w": [F32(w)], "mean": [F32(m)], "steps": np.array(s)}, n)
        for (w, m, s), n in zip(rows, sizes, strict=True)
    ]
    settings = RSCFed(distance_weight=0.0)
    found = consensus(replies, settings, buffers)
    assert found.weights.tolist() == [0.25, 0.75]
    # The mean by size is 3; the statistics' is 6.
    assert found.distances.tolist() == ([3, 1] if buffers else [3 + 6, 1 + 2])
    strategy = strategy_of(sample=2, sub_cohorts=1, distance_weight=0.0)
    arrays = replies[0].arrays[protocol.ARRAYS]
    after = strategy.aggregate(1, arrays, dict(enumerate(replies)), buffers)
    assert after["mean"].tolist() == [6]
    assert after["steps"] == 14  # 13.75, rounded and not cut
    assert after["steps"].dtype == arrays["steps"].dtype


def test_buffers_have_the_weights_of_the_parameters():
    replies = [reply({"w": [0.04], "mean": [1.0]}, 100), reply({"w": [0.0], "mean": [5.0]}, 300)]
    found = consensus(replies, RSCFed(), ("mean",))
    np.testing.assert_allclose(found.weights, weights_of([3, 1 / 3], [100, 300]), rtol=1e-12)
    np.testing.assert_allclose(found.model["mean"], found.weights @ [1.0, 5.0], rtol=1e-12)


# ---- the sub-cohorts of a round ----


def strategy_of(sample=2, clients=10, over_selection=1.0, available=None, **settings):
    """Return the strategy after it has drawn its first round."""
    cohorts = Cohorts(Census.unknown(clients), sample, 3, over_selection, available)
    strategy = RSCFed(**settings).build(cohorts)
    strategy.select(1)
    return strategy


def test_sub_cohorts_are_seeded_draws_without_replacement_and_independent():
    strategy = strategy_of(sample=4)
    rounds = [np.reshape(strategy.select(r), (3, 4)).tolist() for r in range(1, 401)]
    assert all(len(set(own)) == 4 and own == sorted(own) for one in rounds for own in one)
    assert rounds[7] == np.reshape(strategy_of(sample=4).select(8), (3, 4)).tolist()
    # Client 0 is in a sub-cohort with probability 4/10, in two of the three with that of a binomial law.
    times = np.bincount([sum(0 in own for own in one) for one in rounds], minlength=4) / 400
    expected = [0.6**3, 3 * 0.4 * 0.6**2, 3 * 0.4**2 * 0.6, 0.4**3]
    np.testing.assert_allclose(times, expected, atol=5 * math.sqrt(0.25 / 400))
    plain = strategy.cohorts.draw(1)
    assert len({tuple(own) for own in (*rounds[0], plain)}) > 1


def test_over_selection_and_availability_hold_in_every_sub_cohort():
    wide = strategy_of(sample=2, over_selection=1.5)
    assert len(wide.select(5)) == 9
    few = strategy_of(sample=4, available=np.array([2, 7, 8]))
    assert few.select(5) == [2, 7, 8] * 3


@pytest.mark.parametrize(
    ("asked", "over_selection", "wanted"),
    [
        ([0, 1, 2, 3], 1.0, 4),  # one cohort of four
        ([0, 1, 2, 3, 4, 5], 1.5, 4),  # the same with over-selection
        ([0, 1, 2, 3, 2, 3, 4, 5], 1.0, 6),  # two sub-cohorts that share two clients
        ([0, 1, 2, 3, 4, 5, 6, 7], 1.0, 8),  # two that share none: all are wanted
        ([*range(9), 0, 1, 2], 1.5, 6),  # two of six with over-selection
        ([*range(10), 0, 1, 2], 1.1, 10),  # 9.09, rounded up
    ],
)
def test_a_round_wants_its_different_clients(asked, over_selection, wanted):
    assert Cohorts(Census.unknown(10), 4, 0, over_selection).num_wanted(asked) == wanted


def test_the_next_model_is_the_plain_mean_of_the_consensus_models():
    """Two sub-cohorts of two; beta 0. By size: (0 * 1 + 4 * 3) / 4 = 3, and (2 * 1 + 2 * 1) / 2 = 2; their mean is 2.5."""
    strategy = strategy_of(sub_cohorts=2, distance_weight=0.0)
    rows = [(0.0, 100), (4.0, 300), (2.0, 10), (2.0, 10)]
    replies = {place: reply({"w": [F32(w)]}, n) for place, (w, n) in enumerate(rows)}
    start = {"w": np.array([9], F32)}
    assert strategy.conclude(1, start, replies)["w"].tolist() == [2.5]
    # All clients of the first sub-cohort fail: the other one's consensus is the model.
    del replies[0], replies[1]
    assert strategy.conclude(1, start, replies)["w"].tolist() == [2]
    # One client of the second sub-cohort fails, and another has no images.
    replies = {1: reply({"w": [F32(4)]}, 300), 3: reply({"w": [F32(7)]}, 0)}
    assert strategy.conclude(1, start, replies)["w"].tolist() == [4]
    assert strategy.conclude(1, start, {3: replies[3]})["w"].tolist() == [9]
    assert strategy.conclude(1, start, {})["w"].tolist() == [9]


def test_the_order_in_which_replies_come_moves_no_bit():
    draw = np.random.default_rng(4)
    strategy = strategy_of(sample=5)
    model = {"w": (8, 9), "b": (9,)}
    replies = {
        place: reply({n: draw.standard_normal(s).astype(F32) for n, s in model.items()}, 50 + place, place == 3)
        for place in range(15)
    }  # fmt: skip
    arrays = {name: np.zeros(shape, F32) for name, shape in model.items()}
    first = strategy.conclude(1, arrays, replies)
    again = strategy.conclude(1, arrays, dict(reversed(replies.items())))
    assert all(again[name].tobytes() == array.tobytes() for name, array in first.items())


def test_what_a_round_measures():
    """Sub-cohorts of weights (1/4, 3/4) and (1/2, 1/2): 1 / sum of squares is 1.6 and 2."""
    no_beta = {"distance_weight": 0.0, "labeled_distance_weight": 0.0}
    strategy = strategy_of(sub_cohorts=2, labeled_boost=1.0, **no_beta)
    rows = [(0.0, 100, 0), (4.0, 300, 300), (2.0, 10, 0), (4.0, 10, 0)]
    replies = {place: reply({"w": [F32(w)]}, n, k) for place, (w, n, k) in enumerate(rows)}
    strategy.conclude(1, {"w": np.zeros(1, F32)}, replies)
    expected = {
        "distance_mean": (3 + 1 + 1 + 1) / 4,
        "distance_max": 3,
        "effective_clients": 1.8,
        "labeled_weight": 0.375,
    }
    assert strategy.numbers() == pytest.approx(expected)
    strategy.select(2)
    assert strategy.numbers() == {}  # nothing of the last round stays if no reply counts
