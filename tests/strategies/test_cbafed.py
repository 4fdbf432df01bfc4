"""CBAFed's residual connections: places worked out by hand, rounds without replies, buffers, and new parameters."""

import numpy as np
import pytest

from fedssl.core.errors import InputError
from fedssl.exchange.census import Census, Cohorts
from fedssl.experiment.families import STRATEGIES


def built(**settings):
    section = STRATEGIES.build({"kind": "cbafed", **settings})
    return section.build(Cohorts(Census.unknown(4), 2, seed=0))


def path(strategy, start, means):
    """Return where one number goes, round by round; None: no reply counts."""
    places = []
    for server_round, mean in enumerate(means, start=1):
        old = {"w": np.float32([places[-1] if places else start])}
        sums = None if mean is None else {"w": np.array([2.0 * mean])}
        places.append(float(strategy.conclude(server_round, old, sums, 2.0)["w"][0]))
    return places


def test_every_fifth_round_goes_half_the_way_back_to_the_last_connection():
    """It begins at 8; (8 + 16) / 2 = 12 in round 5, and (12 + 20) / 2 = 16 in round 10."""
    means = [1.0, 2.0, 3.0, 4.0, 16.0, 6.0, 7.0, 8.0, 9.0, 20.0, 11.0]
    expected = [1.0, 2.0, 3.0, 4.0, 12.0, 6.0, 7.0, 8.0, 9.0, 16.0, 11.0]
    assert path(built(), 8.0, means) == expected


def test_share_and_distance_are_settings():
    assert path(built(every=2, share=0.25), 8.0, [1.0, 4.0, 1.0, 9.0]) == [1.0, 5.0, 1.0, 8.0]
    assert path(built(every=1, share=0.0), 8.0, [1.0, 4.0, 1.0]) == [1.0, 4.0, 1.0]


def test_a_round_without_replies_puts_the_connection_off():
    assert path(built(every=2), 8.0, [1.0, None, 4.0, 5.0, 2.0]) == [1.0, 1.0, 6.0, 5.0, 4.0]


def test_statistics_are_those_of_the_mean():
    strategy = built(every=1)
    arrays = {"w": np.float32([0.0]), "var": np.float32([4.0]), "steps": np.int64(7)}
    sums = {"w": np.array([4.0]), "var": np.array([2.0]), "steps": np.array(18.0)}
    found = strategy.conclude(1, arrays, sums, 2.0, buffers=("var", "steps"))
    assert (found["w"], found["var"], found["steps"]) == ([1.0], [1.0], 9)
    assert set(strategy.old) == {"w"}
    assert found["w"].dtype == np.float32


def test_a_new_parameter_waits_for_the_second_connection():
    strategy = built(every=1)
    path(strategy, 8.0, [4.0])
    both = {"w": np.float32([6.0]), "new": np.float32([0.0])}
    sums = {"w": np.array([4.0]), "new": np.array([6.0])}
    assert strategy.conclude(2, both, sums, 2.0) == {"w": [4.0], "new": [3.0]}
    assert strategy.conclude(3, both, sums, 2.0) == {"w": [3.0], "new": [3.0]}


def test_what_it_keeps_goes_on():
    means = [1.0, 2.0, 3.0, 4.0]
    whole, first, second = built(every=3), built(every=3), built(every=3)
    expected = path(whole, 8.0, means)
    path(first, 8.0, means[:2])
    second.take_up(first.kept())
    old = {"w": np.float32([2.0])}
    assert second.conclude(3, old, {"w": np.array([6.0])}, 2.0)["w"] == expected[2] == 5.5


@pytest.mark.parametrize("settings", [{"every": 0}, {"share": 1.0}, {"share": -0.1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        built(**settings)


def test_it_weighs_by_labels_and_pseudo_labels():
    assert built().weigh({"num-confident": 7.0}) == 7.0
