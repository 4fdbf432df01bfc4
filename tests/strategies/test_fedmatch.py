"""FedMatch's server: the nearest others, what they send to whom, weights that stay at the server, sparse messages."""

import numpy as np
import pandas as pd
import pytest
import torch
from flwr.app import ConfigRecord
from torch import nn

from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.replies import Reply
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from fedssl.strategies.fedmatch import FedMatch, nearest_others
from fedssl.strategies.sparse import (
    SmallChanges,
    saved_bytes,
    share_of_changes,
    with_changes_above,
)
from tests.helpers import federation_of, small_experiment
from tests.methods.examples import PROGRESS, linear
from tests.methods.examples import learner as learner_of

F32 = np.float32


# ---- the choice of helpers ----


def answers(**probs):
    return {int(name[1:]): np.array(own, F32) for name, own in probs.items()}


def test_the_nearest_others_and_never_oneself():
    given = answers(c3=[0.0, 1.0], c0=[0.1, 0.9], c7=[0.5, 0.5], c5=[0.9, 0.1])
    found = nearest_others(given, 2)
    assert found == {0: [3, 7], 3: [0, 7], 5: [7, 0], 7: [0, 5]}
    assert nearest_others(given, 9)[0] == [3, 7, 5]
    assert nearest_others(given, 0)[0] == []
    assert nearest_others(answers(c4=[1.0]), 2) == {4: []}


def test_equal_answers_are_told_apart_by_number_and_never_by_order():
    """Clients 0 to 3 answer alike; a tree search may return another client before the client itself."""
    given = {client: np.array([0.5, 0.5], F32) for client in (2, 0, 3, 1)}
    assert nearest_others(given, 2) == {0: [1, 2], 1: [0, 2], 2: [0, 1], 3: [0, 1]}


# ---- rounds by hand ----

MODEL = {"sigma.w": np.zeros(4, F32), "psi.w": np.zeros(4, F32)}
STATE = {"outputs/probs": np.zeros(2, F32)}


def built(num_clients=4, **settings):
    protocol.claim_identity(run_id=1)
    cohorts = Cohorts(Census.unknown(num_clients), num_clients, seed=0)
    return FedMatch(**settings).build(cohorts)


def configured(strategy, server_round, model=MODEL):
    record = protocol.to_record(model)
    return list(strategy.configure_train(server_round, record, ConfigRecord(), None))


def reply(client, value, probs, steps=3, size=10):
    metrics = {protocol.NUM_EXAMPLES: float(size), protocol.NUM_STEPS: float(steps)}
    model = {name: np.full(4, value, F32) for name in MODEL}
    records = {protocol.ARRAYS: model, protocol.STATE: {"outputs/probs": np.array(probs, F32)}}
    return Reply(protocol.node_of(client), metrics, arrays=records)


PROBS = ([0.0, 1.0], [0.1, 0.9], [0.9, 0.1], [1.0, 0.0])


def concluded(strategy, server_round, **kwargs):
    replies = {c: reply(c, c + 10 * server_round, probs, **kwargs) for c, probs in enumerate(PROBS)}
    return strategy.conclude(server_round, MODEL, replies)


def told(messages):
    """Return what each client is sent of its helpers' psi, by client."""
    found = {}
    for message in messages:
        record = protocol.arrays_of(message.content, "extra.helpers")
        client = protocol.client_of(message.metadata.dst_node_id)
        found[client] = None if record is None else record["psi.w"][:, 0].tolist()
    return found


def test_round_one_has_no_helpers_and_the_mean_is_uniform():
    strategy = built()
    assert set(told(configured(strategy, 1)).values()) == {None}
    replies = {c: reply(c, c, PROBS[c], size=1 + 50 * c) for c in range(4)}
    replies[3] = reply(3, 99, PROBS[3], size=0)  # a client without images does not count
    arrays = strategy.conclude(1, MODEL, replies)
    assert arrays["sigma.w"].tolist() == arrays["psi.w"].tolist() == [1.0] * 4
    assert arrays["psi.w"].dtype == F32
    only_empty = {0: reply(0, 5, PROBS[0], size=0)}
    assert strategy.conclude(2, MODEL, only_empty)["psi.w"].tolist() == [0.0] * 4
    assert strategy.conclude(2, MODEL, {}) is MODEL


def test_each_client_is_sent_the_last_psi_of_its_own_helpers():
    strategy = built(helper_interval=5)
    configured(strategy, 1)
    concluded(strategy, 1)
    expected = {0: [11.0, 12.0], 1: [10.0, 12.0], 2: [13.0, 11.0], 3: [12.0, 11.0]}
    assert told(configured(strategy, 2)) == expected
    assert strategy.numbers() == {"helpers": 2.0}
    concluded(strategy, 2)
    later = {client: [value + 10 for value in own] for client, own in expected.items()}
    assert told(configured(strategy, 3)) == later


def test_helpers_are_chosen_anew_at_each_interval_only():
    strategy = built(num_helpers=1, helper_interval=3)
    configured(strategy, 1)
    concluded(strategy, 1)
    configured(strategy, 2)
    swapped = {c: reply(c, c, PROBS[(c + 2) % 4 if c % 2 else c]) for c in range(4)}
    strategy.conclude(2, MODEL, swapped)  # 1 and 3 change places
    assert told(configured(strategy, 3)) == {0: [3.0], 1: [2.0], 2: [1.0], 3: [0.0]}
    strategy.conclude(3, MODEL, {c: reply(c, c, probs) for c, probs in enumerate(PROBS)})
    assert told(configured(strategy, 4)) == {0: [3.0], 1: [2.0], 2: [1.0], 3: [0.0]}
    assert told(configured(strategy, 6)) == {0: [1.0], 1: [0.0], 2: [3.0], 3: [2.0]}


def test_helpers_in_rounds_of_choice_only_as_in_the_official_code():
    strategy = built(helper_interval=2, between="none")
    for server_round in (1, 2, 3, 4):
        found = told(configured(strategy, server_round))
        assert all((own is not None) == (server_round in (2, 4)) for own in found.values())
        concluded(strategy, server_round)


def test_a_client_that_took_no_step_is_nobodys_helper():
    strategy = built()
    configured(strategy, 1)
    concluded(strategy, 1, steps=0)
    assert set(told(configured(strategy, 2)).values()) == {None}


def test_a_phase_with_another_network_begins_without_helpers():
    """A strategy outlives the phase: psi of the last phase's clients is of no use, and goes to nobody."""
    strategy = built(delta_threshold=0.5)
    configured(strategy, 1)
    concluded(strategy, 1)
    assert None not in told(configured(strategy, 2)).values()
    other = {"w": np.ones(4, F32)}
    messages = configured(strategy, 3, other)
    assert not any("extra.helpers" in message.content for message in messages)
    assert strategy.numbers() == {"helpers": 0.0}
    kept = strategy.kept()
    assert set(kept) == {"saved/up"}
    assert int(kept["saved/up"]) == 0


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_restored_strategy_goes_on_as_if_it_had_never_stopped(threshold):
    first = built(helper_interval=3, delta_threshold=threshold)
    for server_round in (1, 2):
        configured(first, server_round)
        concluded(first, server_round)
    second = built(helper_interval=3, delta_threshold=threshold)
    second.take_up(first.kept())
    for server_round in (3, 4):
        here, there = (configured(strategy, server_round) for strategy in (first, second))
        assert told(here) == told(there) != {}
        for one, other in zip(here, there, strict=True):
            assert protocol.state_to_bytes(one.content) == protocol.state_to_bytes(other.content)
        assert [first.bytes_saved_down(c) for c in range(4)] == [
            second.bytes_saved_down(c) for c in range(4)
        ]
        assert first.bytes_saved_up(None) == second.bytes_saved_up(None)
        concluded(first, server_round)
        concluded(second, server_round)


# ---- sparse messages ----


def test_small_changes_do_not_travel():
    old = {"w": np.array([0.0, 1.0, 2.0, 3.0], F32), "n": np.array(3)}
    new = {"w": np.array([0.5, 1.25, 2.0, 1.0], F32), "n": np.array(4)}
    found = with_changes_above(0.5, old, new)
    assert found["w"].tolist() == [0.0, 1.0, 2.0, 1.0]
    assert found["w"].dtype == F32
    assert found["n"] == 4
    assert with_changes_above(0.5, {}, new)["w"].tolist() == new["w"].tolist()


def test_counted_bytes():
    """Of 100 numbers of 4 bytes, 10 that changed travel with their positions: 80 bytes for 400."""
    old = {"w": np.zeros(100, F32)}
    new = {"w": np.concatenate([np.ones(10, F32), np.zeros(90, F32)])}
    assert saved_bytes(old, new) == 400 - 10 * 8
    assert share_of_changes(old, new) == pytest.approx(0.1)
    assert saved_bytes(old, old) == 400
    assert saved_bytes(old, {"w": np.ones(100, F32)}) == 0  # whole is less than 800
    assert saved_bytes({}, new) == 0
    assert share_of_changes({}, new) == 1


def test_a_client_puts_small_changes_of_shared_parameters_back():
    network = linear()
    one = learner_of(network, {}, progress=PROGRESS.__class__(1, 5, 0, 10))
    half = SmallChanges(0.5)
    half.begin(one)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    shared: dict[str, nn.Parameter] = {"head.bias": network.head.bias}
    half.correct(one, shared)
    with torch.no_grad():
        network.head.bias += torch.tensor([0.4, -0.4, 1.0, -1.0] + [0.0] * 6)
        network.head.weight += 0.25  # it is not shared
    half.end(one)
    moved = network.head.bias - before["head.bias"]
    assert moved.tolist() == pytest.approx([0, 0, 1, -1] + [0] * 6)
    assert torch.equal(network.head.bias[:2], before["head.bias"][:2])
    assert torch.equal(network.head.weight, before["head.weight"] + 0.25)


def test_a_client_keeps_its_own_values_of_what_hardly_differs():
    strategy = built(delta_threshold=0.5)
    configured(strategy, 1)
    assert strategy.bytes_saved_down(0) == 0
    strategy.conclude(1, MODEL, {0: reply(0, 3.0, PROBS[0]), 1: reply(1, 9.0, PROBS[1])})
    model = {"sigma.w": np.array([3.25, 9.0, 3.0, 3.5], F32), "psi.w": np.zeros(4, F32)}
    by_client = {
        protocol.client_of(m.metadata.dst_node_id): protocol.arrays_of(m.content, "arrays")
        for m in configured(strategy, 2, model)
    }
    assert by_client[0]["sigma.w"].tolist() == [3.0, 9.0, 3.0, 3.0]
    assert by_client[1]["sigma.w"].tolist() == [3.25, 9.0, 3.0, 3.5]
    assert by_client[2]["sigma.w"].tolist() == model["sigma.w"].tolist()
    assert strategy.bytes_saved_down(0) == 16 - 8  # one entry of sigma; psi travels whole
    assert strategy.bytes_saved_down(2) == 0


# ---- in a federation ----


def run(path, **sections):
    experiment = small_experiment(**sections)
    grid = SerialGrid(Apps(app), experiment.federation.clients)
    return serve(experiment, grid, [RunDirectory(path)])


METHOD = {"kind": "fedmatch", "threshold": 0.1, "unlabeled_ratio": 2}
AT_SERVER = {"labels": {"kind": "at_server", "per_class": 4}}
SLOW = {"lr": 0.005}


def split(outcome):
    arrays = outcome.model.arrays
    return (
        {name: array for name, array in arrays.items() if name.startswith(half)}
        for half in ("sigma.", "psi.")
    )


def test_with_labels_at_the_server_clients_never_move_or_send_sigma(tmp_path):
    """Before the first round and after each round, the server trains sigma; psi moves at clients only."""
    sections = {"federation": AT_SERVER, "method": {**METHOD, "labels": "server"}, "train": SLOW}
    outcome = run(tmp_path / "a", strategy="fedmatch", rounds=2, **sections)
    _, psi = split(outcome)
    state = protocol.encoded_bytes(outcome.model.state)
    rows = pd.read_csv(tmp_path / "a" / "clients.csv")
    assert set(rows["bytes_up"]) == {protocol.encoded_bytes(psi) + state}
    # Clients that take no step change nothing, so sigma is what the server's own training makes of it.
    still = {**sections, "train": {"lr": 1e-30, "weight_decay": 0.0}, "server": {"train": SLOW}}
    quiet = run(tmp_path / "b", strategy="fedmatch", rounds=2, **still)
    first, kept = split(quiet)
    assert any((psi[name] != kept[name]).any() for name in psi)
    fresh = (
        small_experiment(**still)
        .plans[0]
        .build_network(federation_of(small_experiment()).data.spec)
    )
    start = fresh.state_dict()
    assert all(np.allclose(kept[name], start[name], rtol=0, atol=1e-20) for name in kept)
    assert not any(np.array_equal(first[name], start[name].numpy()) for name in first)


def test_sparse_messages_are_counted_in_both_directions(tmp_path):
    sections = {"method": METHOD, "train": SLOW, "rounds": 3, "federation": {"sample": 6}}
    whole = run(tmp_path / "a", strategy="fedmatch", **sections)
    none = run(tmp_path / "b", strategy={"kind": "fedmatch", "delta_threshold": 1e-30}, **sections)
    sparse = {"kind": "fedmatch", "delta_threshold": 1e-3}
    some = run(tmp_path / "c", strategy=sparse, **sections)
    model = protocol.encoded_bytes(whole.model.arrays) + protocol.encoded_bytes(whole.model.state)
    assert [row.bytes_up for row in whole.rounds] == [6 * model] * 3
    assert whole.rounds[0].bytes_down == 6 * model
    psi = sum(a.nbytes for name, a in whole.model.arrays.items() if name.startswith("psi."))
    helpers = whole.rounds[1].bytes_down - 6 * model
    assert (
        0 <= helpers - 6 * 2 * psi < 6 * 2000
    )  # two psi for each client, and the headers of arrays
    # A threshold of nothing changes no weight.
    assert all(np.array_equal(a, none.model.arrays[n]) for n, a in whole.model.arrays.items())
    assert some.rounds[0].bytes_down == whole.rounds[0].bytes_down  # nobody has anything yet
    for row, full in zip(some.rounds, whole.rounds, strict=True):
        assert row.bytes_up < full.bytes_up
    assert some.rounds[2].bytes_down < whole.rounds[2].bytes_down
    numbers = pd.read_csv(tmp_path / "c" / "numbers.csv")
    shares = numbers[numbers["name"] == "strategy.changed_up"]["value"]
    assert ((shares > 0) & (shares < 1)).all()


def test_virtual_time_knows_that_replies_are_smaller(tmp_path):
    system = {"speed": 1e9, "upload": 1000.0, "download": 1e9}
    sections = {"method": METHOD, "train": SLOW, "rounds": 3, "system": system}
    now = []
    for threshold in (0.0, 1e6):
        strategy = {"kind": "fedmatch", "delta_threshold": threshold}
        outcome = run(tmp_path / str(threshold), strategy=strategy, **sections)
        now.append([row.virtual_seconds for row in outcome.rounds])
    assert now[0][0] == pytest.approx(now[1][0])  # before a round has been seen, replies are whole
    assert now[1][2] - now[1][1] < 0.2 * (now[0][2] - now[0][1])


def test_with_another_method_it_is_the_uniform_mean(tmp_path):
    here = run(tmp_path / "a", strategy="fedmatch")
    there = run(tmp_path / "b", strategy={"kind": "fedavg", "weight": "uniform"})
    assert all(np.array_equal(a, there.model.arrays[n]) for n, a in here.model.arrays.items())


def test_under_another_strategy_the_method_has_no_helpers(tmp_path):
    outcome = run(tmp_path, strategy="fedavgm", method={**METHOD, "labels": "server"}, train=SLOW)
    assert all(np.isfinite(a).all() for a in outcome.model.arrays.values())
    assert outcome.rounds[-1].clients_ok == 3


def test_strategies_of_flowers_need_every_array(tmp_path):
    with pytest.raises(InputError, match="clients of fedmatch do not send 'sigma"):
        run(tmp_path, strategy="flwr:FedAvg", method={**METHOD, "labels": "server"})
