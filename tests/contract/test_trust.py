"""Trust: arrays that a server's optimizer must not change, and the harm that one malicious client can do."""

import math

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from benchmarks.malicious import Strangers
from fedssl.app.simulation import check_experiment
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError, RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.metrics.drift import update_norm
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from fedssl.strategies.by_sums import SumStrategy
from tests.helpers import small_experiment

BUFFERS = ("running_mean", "running_var", "num_batches_tracked")

OPTIMIZERS = [
    {"kind": "fedadagrad"},
    {"kind": "fedadam"},
    {"kind": "fedavgm"},
    {"kind": "fedyogi"},
    {"kind": "flwr:FedAvg"},
    {"kind": "flwr:FedAdam"},
    {"kind": "flwr:FedYogi"},
    {"kind": "flwr:FedAdagrad"},
    {"kind": "flwr:FedAvgM", "options": {"server_momentum": 0.9, "server_learning_rate": 0.5}},
    {"kind": "flwr:FedMedian"},
    {"kind": "flwr:FedTrimmedAvg", "options": {"beta": 0.34}},
    {"kind": "flwr:Krum"},
    {"kind": "flwr:MultiKrum", "options": {"num_nodes_to_select": 2}},
    {"kind": "flwr:Bulyan"},
    {"kind": "flwr:QFedAvg", "options": {"client_learning_rate": 0.1}},
]


def statistics(arrays):
    return {name: array for name, array in arrays.items() if name.endswith(BUFFERS)}


def with_statistics(strategy, **sections):
    return small_experiment(rounds=1, model={"norm": "batch"}, strategy=strategy, **sections)


def test_every_strategy_of_flower_that_can_be_named_is_tried_or_refused():
    from flwr.serverapp import strategy as flower_strategies

    from fedssl.core.known_names import NO_STRATEGIES, NOT_OURS

    tried = {section["kind"].removeprefix("flwr:") for section in OPTIMIZERS} | set(NOT_OURS)
    names = set(flower_strategies.__all__) - {*NO_STRATEGIES} - tried
    for name in names:  # those of differential privacy wrap another one, which a file cannot name
        with pytest.raises(InputError, match=r"strategy.options.*refuses"):
            check_experiment(small_experiment(strategy=f"flwr:{name}"))


@pytest.mark.parametrize("strategy", OPTIMIZERS, ids=lambda section: section["kind"])
def test_statistics_are_the_cohorts_mean_under_every_strategy(strategy):
    grid = SerialGrid(Apps(app), 6)
    plain = serve(with_statistics("fedavg"), grid, []).model.arrays
    served = serve(with_statistics(strategy), SerialGrid(Apps(app), 6), []).model.arrays
    expected = statistics(plain)
    assert expected
    for name, array in expected.items():
        assert served[name].dtype == array.dtype
        assert served[name].tobytes() == array.tobytes()
    counts = [array for name, array in expected.items() if name.endswith("num_batches_tracked")]
    assert all(count.dtype == np.int64 and count > 0 for count in counts)
    assert list(served) == list(plain)


def test_a_step_of_a_strategy_of_ones_own_is_handed_parameters_only(monkeypatch):
    seen = []

    def after(self, server_round, arrays, aggregate):
        seen.append((set(arrays), set(aggregate)))
        return {name: array + 1 for name, array in aggregate.items()}

    plain = serve(with_statistics("fedavg"), SerialGrid(Apps(app), 6), []).model.arrays
    monkeypatch.setattr(SumStrategy, "after", after)
    moved = serve(with_statistics("fedavg"), SerialGrid(Apps(app), 6), []).model.arrays
    parameters = set(plain) - set(statistics(plain))
    assert seen == [(parameters, parameters)]
    for name, array in plain.items():
        np.testing.assert_array_equal(moved[name], array + 1 if name in parameters else array)


def test_momentum_goes_on_from_where_the_server_trained_to():
    """With a learning rate of 1 and next to no momentum FedAvgM is FedAvg, trained at the server or not."""
    sections = {"federation": {"labels": {"kind": "at_server", "per_class": 4}}}
    settings = {"server_momentum": 1e-12, "server_learning_rate": 1.0}
    plain = small_experiment(strategy="flwr:FedAvg", **sections)
    momentum = small_experiment(strategy={"kind": "flwr:FedAvgM", "options": settings}, **sections)
    expected = serve(plain, SerialGrid(Apps(app), 6), []).model.arrays
    arrays = serve(momentum, SerialGrid(Apps(app), 6), []).model.arrays
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, atol=1e-5)


class Rounds(Observer):
    def __init__(self):
        self.ok = []
        self.failures = []

    def round_ended(self, end):
        self.ok.append(end.row.clients_ok)
        self.failures += end.failures


def lying(lie, liars=1):
    """Return an app of which the first clients that answer in a round lie."""
    count = [0]

    def answer(message: Message, context):
        reply = app(message, context)
        count[0] += 1
        return lie(message, reply) if count[0] % 3 < liars else reply

    return answer


def with_extra_record(message, reply):
    reply.content["more"] = ArrayRecord({"w": Array(np.zeros(2))})
    return reply


def with_extra_metrics(message, reply):
    reply.content["numbers"] = MetricRecord({"n": 1})
    return reply


def with_extra_metric(message, reply):
    reply.content["metrics"]["more"] = 1.0
    return reply


def without_the_loss(message, reply):
    metrics = {k: v for k, v in reply.content["metrics"].items() if k != "loss"}
    content = {"arrays": reply.content["arrays"], "metrics": MetricRecord(metrics)}
    return Message(content=RecordDict(content), reply_to=message)


@pytest.mark.parametrize(
    "lie", [with_extra_record, with_extra_metrics, with_extra_metric, without_the_loss]
)
@pytest.mark.parametrize("kind", ["Krum", "FedMedian", "FedAvg", "QFedAvg"])
def test_one_reply_of_another_form_ends_no_run(kind, lie):
    options = {"client_learning_rate": 0.1} if kind == "QFedAvg" else {}
    experiment = small_experiment(rounds=1, strategy={"kind": f"flwr:{kind}", "options": options})
    seen = Rounds()
    outcome = serve(experiment, SerialGrid(Apps(lying(lie)), 6), [seen])
    assert seen.ok[0] >= 2
    assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weighted_by_key": "loss"}, "weighted_by_key.*one of: num-examples"),
        ({"arrayrecord_key": "x"}, "arrayrecord_key"),
        ({"configrecord_key": "x"}, "configrecord_key"),
        ({"min_evaluate_nodes": 3}, "min_evaluate_nodes"),
        ({"train_loss_key": "x", "client_learning_rate": 0.1}, "train_loss_key"),
    ],
)
def test_options_that_cannot_mean_what_they_say_are_refused(options, said):
    kind = "QFedAvg" if "train_loss_key" in options else "FedAvg"
    with pytest.raises(InputError, match=said):
        check_experiment(small_experiment(strategy={"kind": f"flwr:{kind}", "options": options}))


def test_a_cohort_that_bulyan_would_never_aggregate_is_refused():
    strategy = {"kind": "flwr:Bulyan", "options": {"num_malicious_nodes": 1}}
    with pytest.raises(InputError, match=r"federation.sample: is 3, but Bulyan needs 7"):
        check_experiment(small_experiment(strategy=strategy))


def test_where_no_reply_counts_the_model_stays():
    """Labels are at the server: every client holds none, and its reply counts nothing."""
    strategy = {"kind": "flwr:FedAvg", "options": {"weighted_by_key": "num-labeled"}}
    labels = {"labels": {"kind": "at_server", "per_class": 4}}
    experiment = small_experiment(rounds=1, strategy=strategy, federation=labels)
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert math.isnan(outcome.rounds[0].update_norm) or outcome.rounds[0].update_norm == 0


# ---- how far one client can move the global model ----


def pushing(length, num_liars=1, dtype=None):
    """Return an app whose client 0 sends an update of this length, all in one direction."""

    def answer(message, context):
        reply = app(message, context)
        is_asked = message.metadata.message_type == "train"
        if not is_asked or int(context.node_config["partition-id"]) >= num_liars:
            return reply
        before = protocol.from_record(message.content["arrays"])
        floats = [name for name, array in before.items() if array.dtype.kind == "f"]
        size = sum(before[name].size for name in floats)
        pushed = {
            n: (a + length / math.sqrt(size)).astype(a.dtype) if n in floats else a
            for n, a in before.items()
        }
        reply.content["arrays"] = protocol.to_record(pushed)
        return reply

    return answer


TEN = {"clients": 10, "sample": 10}
UNIFORM = {"kind": "fedavg", "weight": "uniform"}


def ours(answer, num_clients):
    return SerialGrid(Apps(answer), num_clients)


def run_with(answer, grid=ours, **sections):
    seen = Rounds()
    experiment = small_experiment(**{"rounds": 1, "federation": TEN, **sections})
    return serve(experiment, grid(answer, 10), [seen]), seen


def displacement(one, other):
    return update_norm(one.model.arrays, other.model.arrays)


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("length", [1.0, 1.0001, 1e3, 1e15])
def test_one_malicious_client_moves_the_model_by_its_share_of_the_clipping_norm(length, norm):
    """Of ten that count alike. An update as long as the norm is counted, a longer one is refused."""
    sections = {
        "privacy": {"clipping_norm": 0.1},
        "strategy": UNIFORM,
        "model": {"norm": norm},
    }
    pushed, seen = run_with(pushing(0.1 * length), **sections)
    if length <= 1:
        still, _ = run_with(pushing(0.0), **sections)
        assert not seen.failures
        assert displacement(still, pushed) == pytest.approx(0.1 / 10, rel=1e-3)
        return
    (failure,) = seen.failures
    assert failure.client == 0
    assert "update has length" in failure.reason or "reach beyond" in failure.reason
    honest, _ = run_with(app, **sections)
    # Nine or ten honest updates of length C at most: their means differ by no more than 2 C / 10.
    assert displacement(honest, pushed) <= 2 * 0.1 / 10 * (1 + 1e-3)


def test_the_bound_holds_under_flowers_strategies_too():
    _, seen = run_with(
        pushing(5.0), privacy={"clipping_norm": 0.1}, strategy={"kind": "flwr:FedAvg"}
    )
    assert [failure.client for failure in seen.failures] == [0]


def test_honest_noise_is_within_the_bound_and_more_is_not():
    privacy = {"clipping_norm": 0.1, "noise_multiplier": 2.0}
    _, honest = run_with(app, privacy=privacy)
    assert honest.ok == [10]
    _, seen = run_with(pushing(50.0), privacy=privacy)
    assert [failure.client for failure in seen.failures] == [0]


def test_an_update_that_is_longer_than_the_operator_allows_is_refused():
    far, near = run_with(pushing(1e3)), run_with(pushing(1e3), server={"max_update_norm": 5.0})
    assert far[1].ok == [10]
    assert near[1].ok == [9]
    assert "update has length 1000, more than 5" in near[1].failures[0].reason
    assert displacement(near[0], run_with(app)[0]) < 5 / 9 < displacement(far[0], run_with(app)[0])


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedAvg"])
@pytest.mark.parametrize("length", [1e2, 1e4, 1e9])
def test_in_a_deployment_no_update_is_far_longer_than_the_others(length, strategy):
    """Clients that others started: without a setting, and the run goes on and learns for all its rounds."""
    honest, _ = run_with(app, Strangers, rounds=3, strategy=strategy)
    pushed, seen = run_with(pushing(length), Strangers, rounds=3, strategy=strategy)
    assert seen.ok == [9, 9, 9]
    assert {failure.client for failure in seen.failures} == {0}
    assert "more than server.max_update_ratio = 10 times the longest of" in seen.failures[0].reason
    assert displacement(honest, pushed) < 2 * max(row.update_norm for row in honest.rounds)


def test_what_is_not_far_longer_is_averaged_in_a_deployment_too():
    """Up to half the model's length even where the others hardly move, as without labels; and up to ten times the others'."""
    still = {"train": {"lr": 1e-6}}
    allowed, _ = run_with(pushing(1.0), Strangers, **still)
    assert [row.clients_ok for row in allowed.rounds] == [10]
    refused, seen = run_with(pushing(100.0), Strangers, **still)
    assert [row.clients_ok for row in refused.rounds] == [9]
    assert "the longest of the others" in seen.failures[0].reason
    more, _ = run_with(pushing(100.0), Strangers, **still, server={"max_update_ratio": 1e9})
    assert [row.clients_ok for row in more.rounds] == [10]
    same, other = run_with(app)[0], run_with(app, Strangers)[0]
    assert all(other.model.arrays[n].tobytes() == a.tobytes() for n, a in same.model.arrays.items())


def sending(**state):
    """Return an app whose client 0 sends other method state, by the end of its arrays' names."""

    def answer(message, context):
        reply = app(message, context)
        is_liar = int(context.node_config["partition-id"]) == 0
        if message.metadata.message_type != "train" or not is_liar or reply.has_error():
            return reply
        arrays = protocol.from_record(reply.content["state"])
        for name, array in arrays.items():
            if (end := name.rpartition("/")[2]) in state:
                arrays[name] = np.full_like(array, state[end])
        reply.content["state"] = protocol.to_record(arrays)
        return reply

    return answer


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedMedian"])
@pytest.mark.parametrize(
    ("method", "state"),
    [
        ({"kind": "remixmatch", "unlabeled_ratio": 2}, {"steps": -1e5}),
        ({"kind": "remixmatch", "unlabeled_ratio": 2}, {"labels": 1e10}),
        ({"kind": "freematch", "unlabeled_ratio": 2}, {"steps": -40.0}),
        ({"kind": "freematch", "unlabeled_ratio": 2}, {"probs": 1e10, "shares": 1.0}),
    ],
)
def test_no_state_of_one_client_ends_a_deployments_run(method, state, strategy):
    outcome, seen = run_with(
        sending(**state), Strangers, rounds=3, method=method, strategy=strategy
    )
    assert seen.ok == [9, 9, 9]
    assert "state" in seen.failures[0].reason
    assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())


def test_a_client_that_is_asked_twice_is_compared_the_second_time_too():
    """Its second reply is the only one of its wave, so it is compared with the replies of the first wave."""

    def answer(message, context):
        is_second = protocol.REPEAT in message.content.get("config", {})
        return (pushing(1e4) if is_second else app)(message, context)

    strategy = {"kind": "tests.plugins.listed", "clients": [1, 0, 2, 3, 0]}
    _, seen = run_with(answer, Strangers, strategy=strategy)
    assert seen.ok == [4]
    (failure,) = seen.failures
    assert failure.client == 0
    assert "times the longest of the others" in failure.reason


@pytest.mark.parametrize("kind", ["remixmatch", "freematch", "softmatch"])
def test_the_state_of_honest_clients_is_averaged_in_a_deployment(kind):
    """Where one of them holds all labels, too."""
    method = {"kind": kind, "unlabeled_ratio": 2}
    labels = {"labels": {"kind": "some_clients", "per_class": 1, "labeled_clients": 1}}
    _, seen = run_with(
        app, Strangers, rounds=2, method=method, federation={**TEN, **labels, "partition": "iid"}
    )
    assert seen.ok == [10, 10]


def test_of_two_clients_neither_can_have_the_other_refused():
    pair = {"clients": 2, "sample": 2}
    experiment = small_experiment(rounds=1, federation=pair)
    seen = Rounds()
    serve(experiment, Strangers(pushing(0.0), 2), [seen])
    assert seen.ok == [2]


def test_a_bound_that_nobody_meets_changes_no_bit_on_any_path():
    plain, bound = run_with(app), run_with(app, server={"max_update_norm": 1e6})
    assert all(
        bound[0].model.arrays[n].tobytes() == a.tobytes() for n, a in plain[0].model.arrays.items()
    )


def test_a_bound_that_everybody_breaks_ends_the_run_with_the_reason():
    with pytest.raises(RunFailed, match=r"update has length .* more than 1e-09"):
        run_with(app, server={"max_update_norm": 1e-9})
