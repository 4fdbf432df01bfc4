"""One contract for every strategy: a seeded cohort of m, right means, refused replies, and a run that stops in time."""

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedssl.clients.client_app import app
from fedssl.core.errors import InputError, RunFailed
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.sums import cohort_mean
from fedssl.experiment.families import STRATEGIES
from fedssl.methods.remixmatch import ReMixMatch
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from fedssl.strategies.by_sums import SumStrategy
from fedssl.strategies.fedavg import FedAvg
from tests.helpers import federation_of, kept_states, small_experiment

TABLE = [
    {"kind": "fedavg"},
    {"kind": "fedavg", "weight": "labeled"},
    {"kind": "fedavg", "weight": "confident"},
    {"kind": "fedavg", "weight": "uniform"},
    {"kind": "fedavg", "averaging": "population"},
    {"kind": "fedavg", "averaging": "population", "weight": "uniform"},
    {"kind": "fedprox", "mu": 0.1},
    {"kind": "scaffold"},
    {"kind": "feddyn"},
    {"kind": "fedavgm", "momentum": 0.5, "weight": "uniform"},
    {"kind": "cbafed", "every": 2},
    {"kind": "fedadagrad"},
    {"kind": "fedadam"},
    {"kind": "fedyogi"},
    {"kind": "flwr:FedAvg"},
    {"kind": "flwr:FedAdam", "options": {"eta": 0.01}},
    {"kind": "flwr:FedMedian"},
]


def name_of(section):
    return "-".join(str(value) for value in section.values())


@pytest.fixture
def census():
    known = Census.of_simulation(federation_of(small_experiment()))
    return Census(known.nodes, known.num_examples.copy(), known.num_labeled.copy())


@pytest.mark.parametrize("section", TABLE, ids=name_of)
def test_a_federation_runs_with_it_the_same_way_twice(section):
    experiment = small_experiment(strategy=section)
    first = serve(experiment, SerialGrid(Apps(app), 6), [])
    second = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert [row.clients_ok for row in first.rounds] == [3, 3]
    for name, array in first.model.arrays.items():
        assert np.isfinite(array).all()
        assert array.tobytes() == second.model.arrays[name].tobytes()


def messages_of(section, census, round=1, sample=3):
    strategy = STRATEGIES.build(section).build(Cohorts(census, sample, seed=0))
    arrays = protocol.to_record({"w": np.zeros(2, np.float32)})
    grid = SerialGrid(Apps(app), 6)
    config = protocol.request_config("{}", 0, 1, 1)
    return strategy, list(strategy.configure_train(round, arrays, config, grid))


@pytest.mark.parametrize("section", TABLE, ids=name_of)
def test_a_cohort_is_m_distinct_clients_drawn_by_seed(section, census):
    cohorts = []
    for round in range(1, 9):
        _, messages = messages_of(section, census, round)
        nodes = [message.metadata.dst_node_id for message in messages]
        assert len(nodes) == len(set(nodes)) == 3
        assert nodes == [m.metadata.dst_node_id for m in messages_of(section, census, round)[1]]
        assert all(m.content["config"]["server-round"] == round for m in messages)
        cohorts.append(tuple(nodes))
    assert len(set(cohorts)) > 3


def test_sampling_is_uniform(census):
    cohorts = Cohorts(census, 3, seed=1)
    counts = np.bincount([c for r in range(4000) for c in cohorts.draw(r)], minlength=6)
    assert abs(counts - 2000).max() < 5 * np.sqrt(4000 * 0.25)


@pytest.fixture
def ones():
    """The census of six clients of one image each, as `reply_to` replies by default."""
    return Census.unknown(6)


def reply_to(message: Message, value: float, **metrics) -> Message:
    from flwr.app import MetricRecord, RecordDict

    arrays = protocol.to_record({"w": np.full(2, value, np.float32)})
    record = MetricRecord({"num-examples": 1, "num-labeled": 1, "num-confident": 1.0} | metrics)
    return Message(content=RecordDict({"arrays": arrays, "metrics": record}), reply_to=message)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ("all", 40 / 20),
        ("labeled", 9 / 6),
        ("labeled_or_all", 9 / 6),
        ("confident", 20 / 8),
        ("uniform", 6 / 3),
    ],
)
def test_weights_are_the_choice_they_name(census, weight, expected):
    """Clients reply 1, 2, 3 with n = (5, 10, 5), labels (4, 1, 1), confident (1, 2, 5)."""
    counts = [(5, 4, 1.0), (10, 1, 2.0), (5, 1, 5.0)]
    for message, (n, k, _) in zip(messages_of({"kind": "fedavg"}, census)[1], counts, strict=True):
        client = census.client_at[message.metadata.dst_node_id]
        census.num_examples[client], census.num_labeled[client] = n, k
    strategy, messages = messages_of({"kind": "fedavg", "weight": weight}, census)
    replies = [
        reply_to(m, i + 1.0, **{"num-examples": n, "num-labeled": k, "num-confident": c})
        for i, (m, (n, k, c)) in enumerate(zip(messages, counts, strict=True))
    ]
    arrays, _ = strategy.aggregate_train(1, replies[::-1])
    np.testing.assert_allclose(protocol.from_record(arrays)["w"], expected)


def test_population_averaging_keeps_the_old_model_for_clients_not_sampled(ones):
    strategy, messages = messages_of(
        {"kind": "fedavg", "averaging": "population", "weight": "uniform"}, ones
    )
    arrays, _ = strategy.aggregate_train(1, [reply_to(m, 6.0) for m in messages])
    np.testing.assert_allclose(protocol.from_record(arrays)["w"], 3.0)  # 3 of 6 moved from 0 to 6


def test_population_weights_are_the_whole_federations(census):
    cohorts = Cohorts(census, 3, 0)
    assert FedAvg().population_weight(cohorts) == 400
    assert FedAvg(weight="labeled").population_weight(cohorts) == 40
    assert FedAvg(weight="labeled_or_all").population_weight(cohorts) == 40
    assert FedAvg(weight="uniform").population_weight(cohorts) == 6


def test_where_no_client_holds_a_label_labeled_or_all_counts_all_images(census):
    """Two replies, 1 with 5 images and 4 with 10: their mean is 3."""
    census.num_labeled[:] = 0
    strategy, messages = messages_of({"kind": "fedavg", "weight": "labeled_or_all"}, census)
    for message, n in zip(messages[:2], (5, 10), strict=True):
        census.num_examples[census.client_at[message.metadata.dst_node_id]] = n
    replies = [
        reply_to(message, value, **{"num-examples": n, "num-labeled": 0})
        for message, value, n in ((messages[0], 1.0, 5), (messages[1], 4.0, 10))
    ]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert protocol.from_record(arrays)["w"].tolist() == [3, 3]
    assert (
        FedAvg(weight="labeled_or_all").population_weight(Cohorts(census, 3, 0))
        == census.num_examples.sum()
    )


def test_nothing_that_counts_leaves_the_model_unchanged(ones):
    _, messages = messages_of({"kind": "fedavg"}, ones)
    drawn = [ones.client_at[message.metadata.dst_node_id] for message in messages]
    ones.num_labeled[drawn] = 0
    strategy, messages = messages_of({"kind": "fedavg", "weight": "labeled"}, ones)
    arrays, _ = strategy.aggregate_train(
        1, [reply_to(m, 9.0, **{"num-labeled": 0}) for m in messages]
    )
    assert protocol.from_record(arrays)["w"].tolist() == [0, 0]


def test_errors_and_silence_are_left_out(ones):
    strategy, messages = messages_of({"kind": "fedavg"}, ones)
    replies = [reply_to(messages[0], 4.0), protocol.error_reply(messages[1], "no")]
    arrays, _ = strategy.aggregate_train(1, replies)
    assert protocol.from_record(arrays)["w"].tolist() == [4, 4]


def test_hooks_are_enough_for_a_strategy_of_ones_own(ones):
    class Halfway(SumStrategy):
        def select(self, server_round):
            return [5, 1]

        def after(self, server_round, arrays, aggregate):
            return {k: (arrays[k] + aggregate[k]) / 2 for k in arrays}

    strategy = Halfway(Cohorts(ones, 3, 0))
    start = protocol.to_record({"w": np.zeros(2, np.float32)})
    messages = list(
        strategy.configure_train(
            1, start, protocol.request_config("{}", 0, 1, 1), SerialGrid(Apps(app), 6)
        )
    )
    assert [protocol.client_of(m.metadata.dst_node_id) for m in messages] == [5, 1]
    arrays, _ = strategy.aggregate_train(1, [reply_to(m, 8.0) for m in messages])
    assert protocol.from_record(arrays)["w"].tolist() == [4, 4]
    assert cohort_mean({"w": np.ones(1)}, 2.0, {"w": np.ones(1)})["w"] == 0.5


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"kind": "flwr:FedAvgg"}, r"strategy.kind: Flower has no strategy 'FedAvgg'; did you mean 'FedAvg'"),
        ({"kind": "flwr:FedAdam", "options": {"etta": 1}}, r"strategy.options: FedAdam refuses these options"),
        ({"kind": "flwr:FedAvg", "options": {"fraction_train": 0.5}}, r"fraction_train: cannot be set: federation.sample decides it"),
        ({"kind": "flwr:DifferentialPrivacyServerSideFixedClipping"}, r"strategy"),
        ({"kind": "flwr:FedProx", "options": {"proximal_mu": 1.0}}, r"FedProx cannot be used: our clients do not add its proximal term"),
        ({"kind": "flwr:FedXgbBagging"}, r"FedXgbBagging cannot be used"),
    ],
)  # fmt: skip
def test_flower_strategies_that_cannot_be(section, message, census):
    with pytest.raises(InputError, match=message):
        STRATEGIES.build(section).build(Cohorts(census, 3, 0))


class Tampering(SerialGrid):
    """A grid whose replies from the first client of a round are spoilt."""

    def __init__(self, spoil):
        super().__init__(Apps(self._ask), 6)
        self._spoil = spoil
        self._round = 0

    def _ask(self, message, context):
        reply, last = app(message, context), self._round
        self._round = message.content["config"]["server-round"]
        return reply if self._round == last else self._spoil(reply)


def with_arrays(reply, change):
    arrays = change(protocol.from_record(reply.content["arrays"]))
    reply.content["arrays"] = protocol.to_record(arrays)
    return reply


def with_metric(reply, name, value):
    reply.content["metrics"][name] = value
    return reply


SPOILT = {
    "nan": (lambda r: with_arrays(r, lambda a: {k: v * np.float32("nan") for k, v in a.items()}), "not finite"),
    "shape": (lambda r: with_arrays(r, lambda a: {k: v.ravel()[:1] for k, v in a.items()}), "name, shape or type"),
    "type": (lambda r: with_arrays(r, lambda a: {k: v.astype(np.float64) for k, v in a.items()}), "shape or type"),
    "count": (lambda r: with_metric(r, "num-examples", float("nan")), "num-examples is nan"),
    "negative": (lambda r: with_metric(r, "num-labeled", -3), "num-labeled is -3"),
    "class": (lambda r: with_metric(r, "pseudo-by-class", [-1.0] * 40), "pseudo-by-class holds -1"),
    "odd class": (lambda r: with_metric(r, "pseudo-by-class", [float("inf")] * 40), "pseudo-by-class holds inf"),
    "more images": (lambda r: with_metric(r, "num-examples", 10**12), "but the census says"),
    "more labels": (lambda r: with_metric(r, "num-labeled", r.content["metrics"]["num-examples"]), "but the census says"),
    "steps": (lambda r: with_metric(r, "num-steps", float("nan")), "num-steps is nan"),
    "loss": (lambda r: with_metric(r, "loss", 1e308), "training diverged"),
    "another": (lambda r: with_metric(r, "client", 77), "says that it is from client 77"),
    "large": (lambda r: with_arrays(r, lambda a: {k: (v + np.float32(1e30)).astype(v.dtype) if v.dtype == np.float32 else v for k, v in a.items()}), "reach beyond"),
    "names": (lambda r: with_arrays(r, lambda a: {f"x{k}": v for k, v in a.items()}), "name, shape or type"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
@pytest.mark.parametrize("section", [{"kind": "fedavg"}, {"kind": "flwr:FedAvg"}], ids=name_of)
def test_replies_that_must_not_be_averaged(case, section):
    spoil, reason = SPOILT[case]
    seen = Watcher()
    outcome = serve(small_experiment(strategy=section), Tampering(spoil), [seen])
    assert all(row.clients_failed == 1 and row.clients_ok == 2 for row in outcome.rounds)
    assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())
    assert all(reason in failure.reason for failure in seen.failures)
    assert len(seen.failures) == 2


class Unusable(SumStrategy):
    """Answer with a model that is not finite in some rounds."""

    def __init__(self, cohorts, rounds):
        super().__init__(cohorts)
        self.rounds = rounds

    def after(self, server_round, arrays, aggregate):
        factor = np.float32("nan" if server_round in self.rounds else 1)
        return {name: array * factor for name, array in aggregate.items()}


def test_an_answer_that_is_not_finite_leaves_the_old_model_and_is_an_incident():
    experiment, seen = small_experiment(rounds=4), Watcher()
    with pytest.MonkeyPatch.context() as patch:
        kind = type(experiment.strategy)
        patch.setattr(kind, "build", lambda self, cohorts: Unusable(cohorts, (2, 4)))
        outcome = serve(experiment, SerialGrid(Apps(app), 6), [seen])
        assert [len(row) for row in seen.incidents] == [0, 1, 0, 1]
        said = seen.incidents[1][0]
        assert "not finite: the old model is kept; the round averaged clients [" in said
        assert all(np.isfinite(array).all() for array in outcome.model.arrays.values())
        assert outcome.rounds[0].server_loss == outcome.rounds[1].server_loss
        assert outcome.rounds[1].server_loss != outcome.rounds[2].server_loss
        patch.setattr(kind, "build", lambda self, cohorts: Unusable(cohorts, (2, 3)))
        with pytest.raises(RunFailed, match="answer to round 3 is not finite, nor was the answer"):
            serve(experiment, SerialGrid(Apps(app), 6), [])


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedAvg"])
def test_whose_reply_is_refused_keeps_what_it_had(strategy):
    method = {"kind": "temporal_ensembling", "unlabeled_ratio": 1}
    experiment = small_experiment(method=method, strategy=strategy, rounds=1)
    grid, seen = Tampering(SPOILT["nan"][0]), Watcher()
    serve(experiment, grid, [seen])
    refused = {failure.client for failure in seen.failures}
    assert len(refused) == 1
    assert len(kept_states(grid)) == 2
    assert refused.isdisjoint(kept_states(grid))


def test_a_round_that_asks_nobody_ends_the_run():
    class Nobody(SumStrategy):
        def select(self, server_round):
            return []

    strategy = small_experiment().strategy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(strategy), "build", lambda self, cohorts: Nobody(cohorts))
        with pytest.raises(RunFailed, match="no client was sampled"):
            serve(small_experiment(), SerialGrid(Apps(app), 6), [])


def test_silence_is_a_failure_whatever_grid_it_is():
    """A grid that is not ours, such as Flower's, may answer less than it was asked."""

    class Silent(Grid):
        def __init__(self):
            self.inner = SerialGrid(Apps(app), 6)

        def send_and_receive(self, messages, *, timeout=None):
            replies = list(self.inner.send_and_receive(messages, timeout=timeout))
            return replies if replies[0].metadata.message_type == "query" else replies[1:]

        def get_node_ids(self):
            return self.inner.get_node_ids()

        set_run = run = create_message = push_messages = pull_messages = None

    for strategy in ("fedavg", "flwr:FedAvg"):
        seen = Watcher()
        serve(small_experiment(strategy=strategy), Silent(), [seen])
        assert [failure.reason for failure in seen.failures] == ["no reply in time"] * 2


def test_fewer_successes_than_asked_for_end_the_run_with_the_first_reason():
    spoil, _ = SPOILT["nan"]
    for least, runs_on in ((0.6, True), (0.7, False)):
        experiment = small_experiment(server={"min_success": least})  # 2 of 3 succeed
        seen = Watcher()
        if runs_on:
            serve(experiment, Tampering(spoil), [seen])
            continue
        with pytest.raises(
            RunFailed, match=r"2 of 3 clients of round 1 (.|\n)*min_success = 0.7(.|\n)*not finite"
        ):
            serve(experiment, Tampering(spoil), [seen])
        assert len(seen.failures) == 1


class Watcher(Observer):
    def __init__(self):
        self.failures = []
        self.incidents = []
        self.stopped = None

    def round_ended(self, end):
        self.failures += end.failures
        self.incidents.append(end.incidents)

    def failed(self, reason):
        self.stopped = reason


@pytest.mark.parametrize(
    "adam", [{"kind": "fedadam"}, {"kind": "flwr:FedAdam", "options": {"eta": 0.01}}], ids=name_of
)
def test_a_servers_optimizer_goes_on_through_phases(adam):
    """FedAdam over 1 + 2 rounds in two phases is FedAdam over 3 rounds: its moments are not made anew."""
    supervised = {"kind": "supervised"}
    whole = small_experiment(strategy=adam, rounds=3, method=supervised)
    phased = small_experiment(
        strategy=adam, rounds=None, method=supervised, phases=[{"rounds": 1}, {"rounds": 2}]
    )
    first, second = (serve(e, SerialGrid(Apps(app), 6), []).model.arrays for e in (whole, phased))
    assert all(first[k].tobytes() == second[k].tobytes() for k in first)


def test_a_round_in_which_all_fail_stops_the_run():
    seen = Watcher()
    experiment = small_experiment(method={"kind": "tests.plugins.raising"})
    with pytest.raises(RunFailed, match=r"all clients of round 1 failed(.|\n)*broken on purpose"):
        serve(experiment, SerialGrid(Apps(app), 6), [seen])
    assert len(seen.failures) == 3
    assert "Traceback" in seen.failures[0].reason
    assert "all clients of round 1 failed" in seen.stopped


def test_a_client_that_is_away_is_asked_again_by_the_census(monkeypatch):
    monkeypatch.setattr("fedssl.exchange.census.AWAY_PAUSE", 0.0)
    experiment, grid, asked = small_experiment(), SerialGrid(Apps(app), 6), []

    def ask(messages):
        asked.append([protocol.client_of(message.metadata.dst_node_id) for message in messages])
        for message, reply in zip(messages, grid.send_and_receive(messages), strict=True):
            is_away = asked[-1] != [2] and message is messages[2]
            yield protocol.error_reply(message, "away", protocol.AWAY) if is_away else reply

    found = Census.by_query(ask, grid.get_node_ids(), experiment.to_client_json(), 6)
    assert asked == [[0, 1, 2, 3, 4, 5], [2]]
    assert found.num_examples.tolist() == federation_of(experiment).sizes.tolist()
    monkeypatch.setattr("fedssl.exchange.census.AWAY_TIMEOUT", 0.0)
    with pytest.raises(
        RunFailed, match=r"node 4 is left out: it could not answer the census: away"
    ):
        Census.by_query(ask, grid.get_node_ids(), experiment.to_client_json(), 6)


def test_the_census_by_query_equals_the_simulators(experiment):
    grid = SerialGrid(Apps(app), 6)
    asked = Census.by_query(
        grid.send_and_receive, grid.get_node_ids(), experiment.to_client_json(), 6
    )
    known = Census.of_simulation(federation_of(experiment))
    assert asked.nodes == known.nodes
    assert np.array_equal(asked.num_examples, known.num_examples)
    assert np.array_equal(asked.num_labeled, known.num_labeled)


def test_a_census_that_does_not_add_up(experiment):
    grid = SerialGrid(Apps(app), 6)
    nodes = list(grid.get_node_ids())
    with pytest.raises(RunFailed, match=r"no census from clients \[5\]"):
        Census.by_query(grid.send_and_receive, nodes[:5], experiment.to_client_json(), 6)
    with pytest.raises(RunFailed, match=r"node 2 is left out: it could not answer the census"):
        Census.by_query(grid.send_and_receive, nodes, "not json", 6, min_success=0.0)


@pytest.mark.parametrize("norm", ["batch", "static"])
def test_the_moving_average_takes_the_latest_statistics_of_normalization(norm):
    """Its weights lag behind the global model's, its buffers are the global model's own."""
    experiment = small_experiment(rounds=3, model={"norm": norm}, method="supervised")
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    buffers = {
        name for name in outcome.model.arrays if "mean" in name or "var" in name or "num" in name
    }
    assert buffers
    for name, array in outcome.model.arrays.items():
        assert (array == outcome.model.ema[name]).all() == (name in buffers), name


STATISTICS = [
    {"kind": "freematch", "ema_decay": 0.5},
    {"kind": "flexmatch", "status_scope": "server", "threshold": 0.2},
    {"kind": "remixmatch", "num_strong": 1, "alignment_scope": "server"},
    {"kind": "proxyfl", "threshold": 0.2, "prior_decay": 0.5},
]
STRATEGIES_OF_ALL_KINDS = [
    {"kind": "fedavg"},
    {"kind": "fedavg", "averaging": "population", "weight": "labeled"},
    {"kind": "fedavgm"},
    {"kind": "flwr:FedAvgM", "options": {"server_momentum": 0.9}},
    {"kind": "flwr:FedAdam", "options": {"eta": 0.1}},
]


@pytest.mark.parametrize("method", STATISTICS, ids=lambda m: m["kind"])
@pytest.mark.parametrize("strategy", STRATEGIES_OF_ALL_KINDS, ids=lambda s: str(list(s.values())))
def test_distributions_stay_distributions_whatever_the_strategy_does_with_weights(method, strategy):
    experiment = small_experiment(method=method, strategy=strategy, rounds=6)
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert outcome.rounds[-1].clients_ok == 3
    distributions = {
        "statistics/probs", "statistics/shares", "status/shares", "alignment/recent", "prior/probs",
    }  # fmt: skip
    found = [outcome.model.state[name] for name in distributions & set(outcome.model.state)]
    assert found
    for array in found:
        assert (array >= 0).all()
        np.testing.assert_allclose(array.sum(-1), 1, atol=1e-4)


def test_the_servers_state_is_the_mean_of_the_cohorts_by_images():
    """FlexMatch's shares after a round: those of all images of its cohort together."""
    method = {"kind": "flexmatch", "threshold": 0.1}
    experiment = small_experiment(method=method, rounds=1)
    grid = SerialGrid(Apps(app), 6)
    outcome = serve(experiment, grid, [])
    memories = [
        s.array_records["phase-0.confident"]["classes"].numpy() for s in kept_states(grid).values()
    ]
    everything = np.concatenate(memories)
    counts = np.bincount(everything + 1, minlength=11)
    assert len(memories) == 3
    np.testing.assert_allclose(
        outcome.model.state["status/shares"], counts / counts.sum(), atol=1e-6
    )


@pytest.mark.parametrize("strategy", STRATEGIES_OF_ALL_KINDS, ids=lambda s: str(list(s.values())))
def test_remixmatch_aligns_to_the_labels_of_the_cohort_wherever_they_are(strategy):
    """With every client in each cohort and skewed labels, the class distribution is that of all labels together."""
    method = {"kind": "remixmatch", "num_strong": 1, "label_decay": 0}
    labels = {"kind": "skewed", "alpha": 0.1, "per_class": [1, 9, 2, 0, 0, 0, 0, 0, 0, 3]}
    federation = {"clients": 6, "sample": 6, "labels": labels}
    experiment = small_experiment(method=method, strategy=strategy, rounds=2, federation=federation)
    drawn = federation_of(experiment)
    expected = np.bincount(drawn.given[drawn.labeled], minlength=10) / drawn.labeled.sum()
    assert len(set(drawn.labeled_sizes.tolist())) > 2
    state = serve(experiment, SerialGrid(Apps(app), 6), []).model.state
    alignment = {key: torch.from_numpy(state[f"alignment/{key}"]) for key in ("labels", "steps")}
    found = ReMixMatch(label_decay=0).wanted_distribution(alignment)
    np.testing.assert_allclose(found, expected, atol=1e-6)
