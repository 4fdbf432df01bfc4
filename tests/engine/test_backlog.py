"""The backlog of a round: every request runs once, lost requests run again, and none runs more often than allowed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.engine.backlog import MOST_CALLS, Backlog, num_parts


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 2), st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_is_lost_every_unit_is_done_or_given_up_for_a_reason(units, count, retries, data):
    backlog = Backlog(units, count, retries)
    done: list[int] = []
    failed: list[int] = []
    killers = data.draw(st.sets(st.integers(0, units - 1), max_size=3))
    calls = 0
    while backlog:
        calls += 1
        span = backlog.take()
        culprits = killers & set(range(*span))
        if not culprits:
            done += range(*span)
            continue
        known = data.draw(st.booleans())
        failed += backlog.lost(span, min(culprits) if known else None)
    assert sorted(done + failed) == list(range(units))
    assert set(failed) == killers
    assert calls <= 10 * units + 100


def test_who_loses_workers_costs_the_others_nothing_but_another_run():
    backlog = Backlog(4, 1, retries=1)
    assert backlog.lost(backlog.take(), None) == []
    alone = [backlog.take() for _ in range(4)]
    assert alone == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert backlog.lost((2, 3), None) == []
    assert backlog.lost(backlog.take(), None) == [2]


def test_a_known_culprit_is_tried_again_and_the_others_stay_together():
    backlog = Backlog(8, 1, retries=1)
    assert backlog.lost(backlog.take(), 5) == []
    waiting = []
    while backlog:
        waiting.append(backlog.take())
    assert sorted(waiting) == [(0, 4), (4, 5), (5, 6), (6, 8)]


def test_long_parts_first_and_among_them_the_first_ones():
    backlog = Backlog(10, 4, retries=0)
    taken = [backlog.take() for _ in range(4)]
    assert [high - low for low, high in taken] == [3, 3, 2, 2]
    assert taken[0] < taken[1]
    assert taken[2] < taken[3]


@given(st.integers(1, 5000), st.integers(1, 16), st.floats(1e-5, 10))
def test_as_many_calls_as_pay_and_no_more_than_memory_bears(units, workers, seconds):
    count = num_parts(units, workers, seconds)
    assert workers <= count <= workers * MOST_CALLS
    assert num_parts(units, workers, None) == workers
