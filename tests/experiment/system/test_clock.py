"""Virtual time: the clients that make a round are computed, in seconds that add up, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.core.errors import InputError, RunFailed
from fedssl.experiment.system.availability.schedule import Schedule
from fedssl.experiment.system.clock import VirtualClock
from fedssl.experiment.system.devices import Devices, draw_devices
from fedssl.experiment.system.laws.fixed import Fixed
from fedssl.experiment.system.laws.lognormal import Lognormal
from fedssl.experiment.system.section import System


def clock(clients=6, seed=0, **settings):
    return VirtualClock(System(**settings), clients, seed)


def close(a_clock, seconds, wanted=None, clients=None, server_round=1):
    clients = list(range(len(seconds))) if clients is None else clients
    fates = a_clock.close_round(
        server_round, clients, len(clients) if wanted is None else wanted, np.array(seconds, float)
    )
    return [fates[client].status for client in clients]


def test_a_rounds_seconds_are_the_lines_and_the_works():
    """1 MB down at 8 Mbit/s is 1 s, 1 MB up at 2 Mbit/s is 4 s, 300 images at 100 a second are 3 s."""
    one = np.ones(2)
    devices = Devices(speed=100 * one, download=8 * one, upload=2 * one, dropout=0 * one)
    seconds = devices.round_seconds(np.array([300.0, 0.0]), 1e6, 1e6)
    assert seconds.tolist() == [8.0, 5.0]


def test_everybody_makes_it_and_the_slowest_ends_the_round():
    a_clock = clock()
    assert close(a_clock, [3, 1, 2]) == ["ok", "ok", "ok"]
    assert a_clock.now == 3
    close(a_clock, [5, 1, 2])
    assert a_clock.now == 8


def test_a_deadline_leaves_the_slow_behind_and_is_waited_for():
    a_clock = clock(deadline=2.5)
    assert close(a_clock, [3, 1, 2]) == ["late", "ok", "ok"]
    assert a_clock.now == 2.5
    assert close(a_clock, [2.5, 1, 2]) == ["ok", "ok", "ok"]  # just in time
    assert a_clock.now == 5.0


def test_over_selection_ends_with_the_last_one_wanted():
    a_clock = clock(over_selection=2.0, deadline=10.0)
    assert close(a_clock, [4, 1, 3, 2], wanted=2) == ["surplus", "ok", "surplus", "ok"]
    assert a_clock.now == 2


def test_of_equally_fast_clients_all_have_their_turn():
    """Ten of twenty equal clients count each round: over 200 rounds each about 100 times, by no fixed order."""
    a_clock = clock(clients=20)
    counted = np.zeros(20)
    for server_round in range(1, 201):
        fates = close(a_clock, np.ones(20), wanted=10, server_round=server_round)
        assert fates.count("ok") == 10
        counted += [fate == "ok" for fate in fates]
    assert 70 < counted.min() <= counted.max() < 130


def test_the_servers_own_training_takes_its_time():
    a_clock = clock(server_speed=50.0)
    a_clock.train_at_server(200)
    assert a_clock.now == 4
    at_once = clock()
    at_once.train_at_server(200)
    assert at_once.now == 0


def test_the_lost_are_drawn_by_round_and_client_alone():
    a_clock = clock(clients=1000, dropout=Fixed(value=0.3))
    seconds = np.ones(1000)
    everybody = close(a_clock, seconds)
    assert abs(everybody.count("dropped") - 300) < 60
    few = [5, 17, 900]
    again = clock(clients=1000, dropout=Fixed(value=0.3))
    assert close(again, seconds, clients=few) == [everybody[c] for c in few]
    assert close(again, seconds, server_round=2) != everybody


def test_without_a_deadline_the_server_goes_on_when_all_have_answered_that_can():
    a_clock = clock(dropout=Fixed(value=1.0))
    assert close(a_clock, [3, 1]) == ["dropped", "dropped"]
    assert a_clock.now == 3
    a_clock = clock(dropout=Fixed(value=1.0), deadline=7.0)
    close(a_clock, [3, 1])
    assert a_clock.now == 7


@given(
    seconds=st.lists(st.floats(0.01, 100), min_size=1, max_size=30),
    wanted=st.integers(1, 30),
    deadline=st.one_of(st.none(), st.floats(0.1, 120)),
    dropout=st.floats(0, 1),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_nobody_is_forgotten_and_time_never_runs_back(seconds, wanted, deadline, dropout, seed):
    a_clock = clock(len(seconds), seed, deadline=deadline, dropout=Fixed(value=dropout))
    fates = close(a_clock, seconds, wanted)
    assert len(fates) == len(seconds)
    assert fates.count("ok") <= wanted
    slowest_ok = max((s for s, f in zip(seconds, fates, strict=True) if f == "ok"), default=0)
    assert a_clock.now >= slowest_ok
    assert a_clock.now <= (max(seconds) if deadline is None else deadline)
    for second, fate in zip(seconds, fates, strict=True):
        if fate == "surplus":
            assert fates.count("ok") == wanted
            assert second >= slowest_ok
        if fate == "late":
            assert deadline is not None
            assert second > deadline
    again = clock(len(seconds), seed, deadline=deadline, dropout=Fixed(value=dropout))
    assert close(again, seconds, wanted) == fates
    assert again.now == a_clock.now


def timetable(tmp_path, text):
    path = tmp_path / "times.csv"
    path.write_text("client,start,end\n" + text)
    return path


def test_time_passes_until_somebody_comes(tmp_path):
    path = timetable(tmp_path, "0,100,200\n2,150,160\n")
    a_clock = clock(clients=3, availability=Schedule(path=path))
    assert a_clock.open_round(1).tolist() == [0]
    assert a_clock.now == 100
    a_clock.now = 155.0
    assert a_clock.open_round(2).tolist() == [0, 2]
    a_clock.now = 300.0
    with pytest.raises(RunFailed, match="ever available again"):
        a_clock.open_round(3)


def test_devices_are_drawn_once_by_seed():
    system = System(speed=Lognormal(median=50, sigma=1.0))
    first, again = (draw_devices(system, 5, 0) for _ in range(2))
    assert np.array_equal(first.speed, again.speed)
    assert not np.array_equal(first.speed, draw_devices(system, 5, 1).speed)
    assert (first.download == 20).all()


@pytest.mark.parametrize("field", ["speed", "download", "upload", "dropout"])
def test_what_no_device_can_be_is_refused(field):
    with pytest.raises(InputError, match=rf"system\.{field}: is -1\.0 at client 0"):
        clock(**{field: Fixed(value=-1.0)})
