"""Clients that sit a round out: they send no weights, do not count in the mean, and are no failure."""

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict

from fedssl.clients.client_app import app
from fedssl.core.rng import SERVER
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import CohortSums, Reduction, by_examples, uniformly
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from fedssl.server.round_log import RoundLog
from fedssl.server.server_training import ServerTraining
from fedssl.training.learn import learn
from fedssl.training.network import build_network
from tests.helpers import federation_of, kept_states, small_experiment

protocol.claim_identity(1)

SOME = {
    "federation": {"sample": 6, "labels": {"per_class": 1}, "partition": {"alpha": 0.05}},
    "method": {"kind": "semifl", "threshold": 1.0},
}
"""Only given labels are confident, so the clients without a label sit out."""

NOBODY = {
    "federation": {"labels": {"kind": "at_server", "per_class": 4}},
    "method": {"kind": "semifl", "threshold": 1.0},
    "rounds": 3,
}
"""No client has a label, and a new network is never certain, so all clients sit out in all rounds."""


class Rows(Observer):
    """Keep what every round ends with."""

    def __init__(self):
        self.ends = []

    def round_ended(self, end):
        self.ends.append(end)


def run(experiment):
    """Return the outcome of a run, its rounds' ends, and its grid."""
    rows, grid = Rows(), SerialGrid(Apps(app), experiment.federation.clients)
    return serve(experiment, grid, [rows]), rows.ends, grid


def start_of(experiment):
    spec = federation_of(experiment).data.spec
    return build_network(experiment.model, experiment.method, spec, experiment.seed)


def trained_by_hand(experiment, client):
    """Return the weights of a client after the first round, and its number of images."""
    network, shard = start_of(experiment), federation_of(experiment).shard(client)
    learn(
        network, shard, experiment.recipe, {},
        seed=experiment.seed, server_round=1, client=client, phase_round=1, phase_rounds=1,
    )  # fmt: skip
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}, len(shard)


def test_a_client_that_sits_out_sends_nothing_and_is_no_failure():
    experiment = small_experiment(**SOME)
    labeled = federation_of(experiment).labeled_sizes
    assert 0 < (labeled == 0).sum() < 6
    _, (first, _), _ = run(experiment)
    for row in first.clients:
        sits_out = labeled[row.client] == 0
        assert row.status == ("inactive" if sits_out else "ok")
        assert (row.bytes_up == 0) == sits_out
        assert (row.num_steps == 0) == sits_out
        assert row.num_examples > 0
    assert first.failures == []
    assert first.row.clients_inactive == (labeled == 0).sum()
    assert first.row.clients_ok == (labeled > 0).sum()
    assert (first.row.clients_failed, first.row.clients_lost) == (0, 0)


@pytest.mark.parametrize("weight", ["all", "uniform"])
def test_the_mean_is_that_of_the_clients_that_trained(weight):
    experiment = small_experiment(**SOME, rounds=1, strategy={"kind": "fedavg", "weight": weight})
    active = np.flatnonzero(federation_of(experiment).labeled_sizes)
    found = [trained_by_hand(experiment, int(client)) for client in active]
    sizes = np.array([n if weight == "all" else 1 for _, n in found], dtype=float)
    outcome, _, _ = run(experiment)
    for name, array in outcome.model.arrays.items():
        stack = np.stack([arrays[name] for arrays, _ in found]).astype(float)
        mean = np.tensordot(sizes / sizes.sum(), stack, axes=1)
        np.testing.assert_allclose(array, mean, rtol=1e-6, atol=1e-8)


def test_when_all_sit_out_only_the_server_trains_and_the_run_goes_on():
    experiment = small_experiment(**NOBODY, server={"train": {"local_steps": 3}})
    outcome, ends, _ = run(experiment)
    assert [row.clients_inactive for row in outcome.rounds] == [3, 3, 3]
    assert [row.clients_ok for row in outcome.rounds] == [0, 0, 0]
    assert [row.bytes_up for row in outcome.rounds] == [0, 0, 0]
    assert all(not end.failures for end in ends)
    # None of the images was used, as if a mask in each step had left them all out.
    assert [row.pseudo_label_coverage for row in outcome.rounds] == [0, 0, 0]
    training = ServerTraining(federation_of(experiment).server_shard())
    network = start_of(experiment)
    arrays = {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}
    for number in range(4):
        arrays = training.train(
            experiment.plans[0], network, arrays,
            server_round=number, phase=0, phase_round=number, is_measured=False,
        )  # fmt: skip
    for name, array in arrays.items():
        assert np.array_equal(outcome.model.arrays[name], array)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "scaffold", "feddyn", "flwr:FedAvg"])
def test_when_all_sit_out_no_strategy_moves_the_weights(strategy):
    """In the second round all rest; a server's momentum of the first round does not carry on by itself."""
    experiment = small_experiment(
        federation={"labels": {"per_class": 1}, "sample": 6},
        method={"kind": "tests.plugins.resting"},
        strategy=strategy,
        rounds=2,
    )
    outcome, (first, second), _ = run(experiment)
    assert (first.row.clients_ok, second.row.clients_inactive) == (6, 6)
    for name, array in first.model.arrays.items():
        assert outcome.model.arrays[name].tobytes() == array.tobytes()


def test_what_a_client_keeps_survives_a_round_that_it_sits_out():
    """The client's method goes on counting, and its momentum stays as the last step left it."""
    method, train = {"kind": "tests.plugins.resting"}, {"keep_momentum": True}
    federation = {"sample": 6, "labels": {"per_class": 4}}
    kept = []
    for rounds in (1, 2):
        experiment = small_experiment(
            method=method, train=train, federation=federation, rounds=rounds
        )
        _, _, grid = run(experiment)
        kept.append(kept_states(grid))
    for client in range(6):
        first, second = (states[client].array_records for states in kept)
        assert first["phase-0.memory"]["rounds"].numpy() == 1
        assert second["phase-0.memory"]["rounds"].numpy() == 2
        momentum = [protocol.from_record(r["phase-0.optimizer.sgd"]) for r in (first, second)]
        assert momentum[0]
        for name, array in momentum[0].items():
            assert np.array_equal(momentum[1][name], array)


@pytest.mark.parametrize("strategy", ["flwr:FedAvg", "flwr:FedAdam", "flwr:FedMedian"])
def test_flowers_strategies_see_the_replies_of_the_others_only(strategy):
    experiment = small_experiment(**SOME, strategy=strategy)
    outcome, ends, _ = run(experiment)
    inactive = int((federation_of(experiment).labeled_sizes == 0).sum())
    assert [row.clients_inactive for row in outcome.rounds] == [inactive] * 2
    assert [row.clients_failed for row in outcome.rounds] == [0, 0]
    assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())
    assert ends[0].row.update_norm > 0
    if strategy == "flwr:FedAvg":
        ours, _, _ = run(small_experiment(**SOME))
        for name, array in ours.model.arrays.items():
            np.testing.assert_allclose(outcome.model.arrays[name], array, rtol=1e-5, atol=1e-6)


def test_fused_engines_leave_clients_that_may_sit_out_alone():
    plain, ends, _ = run(small_experiment(**SOME))
    fused, fused_ends, _ = run(small_experiment(**SOME, engine={"fuse": 3}))
    for name, array in plain.model.arrays.items():
        assert fused.model.arrays[name].tobytes() == array.tobytes()
    assert [row.status for row in fused_ends[0].clients] == [r.status for r in ends[0].clients]


# the statistics of static normalization


def statistics(arrays):
    return {n: a for n, a in arrays.items() if n.endswith((".mean", ".mean_square"))}


@pytest.mark.parametrize("method", [NOBODY["method"], {"kind": "supervised"}])
def test_statistics_that_nobody_measured_in_the_round_are_the_servers(method):
    """Statistics that stayed would belong to weights that the server has left behind."""
    model = {"kind": "cnn", "norm": "static", "widths": [8, 16], "hidden": 16}
    settings = NOBODY | {"method": method, "model": model}
    outcome, ends, _ = run(small_experiment(**settings))
    by_server, _, _ = run(small_experiment(**settings, server={"statistics": "server"}))
    last = statistics(outcome.model.arrays)
    assert last
    for name, array in last.items():
        assert not np.array_equal(array, ends[0].model.arrays[name])
        assert np.array_equal(array, by_server.model.arrays[name])


# the machinery


MODEL = {"w": np.ones((2, 3), np.float32)}
METRICS = {"client": 1, "num-examples": 20, "num-labeled": 0, "num-confident": 0.0, "num-steps": 0}


def reply(arrays=None, **metrics):
    request = protocol.new_message("train", protocol.node_of(1), RecordDict())
    records = {} if arrays is None else {protocol.ARRAYS: protocol.to_record(arrays)}
    records[protocol.METRICS] = MetricRecord(METRICS | metrics)
    return Message(content=RecordDict(records), reply_to=request)


def added(message, weigh=by_examples, *, keeps_replies=False):
    """Return the answer to a message, beside an honest one, and the sums."""
    reduction = Reduction.of({protocol.ARRAYS: MODEL}, {protocol.ARRAYS: weigh})
    sums = CohortSums(reduction, 2, keeps_replies=keeps_replies)
    answer = sums.add(0, message, Holding(1, 20, 0))
    sums.add(1, reply({"w": np.full((2, 3), 7, np.float32)}))
    return answer, sums


@pytest.mark.parametrize("weigh", [by_examples, uniformly])
def test_its_place_is_left_out_of_the_sums(weigh):
    answer, sums = added(reply(inactive=1), weigh, keeps_replies=True)
    total, weight = sums.result()[protocol.ARRAYS]
    assert weight == weigh(METRICS)
    assert (total["w"] == 7 * weight).all()
    assert list(sums.replies) == [1]
    assert answer.num_bytes == 0
    assert answer.reason == ""


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (reply(MODEL, inactive=1), "1 records that were not asked for"),
        (reply(), "lacks its arrays"),
        (reply(inactive=0), "lacks its arrays"),
        (reply(**{"inactive": 1, "num-examples": 21}), "num-examples is 21"),
        (reply(**{"inactive": 1, "client": 2}), "from client 2"),
    ],
)
def test_only_an_honest_reply_may_lack_arrays(message, reason):
    answer, sums = added(message)
    assert answer.metrics is None
    assert reason in answer.reason
    assert sums.result()[protocol.ARRAYS][1] == 20


def test_the_log_counts_it_neither_as_ok_nor_as_failed_nor_as_lost():
    log = RoundLog(7, Census.unknown(4), {}, 2)
    log.note(added(reply(inactive=1))[0])
    assert (log.num_ok, log.num_inactive, log.num_lost, len(log.failures)) == (0, 1, 0, 0)
    (row,) = log.clients
    assert (row.client, row.status, row.bytes_up) == (1, "inactive", 0)
    assert [r for r in log.number_rows() if r.client == SERVER] == []
