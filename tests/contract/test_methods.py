"""One contract for every method: it trains in a federation, with the same bits and kept state on every engine."""

import numpy as np
import pytest

from fedssl.clients.client_app import app
from fedssl.engine.local_grid import Apps
from fedssl.engine.plan import Wish
from fedssl.engine.ray.grid import RayGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.server.app import serve
from tests.helpers import federation_of, kept_states, small_experiment
from tests.methods.examples import FIRST_METHODS
from tests.training.test_loop import WITHOUT, classifier_weights

TABLE = [{"kind": name} for name in FIRST_METHODS] + [
    {"kind": "mean_teacher", "teacher_scope": "client"},
    {"kind": "mean_teacher", "teacher_scope": "server"},
    {"kind": "flexmatch", "status_scope": "client"},
    {"kind": "freematch", "statistics_scope": "client"},
    {"kind": "softmatch", "statistics_scope": "reset"},
    {"kind": "remixmatch", "alignment_scope": "client"},
    {"kind": "moco", "queue_size": 24, "queue_scope": "client", "key_encoder_scope": "client"},
    {"kind": "moco", "key_encoder_scope": "server", "key_parts": 2},
    {"kind": "byol", "target_scope": "client"},
    {"kind": "fedema", "divergence": "training", "selective": False},
    {"kind": "fedu", "divergence": "received"},
    {"kind": "meta_pseudo_labels", "baseline_decay": 0.9},
    {"kind": "ups", "positive_threshold": 0.1, "positive_spread": 1.0, "balance": 0.0},
    {"kind": "comatch", "bank_scope": "reset", "alignment_scope": "client", "bank_size": 32},
    {"kind": "semifl", "threshold": 0.2},
    {"kind": "fl2", "threshold": 0.1},
    {"kind": "cbafed", "base": 0.1},
    {"kind": "proxyfl", "variant": "paper", "prior_decay": 0.0},
    {"kind": "fedmatch", "labels": "server", "threshold": 0.2},
    {"kind": "fixmatch", "labeler": "received"},
    {"kind": "fixmatch", "labeler": "local_if_labeled"},
    {"kind": "remixmatch", "labeler": "received"},
    {"kind": "tests.plugins.stateful"},
]


def name_of(method):
    return "-".join(str(value) for value in method.values())


@pytest.fixture(scope="module")
def ray_grid():
    grid = RayGrid(Apps(app), 6, Wish(2))
    yield grid
    grid.close()


def same_bits(first, second):
    return set(first) == set(second) and all(
        first[k].tobytes() == second[k].tobytes() for k in first
    )


@pytest.mark.parametrize("method", TABLE, ids=name_of)
def test_a_federation_trains_with_it_to_the_same_bits_on_both_grids(method, ray_grid):
    experiment = small_experiment(method=method, federation={"sample": 5})
    serial = serve(experiment, SerialGrid(Apps(app), 6), [])
    ray_grid.restart(6)
    parallel = serve(experiment, ray_grid, [])
    assert serial.rounds[-1].clients_ok == 5
    assert serial.rounds[-1].clients_failed == 0
    assert all(np.isfinite(array).all() for array in serial.model.arrays.values())
    assert same_bits(serial.model.arrays, parallel.model.arrays)
    assert same_bits(serial.model.ema, parallel.model.ema)
    assert same_bits(serial.model.state, parallel.model.state)


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedAvg"])
def test_clients_that_sit_out_change_no_bit_on_any_grid(strategy, ray_grid):
    """With SemiFL and no confident prediction, the clients without a label sit out; some hold none."""
    federation = {"sample": 6, "labels": {"per_class": 1}, "partition": {"alpha": 0.05}}
    method = {"kind": "semifl", "threshold": 1.0}
    train = {"keep_momentum": True}
    experiment = small_experiment(
        method=method, federation=federation, strategy=strategy, train=train
    )
    serial_grid = SerialGrid(Apps(app), 6)
    serial = serve(experiment, serial_grid, [])
    ray_grid.restart(6)
    parallel = serve(experiment, ray_grid, [])
    inactive = int((federation_of(experiment).labeled_sizes == 0).sum())
    assert 0 < inactive < 6
    for outcome in (serial, parallel):
        assert [row.clients_inactive for row in outcome.rounds] == [inactive] * 2
        assert [row.clients_ok for row in outcome.rounds] == [6 - inactive] * 2
    assert same_bits(serial.model.arrays, parallel.model.arrays)
    assert same_bits(serial.model.ema, parallel.model.ema)
    assert kept_states(serial_grid).keys() == kept_states(ray_grid).keys()


def test_every_hook_of_the_interface_is_used(ray_grid):
    """Client memory persists and stays home; server state travels; private weights do not."""
    experiment = small_experiment(
        method={"kind": "tests.plugins.stateful"}, federation={"sample": 6}, rounds=3
    )
    grid = SerialGrid(Apps(app), 6)
    outcome = serve(experiment, grid, [])
    assert not any(key.startswith(("head.", "memory/")) for key in outcome.model.arrays)
    assert any(key.startswith("second.") for key in outcome.model.arrays)
    assert outcome.model.state["marginal/mass"].sum() == pytest.approx(1, abs=1e-5)
    kept = kept_states(grid)[0].array_records
    assert kept["phase-0.memory"]["rounds"].numpy() == 3
    seen = kept["phase-0.memory"]["seen"].numpy()
    assert seen.sum() == pytest.approx(3 * 2 * 16, abs=32)
    assert set(kept["private.tests.plugins.stateful"]) == {"head.weight", "head.bias"}
    assert 0 <= outcome.rounds[-1].server_accuracy <= 1


@pytest.mark.parametrize("scope", ["reset", "client", "server"])
@pytest.mark.parametrize(
    ("kind", "field", "slot"),
    [
        ("mean_teacher", "teacher_scope", "teacher"),
        ("freematch", "statistics_scope", "statistics"),
        ("softmatch", "statistics_scope", "statistics"),
        ("remixmatch", "alignment_scope", "alignment"),
        ("moco", "key_encoder_scope", "key_encoder"),
        ("byol", "target_scope", "target"),
        ("comatch", "alignment_scope", "alignment"),
    ],
)
def test_state_lives_where_the_experiment_says(kind, field, slot, scope):
    experiment = small_experiment(
        method={"kind": kind, field: scope}, federation={"sample": 6}, rounds=2
    )
    grid = SerialGrid(Apps(app), 6)
    outcome = serve(experiment, grid, [])
    assert not any("/" in key for key in outcome.model.arrays)
    assert any(key.startswith(f"{slot}/") for key in outcome.model.state) == (scope == "server")
    kept = {c for c, state in kept_states(grid).items() if f"phase-0.{slot}" in state.array_records}
    assert kept == (set(range(6)) if scope == "client" else set())


@pytest.mark.parametrize(
    ("kind", "slot"), [("flexmatch", "confident"), ("temporal_ensembling", "ensemble")]
)
def test_memory_by_example_survives_between_rounds_on_every_engine(kind, slot, ray_grid):
    """After three rounds of everyone, both grids remember the same, and more than one round can have left."""
    experiment = small_experiment(
        method={"kind": kind, "unlabeled_ratio": 1}, federation={"sample": 6}, rounds=3
    )
    serial = SerialGrid(Apps(app), 6)
    serve(experiment, serial, [])
    ray_grid.restart(6)
    serve(experiment, ray_grid, [])
    sizes = federation_of(experiment).sizes
    for client in range(6):
        here, there = (
            kept_states(grid)[client].array_records[f"phase-0.{slot}"]
            for grid in (serial, ray_grid)
        )
        assert {k: v.data for k, v in here.items()} == {k: v.data for k, v in there.items()}
        assert all(array.shape[0] == sizes[client] for array in here.values())
        if kind == "temporal_ensembling" and sizes[client] >= 16:
            assert here["visits"].numpy().sum() == 3 * 2 * 8  # rounds, steps, images a step
    assert sizes.max() >= 16


def test_a_classifier_keeps_its_weights_when_a_method_puts_it_into_another_network():
    """ReMixMatch holds it beside a second head; at a learning rate of nothing, it comes out as it went in."""
    still = {"lr": 1e-12, "weight_decay": 0.0}
    before = {"rounds": 2, "method": {"kind": "supervised"}}
    for kinds in (["remixmatch"], ["remixmatch", "supervised"]):
        phases = [before] + [
            {"rounds": 1, "method": {"kind": kind}, "train": still} for kind in kinds
        ]
        outcome = serve(small_experiment(rounds=None, phases=phases), SerialGrid(Apps(app), 6), [])
        alone = serve(small_experiment(method="supervised", rounds=2), SerialGrid(Apps(app), 6), [])
        prefix = "classifier." if kinds[-1] == "remixmatch" else ""
        for name, array in alone.model.arrays.items():
            assert np.allclose(outcome.model.arrays[prefix + name], array, atol=1e-6), name


def test_a_phase_may_change_the_method_and_its_network():
    """Weights that both networks have go on; what is new begins anew."""
    experiment = small_experiment(
        rounds=None,
        phases=[
            {"rounds": 1, "method": {"kind": "supervised"}},
            {"rounds": 1, "method": {"kind": "mean_teacher", "teacher_scope": "server"}},
            {"rounds": 1, "method": {"kind": "fixmatch"}, "federation": {"sample": 6}},
        ],
    )
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert [row.method for row in outcome.rounds] == ["supervised", "mean_teacher", "fixmatch"]
    assert [row.clients_ok for row in outcome.rounds] == [3, 3, 6]
    assert not outcome.model.state


FEW_LABELS = {
    "federation": {"sample": 6, "labels": {"per_class": 1}, "partition": {"alpha": 0.05}},
    "rounds": 3,
}
"""A federation some of whose clients hold no label at all."""


@pytest.fixture(scope="module")
def supervised():
    experiment = small_experiment(method={"kind": "supervised"}, **FEW_LABELS)
    assert (federation_of(experiment).labeled_sizes == 0).any()
    return serve(experiment, SerialGrid(Apps(app), 6), [])


@pytest.mark.parametrize("kind", WITHOUT)
def test_no_unlabeled_weight_gives_supervised_bits_in_a_federation(kind, supervised):
    weightless = small_experiment(method=WITHOUT[kind], **FEW_LABELS)
    first, second = supervised, serve(weightless, SerialGrid(Apps(app), 6), [])
    assert same_bits(first.model.arrays, classifier_weights(second.model.arrays))
    assert same_bits(first.model.ema, classifier_weights(second.model.ema))
