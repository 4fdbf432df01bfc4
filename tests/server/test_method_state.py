"""The server's state of methods: merged as each slot says, and, for a phase's state, sent once."""

import numpy as np
import pytest

from fedssl.clients.client_app import app
from fedssl.core.slots import Merge, Slot
from fedssl.engine.local_grid import Apps
from fedssl.engine.remote_grid import RemoteGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.reduction import WEIGH_STATE, CohortSums, Reduction
from fedssl.exchange.replies import Reply
from fedssl.record.resume import directory_to_resume
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from fedssl.server.method_state import by_record, merge_state
from tests.helpers import kept_states, small_experiment
from tests.resuming import Stop, Stopper

CENSUS = Census(
    (1, 2, 3, 4), np.array([1, 3, 2, 4], dtype=np.int64), np.array([1, 1, 1, 1], dtype=np.int64)
)
"""Four clients of 1, 3, 2 and 4 images; the first two reply."""


def merged(merge, old=1.0, sent=(0.0, 4.0)):
    """Return the state after two replies of clients with 1 and 3 images."""
    slots = (Slot("own", "server", merge),)
    state = {"own/x": np.array(old, np.float32)}
    records = by_record(slots, state)
    sums = CohortSums(Reduction.of({"arrays": {}, **records}, WEIGH_STATE), 2)
    for place, (value, size) in enumerate(zip(sent, (1, 3), strict=True)):
        metrics = {"num-examples": size, "num-labeled": 0, "num-confident": 0}
        arrays = {
            name: {n: np.full_like(a, value) for n, a in own.items()}
            for name, own in records.items()
        }
        sums.add_reply(place, Reply(place + 1, metrics, arrays=arrays))
    return float(merge_state(slots, state, sums.result(), CENSUS)["own/x"])


@pytest.mark.parametrize(
    ("merge", "expected"),
    [
        (Merge(), (1 * 0 + 3 * 4) / 4),
        (Merge("uniform"), (0 + 4) / 2),
        (Merge("examples", "population"), 1 + (1 * (0 - 1) + 3 * (4 - 1)) / 10),
        (Merge("uniform", "population"), 1 + ((0 - 1) + (4 - 1)) / 4),
    ],
    ids=str,
)
def test_a_slot_is_merged_by_its_own_rule(merge, expected):
    assert merged(merge) == pytest.approx(expected)


def test_slots_of_different_rules_travel_together():
    """Each rule's slots are in the record of its weight, and no array is lost."""
    slots = (Slot("a", "server"), Slot("b", "server", Merge("uniform", "population")))
    state = {"a/x": np.zeros(1), "b/y": np.ones(2), "a/z": np.zeros(3)}
    records = by_record(slots, state)
    assert {name: set(own) for name, own in records.items()} == {
        protocol.STATE: {"a/x", "a/z"},
        protocol.UNIFORM_STATE: {"b/y"},
    }
    assert merge_state(slots, state, {}, CENSUS) == state


class Bytes(Observer):
    def __init__(self):
        self.ends = []

    def round_ended(self, end):
        self.ends.append(end)


def frozen(rounds=3, *, counts_rounds=True, **settings):
    method = {"kind": "tests.plugins.frozen", "counts_rounds": counts_rounds}
    return small_experiment(rounds=rounds, federation={"sample": 6}, method=method, **settings)


def test_a_phases_state_never_changes_and_travels_once():
    """The first request carries weights and teacher; later ones carry the weights; replies carry the weights."""
    noted = Bytes()
    outcome = serve(frozen(), SerialGrid(Apps(app), 6), [noted])
    weights = protocol.encoded_bytes(outcome.model.arrays)
    down = [end.row.bytes_down for end in noted.ends]
    assert down == [6 * 2 * weights, 6 * weights, 6 * weights]
    assert [end.row.bytes_up for end in noted.ends] == [6 * weights] * 3
    teachers = {row.value for end in noted.ends for row in end.numbers if row.name == "teacher"}
    assert len(teachers) == 1
    assert outcome.model.state == {}


def test_clients_that_are_not_simulated_keep_a_phases_state_themselves():
    """The bits are those of a simulation; the request carries the state once, and the client keeps it."""
    noted, inner = Bytes(), SerialGrid(Apps(app), 6)
    sent = []
    real = inner.send_and_receive

    def watched(messages, *, timeout=None):
        messages = list(messages)
        sent.append([protocol.PHASE_STATE in m.content for m in messages])
        return real(messages, timeout=timeout)

    inner.send_and_receive = watched
    remote = serve(frozen(), RemoteGrid(inner), [noted])
    simulated = serve(frozen(), SerialGrid(Apps(app), 6), [])
    for name, array in simulated.model.arrays.items():
        assert array.tobytes() == remote.model.arrays[name].tobytes()
    assert [any(own) for own in sent if len(own) == 6][-3:] == [True, False, False]
    weights = protocol.encoded_bytes(remote.model.arrays)
    assert [end.row.bytes_down for end in noted.ends] == [6 * 2 * weights, 6 * weights, 6 * weights]
    kept = kept_states(inner)
    assert all("phase-0.teacher" in state.array_records for state in kept.values())


def test_a_client_that_lost_a_phases_state_is_sent_it_again():
    """It fails in the round in which it finds that the state is missing, and takes part in the next one."""
    inner = SerialGrid(Apps(app), 6)
    noted = Bytes()

    class Loses(Observer):
        def round_ended(self, end):
            if end.row.round == 1:
                inner.states.stage(2, None)

    # Rounds are told of when the next one trains, so the state is lost in round 3 at the latest.
    serve(frozen(rounds=5, counts_rounds=False), RemoteGrid(inner), [Loses(), noted])
    failures = [(f.client, f.reason) for end in noted.ends for f in end.failures]
    assert [client for client, _ in failures] == [2]
    assert "lacks the phase's state 'teacher'" in failures[0][1]
    assert [row.status for end in noted.ends[-1:] for row in end.clients] == ["ok"] * 6


def test_a_new_phase_has_a_new_state():
    """The second phase's teacher is the model that the first one ended with."""
    noted = Bytes()
    phases = [{"rounds": 2}, {"rounds": 2, "train": {"lr": 0.01}}]
    serve(frozen(rounds=None, phases=phases), SerialGrid(Apps(app), 6), [noted])
    values = [
        {row.value for row in end.numbers if row.name == "teacher" and row.client >= 0}
        for end in noted.ends
    ]
    assert [len(found) for found in values] == [1] * 4
    assert values[0] == values[1] != values[2] == values[3]


@pytest.mark.parametrize(("limit", "rounds"), [(None, 2.0), (3, 2.0), (2, 1.0)])
def test_state_that_is_too_old_is_forgotten(limit, rounds, monkeypatch):
    """Client 0 trains in rounds 1 and 4: its state is three rounds old, and its count begins anew under a limit of 2."""
    experiment = frozen(rounds=4, train={"max_state_age": limit} if limit else {})
    cohorts = {1: [0, 1], 2: [1], 3: [1], 4: [0, 1]}
    grid = SerialGrid(Apps(app), 6)
    monkeypatch.setattr(Cohorts, "draw", lambda self, round: cohorts[round])
    serve(experiment, grid, [])
    kept = {
        client: float(state.array_records["phase-0.rounds"]["count"].numpy())
        for client, state in kept_states(grid).items()
    }
    assert kept == {0: rounds, 1: 4.0}


def test_a_resumed_server_sends_the_state_again_to_clients_that_it_does_not_simulate(tmp_path):
    """The clients' own memory may be gone with their processes: here, every client is a new one."""
    experiment = small_experiment(
        rounds=4,
        federation={"sample": 6},
        method={"kind": "tests.plugins.frozen", "counts_rounds": False},
        server={"checkpoint_every": 1},
    )
    whole = serve(experiment, SerialGrid(Apps(app), 6), [])
    path, noted = tmp_path / "run", Bytes()
    with pytest.raises(Stop):
        serve(experiment, RemoteGrid(SerialGrid(Apps(app), 6)), [RunDirectory(path), Stopper(2)])
    directory = directory_to_resume(experiment, path)
    found = directory.load()
    assert found.snapshot.round >= 1
    grid = RemoteGrid(SerialGrid(Apps(app), 6))
    resumed = serve(experiment, grid, [directory, noted], found.snapshot)
    assert [row.status for end in noted.ends for row in end.clients] == ["ok"] * 6 * len(noted.ends)
    for name, array in whole.model.arrays.items():
        assert array.tobytes() == resumed.model.arrays[name].tobytes()
