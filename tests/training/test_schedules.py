"""Schedules of the learning rate: FixMatch's cosine, half a period to a final share, milestones, and warm-up."""

import math

import pytest

from fedssl.core.errors import InputError
from fedssl.methods.base import Progress
from fedssl.training.optimization import Train
from fedssl.training.schedules import SCHEDULES


def factors(train, num_steps):
    """Return the factor of each step of a phase of two rounds."""
    half = num_steps // 2
    return [
        train.lr_factor(Progress(1 + step // half, 2, step % half, half))
        for step in range(num_steps)
    ]


def test_the_members_are_found():
    assert {"constant", "cosine", "step"} <= set(SCHEDULES.names())


def test_the_default_cosine_is_that_of_fixmatch_to_the_bit():
    train = Train(schedule="cosine")
    for step, found in enumerate(factors(train, 14)):
        assert found == math.cos(7 * math.pi / 16 * (step / 14))


def test_half_a_period_goes_from_the_whole_rate_to_the_final_share():
    """MoCo's and SimCLR's 1e-3 to 1e-5: the middle is the mean of both ends."""
    train = Train(schedule={"kind": "cosine", "final": 0.01})
    assert train.lr_factor(Progress(1, 10, 0, 4)) == 1
    assert train.lr_factor(Progress(6, 10, 0, 4)) == pytest.approx(0.505)
    assert train.lr_factor(Progress(11, 10, 0, 4)) == pytest.approx(0.01)
    assert factors(Train(schedule={"kind": "cosine", "final": 0.0}), 4) == pytest.approx(
        [1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2]
    )


def test_a_warm_up_rises_in_equal_steps_to_the_whole_rate():
    """A quarter of eight steps: 1/2 and 1; no step is lost at a rate of 0."""
    train = Train(schedule={"kind": "constant", "warm_up": 0.25})
    assert factors(train, 8) == [0.5, 1, 1, 1, 1, 1, 1, 1]
    half = Train(schedule={"kind": "constant", "warm_up": 0.5})
    assert factors(half, 8) == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]


def test_a_warm_up_of_no_whole_number_of_steps_ends_at_the_whole_rate():
    """.3 of eight steps are 2.4 steps: 1/2.4, 2/2.4, and 3/2.4 is cut to 1."""
    train = Train(schedule={"kind": "constant", "warm_up": 0.3})
    assert factors(train, 8)[:4] == pytest.approx([1 / 2.4, 2 / 2.4, 1, 1])


def test_the_schedule_spans_the_steps_after_the_warm_up():
    """Two of ten steps of warm-up, then the cosine over the other eight."""
    train = Train(schedule={"kind": "cosine", "final": 0.0, "warm_up": 0.2})
    wanted = [0.5, 1] + [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]
    assert factors(train, 10) == pytest.approx(wanted)
    steps = Train(schedule={"kind": "step", "warm_up": 0.2}, milestones=(0.5,), gamma=0.5)
    assert factors(steps, 10) == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5])


def test_a_warm_up_may_begin_anew_in_each_round():
    train = Train(schedule={"kind": "constant", "warm_up": 0.5}, schedule_over="round")
    assert factors(train, 8) == [0.5, 1, 1, 1, 0.5, 1, 1, 1]


def test_a_round_without_steps_has_a_factor():
    for schedule in ("constant", "cosine", {"kind": "cosine", "final": 0.1, "warm_up": 0.1}):
        for over in ("phase", "round"):
            train = Train(schedule=schedule, schedule_over=over)
            assert train.lr_factor(Progress(1, 3, 0, 0)) == 1


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"kind": "cosine", "final": 1.5}, r"train.schedule.final: is 1.5"),
        ({"kind": "cosine", "warm_up": 1.0}, r"train.schedule.warm_up: is 1.0"),
        ({"kind": "constant", "final": 0.5}, r"train.schedule.final: unknown key"),
        ("cosin", r"train.schedule.kind: there is no schedule 'cosin'; did you mean 'cosine'"),
    ],
)
def test_wrong_schedules_are_one_message(schedule, message):
    with pytest.raises(InputError, match=message):
        Train(schedule=schedule)
