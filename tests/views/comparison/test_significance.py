"""Tests of lines agree with scipy's for two lines, keep their promise of few false alarms, and group what is not apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedssl.views.comparison.significance import (
    image_test,
    letters_of,
    seed_test,
    spread_factor,
)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_two_lines_are_tested_by_students_paired_t(seed):
    values = np.random.default_rng(seed).normal(0.9, 0.01, size=(4, 2))
    found = seed_test(values)
    expected = stats.ttest_rel(values[:, 1], values[:, 0]).pvalue
    assert found.p == pytest.approx([1, expected], abs=1e-6)
    assert found.apart[0, 1] == (expected < 0.05)


def test_seeds_that_share_images_widen_the_spread():
    """The digits table's factor by hand: 360 of 1,797 images are held out, five seeds: sqrt((1/5 + 1/4) / (1/5)) = 1.5."""
    assert np.sqrt(spread_factor(5, 0.25) / spread_factor(5, 0)) == pytest.approx(1.5)
    values = np.array([[0.90, 0.93], [0.91, 0.93], [0.92, 0.95]])
    assert seed_test(values, 0.25).p[1] > seed_test(values).p[1]


def test_a_pair_with_more_spread_than_the_others_is_tested_by_its_own():
    """The last line jumps by .2 from seed to seed. By the common spread alone, the two would be told apart."""
    steady = np.array([[0.90, 0.91, 0.92, 0.905]] * 5) + np.arange(5)[:, None] * 0.001
    jumping = np.array([[0.6], [0.8], [0.7], [0.9], [0.65]])
    found = seed_test(np.concatenate([steady, jumping], axis=1))
    alone = stats.ttest_rel(steady[:, 0], jumping[:, 0]).pvalue
    assert found.p[4] > alone > 0.01


def test_lines_without_any_spread_differ_if_their_means_do():
    found = seed_test(np.tile([0.9, 0.9, 0.8], (3, 1)))
    assert found.p == pytest.approx([1, 1, 0])
    assert found.apart.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_one_seed_or_one_line_cannot_be_tested():
    assert seed_test(np.array([[0.9, 0.8]])) is None
    assert seed_test(np.array([[0.9], [0.8]])) is None
    assert image_test(np.ones((5, 1), dtype=bool), np.arange(5)) is None


def test_alike_lines_are_hardly_ever_told_apart_by_seeds():
    """Six alike lines have fifteen pairs: without a correction, a third of the comparisons would tell some pair apart."""
    generator = np.random.default_rng(0)
    alarms = [seed_test(generator.normal(0.9, 0.01, (4, 6))).apart.any() for _ in range(200)]
    assert np.mean(alarms) < 0.1


def test_alike_lines_are_hardly_ever_told_apart_by_images():
    generator = np.random.default_rng(0)
    alarms = []
    for _ in range(60):
        easy = generator.beta(8, 1, size=(150, 1)).repeat(2, axis=0)
        right = generator.random((300, 6)) < easy
        alarms.append(image_test(right, np.arange(150).repeat(2)).apart.any())
    assert np.mean(alarms) < 0.15


def test_the_test_over_images_has_mcnemars_error():
    generator = np.random.default_rng(0)
    right = generator.random((2_000, 2)) < [0.8, 0.83]
    found = image_test(right, np.arange(2_000))
    more, less = found.only[1, 0], found.only[0, 1]
    assert more == (right[:, 1] & ~right[:, 0]).sum()
    assert found.gain[1, 0] == pytest.approx((more - less) / 2_000)
    by_hand = np.sqrt(more + less - (more - less) ** 2 / 2_000) / 2_000
    assert found.error[1, 0] == pytest.approx(by_hand, rel=0.05)
    expected = stats.binomtest(int(more), int(more + less)).pvalue
    assert found.p[1] == pytest.approx(expected, rel=0.3)


def test_an_image_counts_once_however_many_seeds_have_it():
    """Three copies of every prediction are no more evidence than one."""
    right = np.random.default_rng(0).random((500, 2)) < [0.8, 0.85]
    once = image_test(right, np.arange(500))
    thrice = image_test(right.repeat(3, axis=0), np.arange(500).repeat(3))
    assert thrice.error == pytest.approx(once.error)
    assert thrice.p == pytest.approx(once.p)
    as_if_independent = image_test(right.repeat(3, axis=0), np.arange(1_500))
    assert as_if_independent.error[1, 0] < 0.7 * once.error[1, 0]


def test_lines_that_predict_the_same_are_not_apart():
    right = np.random.default_rng(0).random((100, 1)) < 0.8
    found = image_test(np.repeat(right, 3, axis=1), np.arange(100))
    assert found.p.tolist() == [1, 1, 1]
    assert not found.apart.any()


def test_letters_by_hand():
    apart = np.zeros((3, 3), dtype=bool)
    assert letters_of(apart) == ["a", "a", "a"]
    apart[0, 2] = apart[2, 0] = True
    assert letters_of(apart) == ["a", "ab", "b"]
    assert letters_of(~np.eye(3, dtype=bool)) == ["a", "b", "c"]
    assert letters_of(~np.eye(30, dtype=bool)) == [""] * 30


@given(st.integers(2, 8), st.integers(0, 10_000))
def test_two_lines_share_a_letter_if_and_only_if_they_are_not_apart(lines, seed):
    drawn = np.random.default_rng(seed).random((lines, lines)) < 0.4
    apart = np.triu(drawn, 1) | np.triu(drawn, 1).T
    letters = letters_of(apart)
    for one in range(lines):
        for other in range(lines):
            assert bool(set(letters[one]) & set(letters[other])) == (not apart[one, other])
