"""The ClientApp over messages: its answers, its kept state, and its refusals."""

import json

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict

from fedssl.clients.client_app import app
from fedssl.clients.state import kept_slots, refuse_divergence, save_state, shared_state
from fedssl.clients.weights import Weights
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings
from fedssl.experiment.experiment import Experiment
from fedssl.methods.supervised import Supervised
from fedssl.metrics.accuracy import evaluate
from fedssl.training.learn import fill_slots
from fedssl.training.network import build_network
from tests.helpers import federation_of, small_experiment
from tests.plugins.stateful import Stateful

protocol.claim_identity(1)


def ask(experiment, kind, node_config, arrays=None, state=None):
    config = protocol.request_config(experiment.to_client_json(), 0, 1, 2)
    config[protocol.ROUND] = 1
    content = RecordDict({protocol.CONFIG: config})
    if arrays is not None:
        content[protocol.ARRAYS] = protocol.to_record(arrays)
    message = protocol.new_message(kind, protocol.node_of(0), content)
    context = Context(
        run_id=1,
        node_id=2,
        node_config=node_config,
        state=RecordDict() if state is None else state,
        run_config={},
    )
    return app(message, context)


def network_of(experiment):
    spec = federation_of(experiment).data.spec
    return build_network(experiment.model, experiment.method, spec, experiment.seed)


def test_train_replies_with_weights_and_counts(experiment):
    federation = federation_of(experiment)
    start = network_of(experiment).state_dict()
    reply = ask(experiment, "train", {"partition-id": 3}, start)
    metrics = protocol.metrics_of(reply)
    assert metrics["client"] == 3
    assert metrics["num-examples"] == federation.sizes[3]
    assert metrics["num-labeled"] == federation.labeled_sizes[3]
    assert metrics["num-labeled"] <= metrics["num-confident"] <= metrics["num-examples"]
    arrays = protocol.from_record(reply.content[protocol.ARRAYS])
    assert set(arrays) == set(start)
    assert any(not np.array_equal(arrays[k], start[k].numpy()) for k in start)


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_client_says_how_far_its_weights_went_and_what_it_labeled(norm):
    """Statistics of batch normalization are shared and count; how often they were updated does not."""
    experiment = small_experiment(model={"norm": norm})
    start = network_of(experiment).state_dict()
    reply = ask(experiment, "train", {"partition-id": 3}, start)
    arrays = protocol.from_record(reply.content[protocol.ARRAYS])
    floats = [name for name, tensor in start.items() if tensor.is_floating_point()]
    assert (len(floats) == len(start)) == (norm == "group")
    changes = [(np.float64(arrays[n]) - np.float64(start[n].numpy())).ravel() for n in floats]
    metrics = protocol.metrics_of(reply)
    assert metrics["update-norm"] == pytest.approx(np.linalg.norm(np.concatenate(changes)))
    assert metrics["update-norm"] > 0
    counts = protocol.all_metrics_of(reply)[protocol.BY_CLASS]
    sums = np.reshape(counts, (4, 10)).sum(1).tolist()
    totals = [metrics[f"pseudo-{name}"] for name in ("considered", "accepted", "judged", "right")]
    assert sums == pytest.approx(totals)


def test_federated_evaluation_adds_up_to_the_central_one(experiment):
    network = network_of(experiment)
    federation = federation_of(experiment)
    held_out = federation.held_out
    import torch

    central = evaluate(
        network,
        torch.from_numpy(held_out.images),
        torch.from_numpy(held_out.labels),
        federation.data.spec,
    )
    replies = [
        protocol.metrics_of(ask(experiment, "evaluate", {"partition-id": c}, network.state_dict()))
        for c in range(6)
    ]
    assert sum(r["num-examples"] for r in replies) == central.num_examples
    assert sum(r["num-correct"] for r in replies) == central.num_correct
    loss = sum(r["loss"] * r["num-examples"] for r in replies)
    assert loss == pytest.approx(central.loss_sum, rel=1e-5)


def test_query_tells_counts_and_nothing_else(experiment):
    reply = ask(experiment, "query", {"partition-id": 5})
    assert set(reply.content["metrics"]) == {"client", "num-examples", "num-labeled"}
    assert list(reply.content) == ["metrics"]


@pytest.mark.parametrize(
    "node_config", [{}, {"partition-id": 6}, {"partition-id": -1}, {"partition-id": "x"}]
)
def test_a_node_that_is_not_one_of_the_clients_says_so(experiment, node_config):
    reply = ask(experiment, "query", node_config)
    assert "the experiment's 6 clients have the numbers 0 to 5" in reply.error.reason


def test_an_empty_request_says_what_is_missing():
    message = protocol.new_message("train", 2, RecordDict({protocol.CONFIG: ConfigRecord()}))
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    assert "carries no 'experiment'" in app(message, context).error.reason


def request_of(state, phase=0):
    """Return a request that carries some state of ``server`` slots."""
    return protocol.Request({}, state, "", 1, phase, 1, 1)


def test_state_survives_a_round_trip_through_the_context():
    experiment = small_experiment(method={"kind": "tests.plugins.stateful"})
    recipe, network = experiment.recipe, network_of(experiment)
    method = recipe.method
    shard = federation_of(experiment).shard(0)
    kept = RecordDict()
    sent = request_of({"marginal/mass": np.full(10, 0.1, np.float32)})
    state = fill_slots(recipe, network, shard, kept_slots(recipe, sent, kept))
    assert state["marginal"]["mass"].tolist() == pytest.approx([0.1] * 10)
    state["memory"]["seen"][2] = 7
    state["scratch"]["loss"] += 5
    weights = Weights(method, network)
    shared = {k: v.numpy() for k, v in weights.shared.items()}
    network.head.bias.data.fill_(3)
    save_state(recipe, weights, state, kept, sent)
    again = network_of(experiment)
    Weights(method, again).load(shared, kept)
    reloaded = fill_slots(recipe, again, shard, kept_slots(recipe, sent, kept))
    assert reloaded["memory"]["seen"][2] == 7
    assert reloaded["scratch"]["loss"] == 0
    assert (again.head.bias == 3).all()
    assert set(shared_state(recipe, reloaded)) == {"marginal/mass"}
    assert Weights(method, again).shared.keys() == shared.keys()
    assert not any(key.startswith("head.") for key in shared)


def test_a_phase_begins_with_fresh_state_and_drops_what_the_last_one_left():
    """Whatever was remembered by example or as momentum; private weights go on."""
    experiment = small_experiment(method={"kind": "tests.plugins.stateful"})
    recipe, network = experiment.recipe, network_of(experiment)
    shard, kept = federation_of(experiment).shard(0), RecordDict()
    sent = request_of({"marginal/mass": np.full(10, 0.1, np.float32)})
    state = fill_slots(recipe, network, shard, kept_slots(recipe, sent, kept))
    state["memory"]["seen"][2] = 7
    weights = Weights(recipe.method, network)
    save_state(recipe, weights, state, kept, sent)
    assert (
        fill_slots(recipe, network, shard, kept_slots(recipe, sent, kept))["memory"]["seen"][2] == 7
    )
    later = request_of(sent.state, phase=1)
    fresh = fill_slots(recipe, network, shard, kept_slots(recipe, later, kept))
    assert fresh["memory"]["seen"][2] == 0
    save_state(recipe, weights, fresh, kept, later)
    assert set(kept) == {"phase-1.memory", "private.tests.plugins.stateful"}


def test_flwr_run_finds_its_server_app(tmp_path, monkeypatch):
    """What `flwr run` would call: the ServerApp by its name in pyproject, over a grid, with a run config."""
    from fedssl.engine.serial_grid import SerialGrid
    from fedssl.server.app import app as server_app
    from tests.helpers import small_toml

    monkeypatch.chdir(tmp_path)
    file = small_toml(tmp_path / "e.toml")
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"experiment": str(file)},
    )
    server_app(SerialGrid(Apps(app), 6), context)
    assert len(list((tmp_path / "runs" / "small").glob("*/model.safetensors"))) == 1


def test_private_weights_of_one_client_do_not_stay_for_the_next():
    method = Stateful()
    network = network_of(small_experiment(method={"kind": "tests.plugins.stateful"}))
    weights = Weights(method, network)
    assert set(weights.private) == {"head.weight", "head.bias"}
    initial = network.head.bias.detach().clone()
    network.head.bias.data.fill_(9)
    shared = {k: v.numpy().copy() for k, v in weights.shared.items()}
    weights.load(shared, RecordDict())
    assert (network.head.bias == initial).all()


def test_private_weights_do_not_depend_on_who_ran_before():
    """Client 4's private head is the same whether clients 0 to 3 ran in this process before it or not."""
    experiment = small_experiment(method={"kind": "tests.plugins.stateful"})
    start = {
        k: v for k, v in network_of(experiment).state_dict().items() if not k.startswith("head.")
    }

    own = {"allowed-plugins": "tests.plugins"}

    def head_of_client_4(before):
        for client in before:
            assert ask(experiment, "train", {"partition-id": client, **own}, start).has_content()
        state = RecordDict()
        ask(experiment, "train", {"partition-id": 4, **own}, start, state)
        return state["private.tests.plugins.stateful"]["head.bias"].data

    assert head_of_client_4([]) == head_of_client_4([0, 1, 2])


def test_a_client_needs_nothing_that_only_the_server_has(experiment):
    """It is not sent a server's strategy, tracker, engine or devices, so that it need not be able to import them."""
    plan = small_experiment(strategy={"weight": "uniform"}, tracker="tensorboard", system={})
    sent = json.loads(plan.plans[0].to_client_json())
    assert sent.keys() == {
        *("name", "seed", "rounds", "data", "federation", "augment", "model", "method", "train"),
    }
    table = plan.to_dict() | {"strategy": {"kind": "lab_of_somebody_else.secret"}}
    with pytest.raises(InputError, match="lab_of_somebody_else"):
        Experiment.from_dict(table)
    assert ClientSettings.from_json(json.dumps(sent)).recipe == plan.recipe


def test_a_request_with_too_little_is_refused(experiment):
    """A network stays in the process: what is not sent must not be what the last client left."""
    whole = network_of(experiment).state_dict()
    part = {name: tensor for i, (name, tensor) in enumerate(whole.items()) if i > 0}
    assert "is missing" in ask(experiment, "train", {"partition-id": 0}, part).error.reason
    assert "is missing" in ask(experiment, "train", {"partition-id": 0}).error.reason


def test_training_that_diverged_is_neither_kept_nor_sent():
    experiment = small_experiment(method={"kind": "mean_teacher", "teacher_scope": "client"})
    start = network_of(experiment).state_dict()
    broken = {name: tensor * float("nan") for name, tensor in start.items()}
    kept = RecordDict()
    reply = ask(experiment, "train", {"partition-id": 0}, broken, kept)
    assert "training diverged" in reply.error.reason
    assert len(kept) == 0
    assert ask(experiment, "train", {"partition-id": 0}, start, kept).has_content()
    weights = Weights(experiment.method, network_of(experiment))
    with pytest.raises(FloatingPointError, match=r"lower train\.lr"):
        refuse_divergence(weights, {"slot": {"x": start["trunk.0.weight"] / 0}})
    large = start["trunk.0.weight"] + 1e30  # its square is not finite, and it is
    refuse_divergence(weights, {"slot": {"x": large, "empty": large[:0], "n": torch.arange(2)}})


def test_a_stock_strategys_rounds_are_the_experiments(monkeypatch):
    """Without phases in the request, progress runs over the whole experiment."""
    from fedssl.clients import client_app

    seen = []

    def fake_fit(*args, phase_round, phase_rounds, **rest):
        seen.append((phase_round, phase_rounds))
        raise RuntimeError("seen enough")

    monkeypatch.setattr(client_app, "learn", fake_fit)
    experiment = small_experiment(rounds=7)
    config = ConfigRecord({protocol.EXPERIMENT: experiment.to_client_json(), "server-round": 4})
    arrays = protocol.to_record(network_of(experiment).state_dict())
    message = protocol.new_message("train", 2, RecordDict({"config": config, "arrays": arrays}))
    app(
        message,
        Context(
            run_id=1, node_id=2, node_config={"partition-id": 0}, state=RecordDict(), run_config={}
        ),
    )
    assert seen == [(4, 7)]


class Private(Supervised):
    """Supervised learning whose head never leaves the client."""

    def is_shared(self, key):
        return not key.startswith("head.")


def test_private_weights_of_another_model_begin_anew():
    """A later phase has a larger model: a private weight of the same shape goes on, and the others are initial."""
    small, large = (
        Weights(Private(), network_of(small_experiment(model={"hidden": hidden})))
        for hidden in (16, 24)
    )
    kept = RecordDict()
    for tensor in small.private.values():
        tensor.fill_(2)
    small.keep_private(kept)
    initial = {name: tensor.clone() for name, tensor in large.private.items()}
    large.load({name: tensor.numpy() for name, tensor in large.shared.items()}, kept)
    assert (large.private["head.bias"] == 2).all()
    assert torch.equal(large.private["head.weight"], initial["head.weight"])
    again = Weights(Private(), network_of(small_experiment(model={"hidden": 16})))
    again.load({name: tensor.numpy() for name, tensor in again.shared.items()}, kept)
    assert all((tensor == 2).all() for tensor in again.private.values())
