"""Every availability gives a mask of K that is the same for all callers; waiting ends, or says that no client comes."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.core.errors import InputError, RunFailed
from fedssl.experiment.system.availability import AVAILABILITIES

SETTINGS = {
    "always": {},
    "random": {"probability": 0.5},
    "schedule": {"path": "times.csv"},
}
"""Some settings of each kind."""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Stand in a folder with a timetable of clients 0, 1 and 3."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, [(0, 0, 10), (1, 5, 20), (0, 30, 40), (3, 35.5, 36)])
    return tmp_path


def write(folder, intervals):
    lines = [f"{client},{start},{end}" for client, start, end in intervals]
    (folder / "times.csv").write_text("\n".join(["client,start,end", *lines]) + "\n")


def availability(kind, **settings):
    return AVAILABILITIES.build({"kind": kind, **SETTINGS[kind], **settings})


def there(law, now=0.0, server_round=1, attempt=0, num_clients=4, seed=0):
    return law.available(now, server_round, attempt, num_clients, seed)


def who(law, now, num_clients=4):
    return np.flatnonzero(there(law, now, num_clients=num_clients)).tolist()


def test_every_availability_is_tested():
    assert set(SETTINGS) == set(AVAILABILITIES.names())


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.usefixtures("here")
class TestEvery:
    @pytest.mark.parametrize("num_clients", [1, 2, 1000])
    @pytest.mark.parametrize("now", [0.0, 7.5, 1e9])
    def test_a_mask_that_is_the_same_again(self, kind, num_clients, now):
        mask = there(availability(kind), now, num_clients=num_clients)
        assert mask.dtype == np.bool_
        assert mask.shape == (num_clients,)
        kept = mask.copy()
        mask[:] = ~mask  # nobody else's
        assert np.array_equal(kept, there(availability(kind), now, num_clients=num_clients))

    def test_settings_survive_being_written_down(self, kind):
        assert AVAILABILITIES.build(availability(kind).to_dict()) == availability(kind)

    def test_a_hundred_thousand_clients_take_milliseconds(self, kind, here):
        num_clients = 100_000
        starts = np.random.default_rng(0).integers(0, 80_000, num_clients)
        write(here, zip(range(num_clients), starts, starts + 6000, strict=True))
        period = {"period": 86_400} if kind == "schedule" else {}
        law = availability(kind, **period)
        there(law, 20_000, num_clients=num_clients)  # reads the file
        took = []
        for attempt in range(5):
            begin = time.perf_counter()
            there(law, 20_000, attempt=attempt, num_clients=num_clients)
            law.next_change(20_000, num_clients)
            took.append(time.perf_counter() - begin)
        assert min(took) < 0.05


class TestAlways:
    def test_everybody_and_nothing_to_wait_for(self):
        assert there(availability("always")).all()
        assert availability("always").next_change(12.5, 4) == 12.5

    def test_it_is_the_default(self):
        assert AVAILABILITIES.build({}) == availability("always")


class TestRandom:
    def test_everybody_at_one(self):
        assert there(availability("random", probability=1), num_clients=5000).all()

    @pytest.mark.parametrize("prob", [0.01, 0.3, 0.9])
    def test_as_many_as_the_probability_says(self, prob):
        share = there(availability("random", probability=prob), num_clients=40_000).mean()
        assert share == pytest.approx(prob, abs=5 * (prob * (1 - prob) / 40_000) ** 0.5)

    def test_rounds_attempts_and_seeds_are_independent(self):
        """Two fair and independent masks agree at half of the clients, up to five deviations."""
        law = availability("random")
        masks = [
            there(law, server_round=server_round, attempt=attempt, num_clients=10_000, seed=seed)
            for server_round in (1, 2)
            for attempt in (0, 1)
            for seed in (0, 1)
        ]
        for i, first in enumerate(masks):
            for second in masks[:i]:
                assert (first == second).mean() == pytest.approx(0.5, abs=5 * 0.5 / 100)

    def test_the_hour_does_not_matter(self):
        law = availability("random")
        assert np.array_equal(there(law, 0, num_clients=100), there(law, 1e6, num_clients=100))

    def test_a_client_keeps_its_probability(self):
        """Half of the clients come always; over 40 rounds the others come at 0.2."""
        mix = {"kind": "choices", "values": [1.0, 0.2], "shares": [1, 1]}
        law = availability("random", probability=mix)
        came = sum(
            there(law, server_round=r, attempt=r % 3, num_clients=1000).astype(int)
            for r in range(1, 41)
        )
        assert (came == 40).sum() == 500
        others = came[came < 40]
        assert others.mean() == pytest.approx(8, abs=5 * (40 * 0.2 * 0.8 / 500) ** 0.5)

    def test_another_seed_is_another_mix(self):
        mix = {"kind": "choices", "values": [1.0, 1e-9], "shares": [1, 1]}
        law = availability("random", probability=mix)
        masks = [there(law, num_clients=100, seed=seed) for seed in (0, 1)]
        assert [mask.sum() for mask in masks] == [50, 50]
        assert not np.array_equal(*masks)

    def test_the_server_asks_again_after_a_while(self):
        assert availability("random").next_change(100, 4) == 160
        assert availability("random", retry=2.5).next_change(100, 4) == 102.5


class TestSchedule:
    @pytest.mark.parametrize(
        ("now", "clients"),
        [
            (0, [0]), (4.9, [0]), (5, [0, 1]), (9.99, [0, 1]), (10, [1]), (19, [1]), (20, []),
            (29, []), (30, [0]), (35.5, [0, 3]), (36, [0]), (40, []), (1e9, []),
        ],
    )  # fmt: skip
    @pytest.mark.usefixtures("here")
    def test_from_the_start_until_before_the_end(self, now, clients):
        assert who(availability("schedule"), now) == clients

    @pytest.mark.parametrize(
        ("now", "num_clients", "change"),
        [(0, 4, 5), (4, 4, 5), (5, 4, 30), (29, 4, 30), (30, 4, 35.5), (30.1, 5, 35.5), (0, 1, 30)],
    )
    @pytest.mark.usefixtures("here")
    def test_the_next_start_of_anybody_there_is(self, now, num_clients, change):
        assert availability("schedule").next_change(now, num_clients) == change

    @pytest.mark.parametrize(("now", "num_clients"), [(35.5, 4), (1e9, 4), (30, 3)])
    @pytest.mark.usefixtures("here")
    def test_nobody_will_ever_come(self, now, num_clients):
        with pytest.raises(RunFailed, match=r"no client is ever available again after \d+ s"):
            availability("schedule").next_change(now, num_clients)

    def test_nobody_of_these_clients_has_a_line(self, here):
        write(here, [(7, 0, 10)])
        law = availability("schedule", period=100)
        assert who(law, 5) == []
        with pytest.raises(RunFailed, match="no client is ever available again"):
            law.next_change(5, 4)

    @pytest.mark.usefixtures("here")
    def test_a_period_repeats_it(self):
        law = availability("schedule", period=50)
        for now in (0, 5, 15, 25, 35.75, 45):
            wanted = who(availability("schedule"), now)
            assert all(who(law, now + 50 * again) == wanted for again in (0, 1, 7, 10**6))
        assert law.next_change(36, 4) == 50
        assert law.next_change(50, 4) == 55
        assert law.next_change(5e7 + 40, 4) == 5e7 + 50

    def test_an_interval_goes_on_past_the_end_of_the_period(self, here):
        write(here, [(0, 79_200, 108_000)])  # 22:00 to 6:00
        law = availability("schedule", period=86_400)
        day = 86_400
        hours = [hour for hour in range(24) if who(law, 3 * day + hour * 3600) == [0]]
        assert hours == [0, 1, 2, 3, 4, 5, 22, 23]
        assert law.next_change(3 * day + 7 * 3600, 4) == 3 * day + 22 * 3600
        assert law.next_change(3 * day + 22 * 3600, 4) == 4 * day + 22 * 3600

    def test_a_whole_period_is_always(self, here):
        write(here, [(2, 3, 13)])
        law = availability("schedule", period=10)
        assert all(who(law, now) == [2] for now in np.arange(10, 60, 0.5))

    @given(
        starts=st.lists(st.floats(0, 0.999), min_size=1, max_size=5),
        length=st.floats(0.001, 1),
        period=st.one_of(st.none(), st.sampled_from([0.1, 1 / 3, 7.7, 86_400])),
        now=st.floats(0, 1e6),
    )
    @settings(max_examples=200, deadline=None)
    def test_somebody_comes_at_the_next_change_however_numbers_are_rounded(
        self, tmp_path_factory, starts, length, period, now
    ):
        """Waiting goes on in time and never ends where nobody is, or the server would wait forever."""
        unit = period or 1e6
        folder = tmp_path_factory.mktemp("times")
        rows = [
            (c, start * unit, start * unit + length * unit * 0.999)
            for c, start in enumerate(starts)
        ]
        write(folder, rows)
        law = availability("schedule", path=folder / "times.csv", period=period)
        for _ in range(4):
            try:
                change = law.next_change(now, len(starts))
            except RunFailed:
                assert period is None
                assert all(start <= now for _, start, _ in rows)
                return
            assert change > now
            assert there(law, change, num_clients=len(starts)).any()
            now = change

    @given(
        intervals=st.lists(
            st.tuples(st.integers(0, 5), st.integers(0, 19), st.integers(1, 20)), min_size=1
        ),
        now=st.integers(0, 100),
        period=st.sampled_from([None, 20]),
    )
    @settings(max_examples=200, deadline=None)
    def test_it_agrees_with_a_plain_search(self, tmp_path_factory, intervals, now, period):
        folder = tmp_path_factory.mktemp("times")
        write(folder, [(client, start, start + length) for client, start, length in intervals])
        law = availability("schedule", path=folder / "times.csv", period=period)
        shifts = [0] if period is None else [20 * again for again in range(-1, 8)]
        wanted = {
            client
            for client, start, length in intervals
            for shift in shifts
            if start + shift <= now < start + shift + length and client < 4
        }
        assert who(law, now) == sorted(wanted)
        later = [
            start + shift
            for client, start, _ in intervals
            for shift in shifts
            if start + shift > now and client < 4
        ]
        if later:
            assert law.next_change(now, 4) == min(later)
        else:
            with pytest.raises(RunFailed):
                law.next_change(now, 4)

    @pytest.mark.parametrize(
        ("lines", "period", "message"),
        [
            ("0,-1,5", None, r"times.csv, line 3: start is below 0; virtual time begins at 0"),
            ("0,5,5", None, r"times.csv, line 3: end is not after start"),
            ("0,9,5", 10, r"times.csv, line 3: end is not after start"),
            ("0,10,12", 10, r"times.csv, line 3: start is not within the period of 10 s"),
            ("0,5,15.5", 10, r"times.csv, line 3: its interval is longer than the period of 10 s"),
            ("0,noon,5", None, r"times.csv, line 3: start is 'noon', not a finite number"),
            ("0,1", None, r"times.csv, line 3: end is ''"),
            ("x,1,2", None, r"times.csv, line 3: client is 'x'"),
        ],
    )
    def test_what_is_wrong_with_a_file(self, here, lines, period, message):
        (here / "times.csv").write_text(f"client,start,end\n1,1,2\n{lines}\n")
        law = availability("schedule", period=period)
        with pytest.raises(InputError, match=message):
            there(law)
        with pytest.raises(InputError, match=message):
            law.next_change(0, 4)

    @pytest.mark.usefixtures("here")
    def test_no_such_file(self):
        with pytest.raises(InputError, match=r"^nowhere.csv: no such file"):
            there(availability("schedule", path="nowhere.csv"))


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"kind": "random"}, r"availability\.probability: is missing"),
        ({"kind": "random", "probability": {}}, r"availability\.probability\.kind: is missing"),
        ({"kind": "random", "probability": True}, r"availability\.probability: is True"),
        ({"kind": "random", "probability": 0.5, "retry": 0}, r"availability\.retry: is 0"),
        ({"kind": "schedule"}, r"availability\.path: is missing"),
        ({"kind": "schedule", "path": "x.csv", "period": 0}, r"availability\.period: is 0"),
        ({"kind": "always", "retry": 1}, r"availability\.retry: unknown key"),
        ({"kind": "sometimes"}, r"availability\.kind: there is no availability 'sometimes'"),
    ],
)
def test_settings_that_are_refused(table, message):
    with pytest.raises(InputError, match=r"^system\." + message):
        AVAILABILITIES.build(table)


@pytest.mark.parametrize("prob", [0, -0.1, 1.01])
def test_probabilities_that_are_refused(prob):
    with pytest.raises(InputError, match=r"^system\.availability\.probability: is .* at client 0"):
        there(availability("random", probability=prob))
