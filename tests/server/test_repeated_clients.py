"""A client that a round asks several times: its training, its state, its rows, its time, and replies that do not count."""

import numpy as np
import pandas as pd
import pytest
from flwr.app import RecordDict

from fedssl.app.simulation import check_experiment, virtual_seconds
from fedssl.clients.client_app import app
from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from fedssl.server.cohort_training import waves
from fedssl.server.virtual_time import cohorts_of, fates_of, make_clock, work_of
from tests.helpers import kept_states, small_experiment

LISTED = {"kind": "tests.plugins.listed", "clients": [4, 1, 4]}


class Tapped(SerialGrid):
    """Note every request and its reply, and what the client kept before and after it; some requests fail.

    Args:
        fails: Numbers of the requests, in the order in which they are worked off, that end in an error.
    """

    def __init__(self, fails=()):
        super().__init__(Apps(self._ask), 6)
        self.seen = []
        self._fails = fails

    def _ask(self, message, context):
        before = protocol.state_to_bytes(context.state)
        reply = app(message, context)
        after = protocol.state_to_bytes(context.state)
        client = int(context.node_config[protocol.PARTITION_ID])
        self.seen.append((client, message, reply, before, after))
        if len(self.seen) - 1 in self._fails:
            raise RuntimeError("this request fails on purpose")
        return reply


def experiment_of(**overrides):
    return small_experiment(**{"rounds": 1, "strategy": LISTED, **overrides})


def weights(message):
    arrays = protocol.from_record(message.content[protocol.ARRAYS])
    return b"".join(array.tobytes() for _, array in sorted(arrays.items()))


def test_requests_are_sent_in_waves_of_different_clients():
    protocol.claim_identity(1)
    nodes = [protocol.node_of(client) for client in (4, 1, 4, 4, 1, 0)]
    sent = [protocol.new_message("train", node, RecordDict()) for node in nodes]
    assert waves(sent) == [[0, 1, 5], [2, 4], [3]]


def test_it_trains_each_time_from_the_global_model_and_its_state_goes_on():
    grid = Tapped()
    serve(experiment_of(method="tests.plugins.stateful"), grid, [])
    clients = [client for client, *_ in grid.seen]
    assert sorted(clients) == [1, 4, 4]
    assert clients[-1] == 4  # its second request waits for everybody's first
    sent = {weights(message) for _, message, *_ in grid.seen}
    assert len(sent) == 1
    first, second = (own for own in grid.seen if own[0] == 4)
    assert first[3] is None
    assert second[3] == first[4]
    # Two rounds' worth of steps: each shows 2 * 8 unlabeled images.
    memory = kept_states(grid)[4].array_records["phase-0.memory"]
    assert memory["rounds"].numpy().tolist() == [2]
    assert memory["seen"].numpy().sum() == 2 * 2 * 16
    assert kept_states(grid)[1].array_records["phase-0.memory"]["rounds"].numpy().tolist() == [1]


def test_it_draws_other_batches_each_time_and_its_first_are_those_of_a_single_request():
    """Supervised training keeps nothing, so equal batches would give equal weights."""
    grids = Tapped(), Tapped()
    serve(experiment_of(method="supervised"), grids[0], [])
    serve(experiment_of(method="supervised", strategy={**LISTED, "clients": [4, 1]}), grids[1], [])
    replies = [[weights(reply) for c, _, reply, *_ in grid.seen if c == 4] for grid in grids]
    assert replies[0][0] == replies[1][0]
    assert replies[0][0] != replies[0][1]


def test_every_request_is_a_row_and_counts_as_traffic(tmp_path):
    grid = Tapped()
    outcome = serve(experiment_of(), grid, [RunDirectory(tmp_path)])
    model = protocol.encoded_bytes(outcome.model.arrays)
    clients = pd.read_csv(tmp_path / "clients.csv")
    assert clients.client.tolist() == [1, 4, 4]
    assert clients.status.tolist() == ["ok"] * 3
    assert clients.bytes_up.tolist() == [model] * 3
    (row,) = outcome.rounds
    assert (row.clients_ok, row.bytes_down, row.bytes_up) == (3, 3 * model, 3 * model)


def test_the_strategy_is_given_replies_by_the_place_of_their_requests(tmp_path):
    """Clients with more work are sent their requests first, so the order of sending is another one."""
    sizes = simulated_federation(experiment_of()).sizes
    small, large = int(np.argmin(sizes)), int(np.argmax(sizes))
    asked = [small, large, small, large, large]
    strategy, grid = {**LISTED, "clients": asked}, Tapped()
    experiment = experiment_of(
        strategy=strategy, method="supervised", train={"local_steps": None, "local_epochs": 4}
    )
    serve(experiment, grid, [RunDirectory(tmp_path)])
    assert [client for client, *_ in grid.seen] == [large, small, large, small, large]
    numbers = pd.read_csv(tmp_path / "numbers.csv").set_index("name").value
    given = [numbers[f"strategy.place.{place}"] for place in range(5)]
    assert given == [protocol.node_of(client) for client in asked]


def test_a_request_that_fails_takes_its_own_reply_only(tmp_path):
    """Client 4's second request fails: its first reply counts, and the client keeps what it had before the round."""
    experiment = experiment_of(method="tests.plugins.stateful", rounds=2)
    grid = Tapped(fails=[2])
    outcome = serve(experiment, grid, [RunDirectory(tmp_path)])
    clients = pd.read_csv(tmp_path / "clients.csv")
    first = clients[clients["round"] == 1]
    assert first.client.tolist() == [1, 4, 4]
    assert sorted(first.status) == ["failed", "ok", "ok"]
    numbers = pd.read_csv(tmp_path / "numbers.csv").query("name.str.startswith('strategy')")
    assert numbers[numbers["round"] == 1].name.tolist() == ["strategy.place.0", "strategy.place.1"]
    assert outcome.rounds[0].clients_failed == 1
    assert next(own for own in grid.seen[3:] if own[0] == 4)[3] is None


def test_whoever_sits_the_round_out_is_missing_from_the_replies(tmp_path):
    experiment = experiment_of()
    sizes = simulated_federation(experiment).sizes
    method = {"kind": "tests.plugins.addressee", "idle": [int(sizes[4])]}
    assert sizes[1] != sizes[4]
    outcome = serve(experiment_of(method=method), Tapped(), [RunDirectory(tmp_path)])
    assert (outcome.rounds[0].clients_ok, outcome.rounds[0].clients_inactive) == (1, 2)
    numbers = pd.read_csv(tmp_path / "numbers.csv").query("client == -1").name
    assert [name for name in numbers if "place" in name] == ["strategy.place.1"]


# ---- virtual time ----

SYSTEM = {"speed": 88 / 15, "download": 1e6, "upload": 1e6}
"""Images a second; the lines take no time."""


def fates(experiment, clients, sizes):
    census = Census.of_simulation(simulated_federation(experiment))
    clock = make_clock(experiment)
    phase = experiment.plans[0]
    return clock, fates_of(
        clock, 1, clients, sizes, 1000, cohorts_of(experiment, census), work_of(phase, census)
    )


def test_a_client_that_is_asked_twice_takes_twice_as_long():
    """2 steps of 8 labeled images and 16 unlabeled ones, whose weak view costs a third: 2 (8 + 16 + 16 / 3) images, 10 s."""
    experiment = experiment_of(system=SYSTEM)
    clock, found = fates(experiment, [4, 1, 4], [1000] * 3)
    assert found[1].seconds == pytest.approx(10, rel=1e-5)
    assert found[4].seconds == pytest.approx(20, rel=1e-5)
    assert clock.now == found[4].seconds
    assert {fate.status for fate in found.values()} == {"ok"}
    assert fates(experiment, [4, 1, 4], [1000] * 3)[1] == found


def test_a_deadline_is_refused_if_the_fastest_client_cannot_answer_all_its_requests():
    """Three sub-cohorts of all six clients ask each of them three times: 30 s at 10 s a request."""
    whole = {"federation": {"sample": 6}, "strategy": {"kind": "rscfed", "sub_cohorts": 3}}
    check_experiment(experiment_of(**whole, system={**SYSTEM, "deadline": 30.1}))
    with pytest.raises(InputError, match=r"the fastest client needs 30 s for a round"):
        check_experiment(experiment_of(**whole, system={**SYSTEM, "deadline": 29.9}))
    _, seconds = virtual_seconds(experiment_of(**whole, system=SYSTEM))
    assert seconds == pytest.approx([30] * 6, rel=1e-4)
    # Client 1 of the listed clients is asked once, so it can meet what client 4 cannot.
    check_experiment(experiment_of(system={**SYSTEM, "deadline": 10.1}))
    _, seconds = virtual_seconds(experiment_of(system=SYSTEM))
    assert seconds == pytest.approx([15] * 6, rel=1e-4)  # three requests to two clients


def test_its_traffic_takes_time_for_every_message():
    """1000 bytes up at .008 Mbit/s are 1 s; 2000 and 3000 bytes down at .008 Mbit/s are 5 s."""
    slow = {"speed": 1e9, "download": 0.008, "upload": 0.008}
    _, found = fates(experiment_of(system=slow), [4, 1, 4], [2000, 0, 3000])
    assert found[4].seconds == pytest.approx(7, rel=1e-5)
    assert found[1].seconds == pytest.approx(1, rel=1e-5)


def test_a_client_that_is_late_is_late_with_all_its_replies(tmp_path):
    experiment = experiment_of(system={**SYSTEM, "deadline": 15.0})
    outcome = serve(experiment, Tapped(), [RunDirectory(tmp_path)])
    clients = pd.read_csv(tmp_path / "clients.csv")
    assert clients.client.tolist() == [1, 4, 4]
    assert clients.status.tolist() == ["ok", "late", "late"]
    assert np.allclose(clients.virtual_seconds, [10, 20, 20])
    assert outcome.rounds[0].virtual_seconds == 15


def test_all_waves_of_a_round_share_its_timeout():
    """A server that waits 40 s for a round gives the second wave what the first one left of them."""
    grid, given = Tapped(), []
    real = grid.stream

    def noted(messages, *, timeout=None, **settings):
        given.append(timeout)
        return real(messages, timeout=timeout, **settings)

    grid.stream = noted
    serve(experiment_of(server={"timeout": 40.0}), grid, [])
    first, second = given
    assert first == 40.0
    assert 0 < second < 40.0
