"""A deployment whose replies are lost: a client that keeps its own state goes on as if the lost round had not been."""

import numpy as np
import pytest

from fedssl.clients.client_app import app
from fedssl.clients.kept_rounds import ROUND
from fedssl.engine.local_grid import Apps
from fedssl.engine.remote_grid import RemoteGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.server.app import serve
from tests.helpers import kept_states, small_experiment
from tests.strategies.quadratics import on_digits, two_clients

STATEFUL = {"method": "tests.plugins.stateful", "train": {"keep_momentum": True}}
"""Memory, a private head and momentum at the client, and statistics at the server; momentum moves the shared weights."""

HEAD = "private.tests.plugins.stateful"

LISTED = {"kind": "tests.plugins.listed", "clients": [4, 1, 4]}


def what(message):
    """Return the (round, client, repeat) of a request to train; None of any other request."""
    config = message.content.config_records[protocol.CONFIG]
    if protocol.ROUND not in config:
        return None
    client = protocol.client_of(message.metadata.dst_node_id)
    return config[protocol.ROUND], client, config.get(protocol.REPEAT, 0)


def losing(inner, lost, again=()):
    """Return a deployment's grid that loses the replies to some requests, and asks for some replies twice."""
    real = inner.send_and_receive

    def lossy(messages, *, timeout=None):
        sent = list(messages)
        for message in sent:
            if what(message) in again:
                list(real([message]))
        gone = {m.metadata.dst_node_id for m in sent if what(m) in lost}
        return [r for r in real(sent) if r.metadata.src_node_id not in gone]

    inner.send_and_receive = lossy
    return RemoteGrid(inner)


def refusing(lost):
    """Return a simulation's grid whose replies to some requests are refused, because they lack their weights."""

    def ask(message, context):
        reply = app(message, context)
        return (
            protocol.without_records(reply, [protocol.ARRAYS]) if what(message) in lost else reply
        )

    return SerialGrid(Apps(ask), 6)


def newest_states(grid):
    """Return what each client keeps, under the records' own names; what it kept after earlier rounds is left out."""
    states = kept_states(grid)
    for state in states.values():
        rounds = {tuple(map(int, m.groups()[:2])) for name in state if (m := ROUND.fullmatch(name))}
        for name in list(state):
            if match := ROUND.fullmatch(name):
                record = state.pop(name)
                if tuple(map(int, match.groups()[:2])) == max(rounds):
                    state[match[3]] = record
    return states


def bits(outcome):
    return b"".join(array.tobytes() for array in outcome.model.arrays.values())


@pytest.mark.parametrize("strategy", ["scaffold", {"kind": "feddyn", "alpha": 1.0}], ids=str)
def test_one_lost_reply_moves_no_fixed_point(strategy):
    """If the client kept what it learned, SCAFFOLD would settle at -.40 and FedDyn at -.41."""
    outcome = serve(on_digits(strategy, rounds=40), losing(two_clients(), [(2, 1, 0)]), [])
    assert outcome.rounds[1].clients_failed == 1
    assert outcome.model.arrays["w"] == pytest.approx(-0.5, abs=2e-3)


@pytest.mark.parametrize("lost", [[(1, 0, 0)], [(2, 0, 0), (3, 0, 0)], [(2, 0, 0), (3, 1, 0)]])
def test_the_servers_variate_is_the_mean_of_the_clients_after_lost_replies(lost):
    """The last round counts for both clients, so what each of them holds is what the server has in its mean."""
    inner = two_clients()
    outcome = serve(on_digits("scaffold", rounds=4), losing(inner, lost), [])
    states = newest_states(inner)
    own = [float(states[c].array_records["phase-0.scaffold.own"]["w"].numpy()) for c in (0, 1)]
    assert abs(own[0]) > 0.1
    assert outcome.model.state["scaffold.server/w"] == pytest.approx(np.mean(own), abs=1e-6)


@pytest.mark.parametrize(
    "lost",
    [[(1, 4, 0)], [(2, 4, 0)], [(1, 4, 1)], [(1, 4, 0), (2, 4, 1)], [(1, 1, 0), (2, 1, 0)]],
    ids=str,
)
def test_a_lost_reply_is_a_refused_reply_of_a_simulation_bit_for_bit(lost):
    """A round asks client 4 twice: if one of its two replies is lost, it goes back to where it was before the first one."""
    experiment = small_experiment(rounds=4, strategy=LISTED, **STATEFUL)
    remote = serve(experiment, losing(SerialGrid(Apps(app), 6), lost), [])
    simulated = serve(experiment, refusing(lost), [])
    assert bits(remote) == bits(simulated)
    assert bits(remote) != bits(serve(experiment, SerialGrid(Apps(app), 6), []))


def test_a_request_that_comes_twice_is_answered_twice_with_the_same_bits():
    """The second answer does not go on from the first one, whose reply was lost."""
    experiment = small_experiment(rounds=3, **STATEFUL)
    rounds = [(r, client, 0) for r in (1, 2) for client in range(6)]
    twice = serve(experiment, losing(SerialGrid(Apps(app), 6), (), again=rounds), [])
    assert bits(twice) == bits(serve(experiment, SerialGrid(Apps(app), 6), []))


def test_a_lost_round_at_the_end_of_a_phase_is_undone_in_the_next_one():
    """Private weights stay from phase to phase, so the next phase must begin with those that counted."""
    phases = [{"rounds": 2}, {"rounds": 1, "train": {"lr": 0.01}}]
    experiment = small_experiment(rounds=None, strategy=LISTED, **STATEFUL, phases=phases)
    lost, inner, simulation = [(2, 1, 0)], SerialGrid(Apps(app), 6), refusing([(2, 1, 0)])
    serve(experiment, losing(inner, lost), [])
    serve(experiment, simulation, [])
    heads = [
        protocol.from_record(newest_states(g)[1].array_records[HEAD]) for g in (inner, simulation)
    ]
    assert all(array.tobytes() == heads[1][name].tobytes() for name, array in heads[0].items())


def test_a_frozen_teacher_is_kept_once_and_stays():
    method = {"kind": "tests.plugins.frozen"}
    experiment = small_experiment(rounds=4, federation={"sample": 6}, method=method)
    inner, lost = SerialGrid(Apps(app), 6), [(2, 3, 0)]
    remote = serve(experiment, losing(inner, lost), [])
    assert bits(remote) == bits(serve(experiment, refusing(lost), []))
    for client, state in kept_states(inner).items():
        assert [name for name in state if name.endswith("teacher")] == ["phase-0.teacher"]
        records = newest_states(inner)[client].array_records
        assert records["phase-0.rounds"]["count"].numpy() == (3 if client == 3 else 4)


def test_a_simulation_says_nothing_and_keeps_nothing_twice():
    grid = SerialGrid(Apps(app), 6)
    serve(small_experiment(**STATEFUL), grid, [])
    for state in kept_states(grid).values():
        assert not [name for name in state if name.startswith("round-")]
