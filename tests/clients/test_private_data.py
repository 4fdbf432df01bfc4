"""Clients that train on their own files, over a grid whose nodes name the files' places."""

import csv

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedssl.app.simulation import Engine, check_experiment
from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.clients.local_data import local_data
from fedssl.core.errors import InputError, RunFailed
from fedssl.data.terms import Terms
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from fedssl.training.network import build_network
from tests.clients.test_fused_app import requests
from tests.helpers import federation_of, fedssl, refused, small_experiment, small_toml
from tests.nodes import Nodes


def private_experiment(**overrides):
    federation = {"clients": 3, "sample": 3, "private": True} | overrides.pop("federation", {})
    return small_experiment(federation=federation, **overrides)


@pytest.fixture(scope="module")
def digits():
    """Return (images, labels) of some digits, (n, 8, 8) bytes."""
    data = federation_of(small_experiment()).data.train
    return data.read(np.arange(60))[:, 0], data.labels[:60]


@pytest.fixture
def homes(tmp_path, digits):
    """Write two folders and a file, of 20 images each: the first half, none and all of them labeled."""
    images, labels = digits
    for i in range(20):
        kind = str(labels[i]) if i < 10 else "unlabeled"
        _save(tmp_path / "a" / "train" / kind / f"{i}.png", images[i])
        _save(tmp_path / "a" / "test" / str(labels[i]) / f"{i}.png", images[i])
        _save(tmp_path / "b" / f"{i}.png", images[20 + i])
    np.savez(tmp_path / "c.npz", images=images[40:], labels=labels[40:])
    return [str(tmp_path / name) for name in ("a", "b", "c.npz")]


def _save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def nodes(homes, **config):
    """Return a grid whose nodes come in another order than their clients."""
    numbered = list(enumerate(homes))
    return Nodes([{"partition-id": n, "data-path": path, **config} for n, path in numbered[::-1]])


def ask(experiment, kind, path, client=0, terms="own"):
    """Return a client's reply to a request of the first round."""
    data = federation_of(experiment).data
    config = protocol.request_config(
        experiment.to_client_json(), 0, 1, 2, Terms.of(data) if terms == "own" else None
    )
    network = build_network(experiment.model, experiment.method, data.spec, experiment.seed)
    content = protocol.RecordDict(
        {protocol.CONFIG: config, protocol.ARRAYS: protocol.to_record(network.state_dict())}
    )
    grid = Nodes([{"partition-id": client} | ({} if path is None else {"data-path": path})])
    (reply,) = grid.send_and_receive([protocol.new_message(kind, 100, content)])
    return reply


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedAvg"])
def test_a_federation_of_private_clients_runs_and_records_what_they_count(
    tmp_path, homes, strategy
):
    experiment = private_experiment(strategy=strategy)
    grid, record = nodes(homes), tmp_path / "run"
    outcome = serve(experiment, grid, [RunDirectory(record)])
    assert [row.clients_ok for row in outcome.rounds] == [3, 3]
    with (record / "clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    counts = [(int(row["num_examples"]), int(row["num_labeled"])) for row in rows]
    assert counts == [(20, 10), (20, 0), (20, 20)] * 2
    assert all(row["pseudo_label_accuracy"] == "" for row in rows)  # nobody knows the truth
    table = pd.read_csv(record / "partition.csv")
    assert set(table["client"]) == {-3}
    assert not table["labeled"].any()


def test_what_they_train_on_is_what_a_simulated_client_would(homes, digits):
    """A client with the same bytes and labels as a simulated one sends the same weights."""
    private = private_experiment(method="supervised", federation={"clients": 6})
    simulated = small_experiment(method="supervised")
    federation = federation_of(simulated)
    client = 4
    own = federation.shard(client)
    path = homes[2]
    np.savez(path, images=own.images.numpy()[:, 0], labels=own.labels.numpy())
    mine = ask(private, "train", path, client)
    config = protocol.request_config(simulated.to_client_json(), 0, 1, 2)
    network = build_network(simulated.model, simulated.method, own.spec, simulated.seed)
    arrays = protocol.to_record(network.state_dict())
    content = protocol.RecordDict({protocol.CONFIG: config, protocol.ARRAYS: arrays})
    grid = Nodes([{"partition-id": client}])
    (theirs,) = grid.send_and_receive([protocol.new_message("train", 100, content)])
    expected = protocol.from_record(theirs.content["arrays"])
    found = protocol.from_record(mine.content["arrays"])
    assert all(found[name].tobytes() == array.tobytes() for name, array in expected.items())


def test_only_they_are_told_what_the_images_have_in_common(homes):
    grid = nodes(homes)
    serve(private_experiment(rounds=1), grid, [])
    told = [message.content["config"]["images"] for message in grid.sent]
    assert len(told) == 6  # three of the census, three of the round
    assert set(told) == {Terms.of(federation_of(private_experiment()).data).to_json()}
    plain = Nodes([{"partition-id": client} for client in range(3)])
    serve(small_experiment(rounds=1, federation={"clients": 3}), plain, [])
    assert not any("images" in message.content["config"] for message in plain.sent)


def test_a_census_carries_counts_only(homes):
    grid = nodes(homes)
    serve(private_experiment(rounds=1), grid, [])
    for reply in grid.replies[:3]:
        assert list(reply.content) == ["metrics"]
        assert set(reply.content["metrics"]) == {"client", "num-examples", "num-labeled"}


TRAIN_METRICS = {
    "client", "num-examples", "num-labeled", "num-confident", "num-steps", "loss", "seconds",
    "pseudo-considered", "pseudo-accepted", "pseudo-judged", "pseudo-right",
}  # fmt: skip


def test_what_leaves_a_client_is_what_the_documentation_lists(homes):
    reply = ask(private_experiment(), "train", homes[0])
    assert list(reply.content) == ["arrays", "metrics"]
    metrics = protocol.all_metrics_of(reply)
    assert set(metrics) == TRAIN_METRICS
    assert metrics["pseudo-considered"] > 0
    assert metrics["pseudo-judged"] == metrics["pseudo-right"] == 0


@pytest.mark.parametrize("fused", [False, True])
def test_a_simulated_client_says_two_things_more_unless_its_update_is_clipped(fused):
    def said(**overrides):
        experiment = small_experiment(**overrides)
        messages, contexts = requests(experiment, [3, 4])
        if fused:
            replies = train_together(messages, contexts).messages
        else:
            replies = [app(m, c) for m, c in zip(messages, contexts, strict=True)]
        return {frozenset(reply.content["metrics"]) for reply in replies}

    assert said() == {frozenset({*TRAIN_METRICS, "update-norm", "pseudo-by-class"})}
    assert said(privacy={"clipping_norm": 100.0}) == {frozenset(TRAIN_METRICS)}


def test_the_truth_about_private_images_is_known_to_nobody(homes):
    experiment = private_experiment()
    terms = Terms.of(federation_of(experiment).data)
    (context,) = nodes(homes[:1]).contexts.values()
    shard = local_data(experiment, terms, context).shard()
    assert (len(shard), len(shard.labeled)) == (20, 10)
    assert (shard.truth == -1).all()


def test_evaluation_is_on_a_clients_own_test_images_or_on_none(homes):
    experiment = private_experiment()
    metrics = [protocol.metrics_of(ask(experiment, "evaluate", home)) for home in homes]
    assert [m["num-examples"] for m in metrics] == [20, 0, 0]
    assert [m["accuracy"] for m in metrics[1:]] == [0, 0]
    assert metrics[0]["loss"] > 0


def test_labels_at_the_server_with_unlabeled_clients(homes):
    experiment = private_experiment(
        federation={"labels": {"kind": "at_server", "validation": 0.25}}
    )
    federation = federation_of(experiment)
    assert (len(federation.server_rows), len(federation.held_back_rows)) == (30, 10)
    assert federation.sizes.tolist() == [0, 0, 0]
    outcome = serve(experiment, nodes([homes[1]] * 3), [])
    assert [row.clients_ok for row in outcome.rounds] == [3, 3]


def wrong_config(homes, change):
    """Return what the server says of a federation whose client 1 has another node config."""
    grid = nodes(homes)
    config = grid.contexts[101].node_config
    for key, value in change.items():
        config.pop(key) if value is None else config.update({key: value})
    with pytest.raises(RunFailed) as caught:
        serve(private_experiment(server={"min_success": 1.0}), grid, [])
    return str(caught.value).strip().splitlines()[-1]


def test_a_node_whose_data_cannot_be_used_says_so_in_one_line(tmp_path, homes):
    said = wrong_config(homes, {"data-path": "/no/where"})
    assert "client 1: data-path: /no/where: there is no such folder" in said
    said = wrong_config(homes, {"data-path": None})
    assert "client 1: data-path: is None, but the experiment says federation.private" in said
    said = wrong_config(homes, {"bad-images": "maybe"})
    assert "client 1: bad-images: is 'maybe'; one of: refuse, skip" in said
    (tmp_path / "b" / "eleven").mkdir()
    said = wrong_config(homes, {})
    assert f"client 1: data-path: {tmp_path / 'b'}: class folder 'eleven' is no class" in said
    assert "it has: 0, 1, 2" in said
    assert (
        wrong_config(homes, {"data-path": str(tmp_path / "a" / "train" / "none")}).count(";") == 1
    )


def test_private_data_is_not_used_unasked(homes):
    said = ask(small_experiment(), "train", homes[0], terms=None).error.reason
    assert "client 0: data-path: is" in said
    assert "set federation.private = true" in said


def test_a_server_that_does_not_say_what_images_are_is_told(homes):
    said = ask(private_experiment(), "train", homes[0], terms=None).error.reason
    assert "client 0: images: is not in the request" in said


@pytest.mark.parametrize("engine", ["serial", "ray", "flower"])
def test_simulations_refuse_private_clients(engine):
    experiment = private_experiment(engine={"kind": engine})
    check_experiment(experiment)
    with (
        Engine() as workforce,
        pytest.raises(InputError, match=r"federation\.private: is true(.|\n)*private=false"),
    ):
        workforce.run(experiment)
    with pytest.raises(InputError, match=r"federation\.private: is true"):
        serve(experiment, SerialGrid(Apps(app), 3), [])


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"partition": "iid"}, "partition"),
        ({"unlabeled_partition": "iid"}, "unlabeled_partition"),
        ({"labels": {"per_class": 8}}, "labels"),
        ({"labels": {"kind": "some_clients", "labeled_clients": 1}}, "labels"),
        ({"label_noise": {"kind": "pair", "rate": 0.1}}, "label_noise"),
        ({"features": "rotation", "partition": "iid"}, "partition and features"),
    ],
)
def test_what_only_a_simulator_can_do_is_refused(section, named):
    with pytest.raises(InputError, match=rf"private = true: .*which {named} cannot change"):
        private_experiment(federation=section)


def test_virtual_time_is_refused():
    with pytest.raises(InputError, match="drop system"):
        private_experiment(system={"dropout": 0.1})


def test_the_command_line_validates_it_and_draws_nothing(tmp_path):
    file = small_toml(tmp_path / "e.toml", federation={"clients": 3, "private": True})
    said = fedssl("validate", file)
    assert said.exit_code == 0
    assert "3 clients with private data, 3 a round" in said.output.replace("\n", " ")
    said = fedssl("show", file)
    assert said.exit_code == 0
    assert "nothing to draw" in said.output
    refused(fedssl("run", file), "federation.private", "private=false")
