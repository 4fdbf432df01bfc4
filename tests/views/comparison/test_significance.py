"""The test of lines agrees with scipy's, keeps its promise of few false alarms, and groups what is not apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedssl.views.comparison.significance import (
    Spread,
    counts_by_image,
    letters_of,
    probabilities,
    spread_factor,
    spread_over_seeds,
)


def gains(values):
    means = values.mean(0)
    return means[:, None] - means[None, :]


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_the_seeds_of_two_lines_are_tested_by_students_paired_t(seed):
    values = np.random.default_rng(seed).normal(0.9, 0.01, size=(4, 2))
    p = probabilities(gains(values), spread_over_seeds(values))
    expected = stats.ttest_rel(values[:, 1], values[:, 0]).pvalue
    assert p == pytest.approx(np.array([[1, expected], [expected, 1]]), abs=1e-6)


def test_the_images_of_two_lines_are_tested_by_mcnemars_test():
    generator = np.random.default_rng(0)
    right = generator.random((2_000, 2)) < [0.8, 0.83]
    found = counts_by_image(right, np.arange(2_000))
    more, less = int(found.only[1, 0]), int(found.only[0, 1])
    assert more == (right[:, 1] & ~right[:, 0]).sum()
    assert found.gain[1, 0] == pytest.approx((more - less) / 2_000)
    by_hand = (more + less - (more - less) ** 2 / 2_000) / 2_000**2
    assert found.spread.variance[1, 0] == pytest.approx(by_hand)
    p = probabilities(found.gain, found.spread)
    assert p[0, 1] == pytest.approx(2 * stats.norm.sf(abs(found.gain[1, 0]) / by_hand**0.5))


def test_the_same_disagreement_has_the_same_probability_however_many_images_agree():
    """Seven images to none: whether 353 or 9,993 others are named alike changes next to nothing."""
    found = []
    for count in (360, 10_000):
        right = np.ones((count, 2), dtype=bool)
        right[:7, 0] = False
        one = counts_by_image(right, np.arange(count))
        found.append(probabilities(one.gain, one.spread)[0, 1])
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_several_pairs_are_corrected_for():
    """Tukey's critical range of three lines and four degrees of freedom, from a table: 5.04."""
    spread = Spread(np.full((3, 3), 2.0), np.full((3, 3), 4.0))
    assert probabilities(np.full((3, 3), 5.04), spread)[0, 1] == pytest.approx(0.05, abs=0.001)


def test_seeds_that_share_images_widen_the_spread():
    """The digits table's factor by hand: 360 of 1,797 images are held out, five seeds: sqrt((1/5 + 1/4) / (1/5)) = 1.5."""
    assert np.sqrt(spread_factor(5, 0.25) / spread_factor(5, 0)) == pytest.approx(1.5)
    values = np.random.default_rng(0).normal(0.9, 0.01, (3, 2))
    wider, plain = (spread_over_seeds(values, overlap).variance[0, 1] for overlap in (0.25, 0))
    assert wider / plain == pytest.approx((1 / 3 + 0.25) * 3)


def test_a_pair_with_more_spread_than_the_others_is_tested_by_its_own():
    """The last line jumps by .2 from seed to seed; by the common spread and its many degrees of freedom it would be apart."""
    steady = np.array([[0.90, 0.91, 0.92, 0.905]] * 5) + np.arange(5)[:, None] * 0.001
    jumping = np.array([[0.6], [0.8], [0.7], [0.9], [0.65]])
    values = np.concatenate([steady, jumping], axis=1)
    spread = spread_over_seeds(values)
    assert spread.freedom[0].tolist() == [12, 12, 12, 12, 4]
    own = stats.ttest_rel(steady[:, 0], jumping[:, 0])
    assert probabilities(gains(values), spread)[0, 4] > own.pvalue > 0.01


def test_a_line_that_fails_on_one_seed_hides_no_difference_of_the_others():
    """The lines of Fashion-MNIST, A, IID: labels only, three methods and all labels; FixMatch fell to 57.8 % on the second seed."""
    steady = np.array(
        [
            [0.802, 0.804, 0.800, 0.809, 0.868],
            [0.818, 0.825, 0.826, 0.832, 0.863],
            [0.800, 0.811, 0.816, 0.818, 0.861],
        ]
    )
    failing = np.array([[0.777], [0.578], [0.771]])
    both = np.concatenate([steady, failing], axis=1)
    alone, beside = spread_over_seeds(steady), spread_over_seeds(both)
    assert beside.variance[:5, :5] == pytest.approx(alone.variance)
    assert beside.freedom[:5, :5].tolist() == alone.freedom.tolist()
    assert probabilities(gains(both), beside)[0, 4] < 0.05
    assert beside.freedom[5, :5].tolist() == [2] * 5  # by its own spread, as it is
    assert probabilities(gains(both), beside)[5].min() > 0.05


def test_lines_without_any_spread_differ_if_their_means_do():
    values = np.tile([0.9, 0.9, 0.8], (3, 1))
    p = probabilities(gains(values), spread_over_seeds(values))
    assert p == pytest.approx(np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]]), abs=1e-6)


def test_one_seed_has_no_spread():
    assert spread_over_seeds(np.array([[0.9, 0.8]])) is None
    assert spread_over_seeds(np.array([[0.9], [0.8]])) is None


def false_alarms(seeds, lines, seed_effect, *, repeats, unsteady=1.0):
    """Return how often any two lines are told apart that are alike in truth, under luck of seeds and of images at once.

    All seeds have the same 400 held-out images. An image is more or less difficult, and each line finds other images
    difficult; each line and seed is better or worse as a whole. The first line may be so more than the others.
    """
    generator = np.random.default_rng(0)
    alarms, images = 0, 400
    for _ in range(repeats):
        difficulty = generator.normal(1.2, 1, (images, 1)) + generator.normal(
            0, 0.7, (images, lines)
        )
        effects = generator.normal(0, seed_effect, (seeds, 1, lines))
        effects[..., 0] *= unsteady
        noise = generator.normal(0, 0.5, (seeds, images, lines))
        right = difficulty + effects + noise > 0
        by_image = counts_by_image(right.reshape(-1, lines), np.tile(np.arange(images), seeds))
        values = right.mean(1)
        spreads = [spread_over_seeds(values), by_image.spread]
        p = probabilities(gains(values), *(each for each in spreads if each is not None))
        alarms += bool((p < 0.05).any())
    return alarms / repeats


@pytest.mark.parametrize(
    ("seeds", "lines", "effect"),
    [(1, 4, 0.0), (3, 4, 0.08), (5, 2, 0.08), (5, 2, 0.2), (10, 4, 0.12)],
)
def test_alike_lines_are_told_apart_at_most_once_in_twenty(seeds, lines, effect):
    """Of 60 comparisons, seven or more false alarms happen once in twenty if the rate is .05, and here they do not."""
    assert false_alarms(seeds, lines, effect, repeats=60) <= 6 / 60


@pytest.mark.parametrize(("lines", "repeats"), [(4, 60), (8, 20)])
def test_an_unsteady_line_among_steady_ones_raises_few_false_alarms(lines, repeats):
    assert false_alarms(3, lines, 0.1, repeats=repeats, unsteady=10.0) <= 0.15


def test_an_image_counts_once_however_many_seeds_have_it():
    """Three copies of every prediction are no more evidence than one."""
    right = np.random.default_rng(0).random((500, 2)) < [0.8, 0.85]
    once = counts_by_image(right, np.arange(500)).spread.variance
    thrice = counts_by_image(right.repeat(3, axis=0), np.arange(500).repeat(3))
    assert thrice.spread.variance == pytest.approx(once)
    as_if_independent = counts_by_image(right.repeat(3, axis=0), np.arange(1_500))
    assert as_if_independent.spread.variance[1, 0] < 0.4 * once[1, 0]


def test_lines_that_predict_the_same_are_not_apart():
    right = np.random.default_rng(0).random((100, 1)) < 0.8
    found = counts_by_image(np.repeat(right, 3, axis=1), np.arange(100))
    assert probabilities(found.gain, found.spread) == pytest.approx(np.ones((3, 3)))


def test_letters_by_hand():
    apart = np.zeros((3, 3), dtype=bool)
    assert letters_of(apart) == ["a", "a", "a"]
    apart[0, 2] = apart[2, 0] = True
    assert letters_of(apart) == ["a", "ab", "b"]
    assert letters_of(~np.eye(3, dtype=bool)) == ["a", "b", "c"]
    assert letters_of(~np.eye(30, dtype=bool)) is None


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_two_lines_share_a_letter_if_and_only_if_they_are_not_apart(lines, seed):
    drawn = np.random.default_rng(seed).random((lines, lines)) < 0.4
    apart = np.triu(drawn, 1) | np.triu(drawn, 1).T
    letters = letters_of(apart)
    for one in range(lines):
        for other in range(lines):
            assert bool(set(letters[one]) & set(letters[other])) == (not apart[one, other])
