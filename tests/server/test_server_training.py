"""Labels at the server: the server trains on them by the clients' own loop, the same on every engine."""

import numpy as np
import pytest
import torch

from fedssl.app.simulation import Engine, check_experiment
from fedssl.core.errors import InputError, RunFailed
from fedssl.core.rng import SERVER
from fedssl.exchange.sums import is_finite
from fedssl.methods.base import Loss
from fedssl.methods.supervised import Supervised
from fedssl.models.static_norm import measure_statistics
from fedssl.server.server_training import PHASE, ServerTraining
from fedssl.training import learn as learning
from fedssl.training.batches import plain_batches
from fedssl.training.loop import fit
from fedssl.training.network import build_network
from tests.helpers import federation_of, small_experiment

AT_SERVER = {"federation": {"labels": {"kind": "at_server", "per_class": 4}}}


def at_server(**overrides):
    return small_experiment(**{**AT_SERVER, **overrides})


def run(experiment):
    with Engine() as engine:
        return engine.run(experiment)


def server_round(experiment, arrays=None, training=None, number=1, phase=0):
    spec = federation_of(experiment).data.spec
    network = build_network(experiment.model, experiment.method, spec, experiment.seed)
    start = {k: v.numpy().copy() for k, v in network.state_dict().items()}
    training = training or ServerTraining(federation_of(experiment).server_shard())
    arrays = start if arrays is None else arrays
    return arrays, training.train(
        experiment, network, arrays,
        server_round=number, phase=phase, phase_round=number, is_measured=number > 0,
    )  # fmt: skip


def test_the_servers_round_is_a_clients_round_on_its_shard():
    experiment = at_server()
    _, trained = server_round(experiment)
    federation = federation_of(experiment)
    spec = federation.data.spec
    network = build_network(experiment.model, experiment.method, spec, experiment.seed)
    fit(
        network, federation.server_shard(), experiment.server_recipe, {},
        seed=experiment.seed, server_round=1, client=SERVER, phase_round=1, phase_rounds=2,
    )  # fmt: skip
    assert set(trained) == set(network.state_dict())
    for name, tensor in network.state_dict().items():
        assert np.array_equal(trained[name], tensor.numpy())


def test_without_labels_at_the_server_nothing_is_trained():
    experiment = small_experiment()
    arrays, trained = server_round(experiment)
    assert trained is arrays


def test_the_server_trains_before_the_first_round_and_after_every_aggregation(monkeypatch):
    seen = []
    real = ServerTraining.train

    def train(self, *args, **kwargs):
        seen.append((kwargs["server_round"], kwargs["phase"], kwargs["phase_round"]))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(ServerTraining, "train", train)
    phases = [{"rounds": 2}, {"rounds": 1, "method": {"kind": "supervised"}}]
    run(at_server(rounds=None, phases=phases))
    assert seen == [(0, 0, 0), (1, 0, 1), (2, 0, 2), (3, 1, 1)]


SIMCLR = {"kind": "simclr", "projection": [12, 6]}


def rounds_trained(monkeypatch, experiment):
    """Run an experiment; return (round, phase, round of the phase) of each time that the server trained."""
    seen, real = [], ServerTraining.train

    def train(self, plan, network, arrays, **kwargs):
        trained = real(self, plan, network, arrays, **kwargs)
        if trained is not arrays:
            seen.append((kwargs["server_round"], kwargs["phase"], kwargs["phase_round"]))
        return trained

    monkeypatch.setattr(ServerTraining, "train", train)
    run(experiment)
    return seen


@pytest.mark.parametrize(
    ("methods", "expected"),
    [
        ((SIMCLR, {}), [(2, 1, 0), (3, 1, 1), (4, 1, 2)]),
        (({}, SIMCLR), [(0, 0, 0), (1, 0, 1), (2, 0, 2)]),
    ],
)
def test_the_server_trains_in_no_phase_that_learns_features_only(methods, expected, monkeypatch):
    """The server trains again before the next phase's first round, so that clients have a head to label with."""
    phases = [{"rounds": 2, "method": method} for method in methods]
    assert rounds_trained(monkeypatch, at_server(rounds=None, phases=phases)) == expected


def test_the_servers_labels_change_nothing_in_a_phase_that_learns_features_only():
    plain, other = (
        run(at_server(rounds=1, method=SIMCLR, server=server, system=system))
        for server, system in (
            ({}, {}),
            ({"train": {"lr": 0.5, "local_steps": 3}}, {"server_speed": 0.1}),
        )
    )
    assert all(np.array_equal(plain.model.arrays[n], a) for n, a in other.model.arrays.items())
    assert plain.rounds[0].virtual_seconds == other.rounds[0].virtual_seconds


def test_numbers_of_the_servers_method_are_those_of_the_round():
    """After a phase in which the server recorded numbers, a phase in which it does not train has none."""
    training = ServerTraining(federation_of(at_server()).server_shard())
    flexmatch = at_server(server={"method": {"kind": "flexmatch", "unlabeled_ratio": 1}})
    server_round(flexmatch, training=training)
    training.numbers = {"threshold": 0.5}
    server_round(at_server(method=SIMCLR), training=training, phase=1)
    assert training.numbers == {}


def test_supervised_clients_without_labels_send_back_what_the_server_trained():
    """Server-only training: what the run ends with is the server's own chain of rounds."""
    experiment = at_server(method={"kind": "supervised"})
    outcome = run(experiment)
    training = ServerTraining(federation_of(experiment).server_shard())
    arrays = None
    for number in range(3):
        _, arrays = server_round(experiment, arrays, training, number)
    for name, array in arrays.items():
        assert np.array_equal(outcome.model.arrays[name], array)


def test_a_teacher_that_would_never_see_a_label_is_refused():
    """Labels at the server train the student alone; an earlier phase gives the teacher its weights."""
    meta = {"kind": "meta_pseudo_labels"}
    with pytest.raises(InputError, match=r"method\.kind.*no client holds labels"):
        check_experiment(at_server(method=meta))
    check_experiment(small_experiment(method=meta))
    check_experiment(at_server(rounds=None, phases=[{"rounds": 1}, {"rounds": 1, "method": meta}]))


def test_its_settings_can_be_its_own():
    experiment = at_server(server={"train": {"local_steps": 1, "lr": 1e-9}})
    arrays, trained = server_round(experiment)
    _, usual = server_round(at_server())
    change = max(np.abs(trained[k] - arrays[k]).max() for k in arrays)
    assert 0 < change < 1e-6
    assert max(np.abs(usual[k] - arrays[k]).max() for k in arrays) > 1e-4


def test_its_method_can_be_another_and_its_memory_lasts_a_phase():
    experiment = at_server(server={"method": {"kind": "flexmatch", "unlabeled_ratio": 1}})
    training = ServerTraining(federation_of(experiment).server_shard())
    _, arrays = server_round(experiment, training=training)
    memory = training.kept()["confident/classes"]
    training.take_up({"confident/classes": np.full_like(memory, 7), PHASE: np.array(0)})
    server_round(experiment, arrays, training, 2)
    assert (training.kept()["confident/classes"] == 7).any()  # the second round went on with it
    server_round(experiment, arrays, training, 3, phase=1)
    assert not (training.kept()["confident/classes"] == 7).any()


def test_a_method_with_a_network_of_its_own_is_refused():
    with pytest.raises(
        InputError, match=r"server.method.kind: is 'remixmatch', which trains a network"
    ):
        check_experiment(at_server(server={"method": {"kind": "remixmatch"}}))
    check_experiment(
        small_experiment(server={"method": {"kind": "remixmatch"}})
    )  # never used there


def test_labels_as_weights_need_labels_at_clients():
    with pytest.raises(InputError, match=r"strategy.weight: is 'labeled', but no client"):
        check_experiment(at_server(strategy={"kind": "fedavg", "weight": "labeled"}))


def test_divergence_at_the_server_ends_the_run_with_its_reason():
    with pytest.raises(
        RunFailed, match=r"server's own training diverged in round 0; lower train.lr"
    ):
        run(at_server(server={"train": {"lr": 1e30, "local_steps": 5}}))


def test_a_loss_without_a_gradient_at_the_server_ends_the_run_with_its_reason(monkeypatch):
    monkeypatch.setattr(Supervised, "loss", lambda *_: Loss(torch.zeros(())))
    with pytest.raises(RunFailed, match=r"server's own training: Loss.total has no gradient"):
        server_round(at_server())


STATIC = {"kind": "cnn", "norm": "static", "widths": [8, 16], "hidden": 16}


def test_what_clients_measured_for_static_normalization_is_kept():
    experiment = at_server(model=STATIC)
    arrays, first = server_round(experiment, number=0)
    buffers = [name for name in arrays if name.endswith(("mean", "mean_square"))]
    assert buffers
    assert any(not np.array_equal(first[name], arrays[name]) for name in buffers)
    marked = {k: v + 1 if k in buffers else v for k, v in first.items()}
    _, second = server_round(experiment, marked, number=1)
    assert all(np.array_equal(second[name], marked[name]) for name in buffers)
    assert is_finite(second)


def test_statistics_are_measured_on_the_images_that_the_experiment_names():
    """By the server: one pass over its labeled images with the weights that it has trained, whatever clients measured."""
    experiment = at_server(model=STATIC, server={"statistics": "server"})
    arrays, first = server_round(experiment, number=0)
    buffers = [name for name in arrays if name.endswith(("mean", "mean_square"))]
    marked = {k: v + 1 if k in buffers else v for k, v in first.items()}
    _, second = server_round(experiment, marked, number=1)
    federation = federation_of(experiment)
    network = build_network(experiment.model, experiment.method, federation.data.spec, 0)
    network.load_state_dict({k: torch.from_numpy(v) for k, v in second.items()})
    measure_statistics(network, plain_batches(federation.server_shard()))
    for name in buffers:
        assert np.array_equal(second[name], network.state_dict()[name].numpy())
    _, by_cohort = server_round(at_server(model=STATIC), marked, number=1)
    assert all(np.array_equal(by_cohort[name], marked[name]) for name in buffers)
    others = set(arrays) - set(buffers)
    assert all(np.array_equal(by_cohort[name], second[name]) for name in others)


def test_statistics_of_the_server_need_its_images_and_a_model_that_has_some():
    chosen = {"statistics": "server"}
    check_experiment(at_server(model=STATIC, server=chosen))
    with pytest.raises(InputError, match=r"server.statistics: is 'server', but the server holds"):
        check_experiment(small_experiment(model=STATIC, server=chosen))
    with pytest.raises(InputError, match=r"server.statistics: is 'server', but the model has no"):
        check_experiment(at_server(server=chosen))


def test_heads_of_the_clients_method_are_left_alone():
    experiment = at_server(method={"kind": "remixmatch", "unlabeled_ratio": 1})
    arrays, trained = server_round(experiment)
    for name in arrays:
        same = np.array_equal(arrays[name], trained[name])
        assert same == name.startswith("second."), name


def test_it_trains_with_the_clients_threads_and_puts_them_back(monkeypatch):
    seen = []

    def counting_fit(*args, **kwargs):
        seen.append(torch.get_num_threads())
        return fit(*args, **kwargs)

    monkeypatch.setattr(learning, "fit", counting_fit)
    torch.set_num_threads(2)
    server_round(at_server(train={"local_steps": 1, "threads": 1}))
    assert seen == [1]
    assert torch.get_num_threads() == 2
