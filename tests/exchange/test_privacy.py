"""Clipped and noisy updates: the bound holds, the noise has its deviation, and every engine gives the same."""

import math

import numpy as np
import pytest

from fedssl.app.simulation import Engine, check_experiment
from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.clients.privacy import noise_stream
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.privacy import Privacy, add_noise, clip_update
from fedssl.record.rows import Observer
from fedssl.server.app import serve
from tests.helpers import small_experiment

FREE = {"clipping_norm": 1e9}
UNIFORM = {"kind": "fedavg", "weight": "uniform"}


def arrays(seed, scale=1.0):
    draw = np.random.default_rng(seed)
    return {
        "w": (scale * draw.standard_normal((5, 4))).astype(np.float32),
        "b": (scale * draw.standard_normal(3)).astype(np.float32),
        "steps": np.array(draw.integers(100)),
    }


def distance(before, after):
    """Return the L2 norm of an update of floats."""
    names = [name for name, array in after.items() if array.dtype.kind == "f"]
    return math.sqrt(sum(((after[n].astype(float) - before[n]) ** 2).sum() for n in names))


@pytest.mark.parametrize("norm", [1e-3, 0.5, 2.0])
def test_a_long_update_is_shortened_and_keeps_its_direction(norm):
    before, after = arrays(0), arrays(1)
    clipped = clip_update(before, after, norm)
    assert distance(before, clipped) == pytest.approx(norm, rel=1e-3)
    share = norm / distance(before, after)
    np.testing.assert_allclose(
        clipped["w"], before["w"] + share * (after["w"] - before["w"]), atol=1e-6
    )
    assert clipped["steps"] == after["steps"]
    assert {n: a.dtype for n, a in clipped.items()} == {n: a.dtype for n, a in after.items()}


def test_a_short_update_and_none_at_all_are_left_alone():
    before, after = arrays(0), arrays(1)
    for sent in (after, before):
        clipped = clip_update(before, sent, distance(before, after) + 1e-3)
        assert all(clipped[name].tobytes() == array.tobytes() for name, array in sent.items())


def test_noise_is_gaussian_of_its_deviation_and_independent():
    zeros = {"a": np.zeros(40_000, np.float32), "b": np.zeros((200, 200)), "n": np.array(3)}
    noisy = add_noise(zeros, 0.25, np.random.default_rng(0))
    for name in ("a", "b"):
        drawn = noisy[name].ravel()
        assert drawn.std() == pytest.approx(0.25, rel=5 / math.sqrt(2 * 40_000))
        assert abs(drawn.mean()) < 5 * 0.25 / math.sqrt(40_000)
        assert (abs(drawn) < 0.25).mean() == pytest.approx(0.6827, abs=0.012)
    assert abs(np.corrcoef(noisy["a"], noisy["b"].ravel())[0, 1]) < 5 / math.sqrt(40_000)
    assert noisy["n"] == 3
    assert noisy["a"].dtype == np.float32


def test_noise_is_z_times_the_clipping_norm_and_never_none_because_epsilon_was_not_looked_at():
    assert Privacy(clipping_norm=3.0, noise_multiplier=0.5).deviation == 1.5
    with pytest.raises(
        InputError, match=r"privacy\.epsilon: is 2, and no noise is chosen for it yet"
    ):
        _ = Privacy(clipping_norm=3.0, epsilon=2.0).deviation


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({}, "clipping_norm: is missing"),
        ({"clipping_norm": 0}, "clipping_norm"),
        ({"clipping_norm": 1, "noise_multiplier": -1}, "noise_multiplier"),
        ({"secure_aggregation": True}, "privacy: secure_aggregation: fedssl has none"),
        ({"clipping_norm": 1, "epsilon": 0}, "epsilon"),
        ({"clipping_norm": 1, "epsilon": 0.5, "delta": 1}, "delta"),
        ({"clipping_norm": 1, "epsilon": 0.5, "delta": 1e-5, "noise_multiplier": 1}, "drop one"),
    ],
)
def test_settings_that_make_no_sense(section, said):
    with pytest.raises(InputError, match=said):
        small_experiment(privacy=section)


class Tapped(SerialGrid):
    """A grid that keeps what every client was sent and sent back."""

    def __init__(self):
        super().__init__(Apps(self._ask), 6)
        self.updates = []

    def _ask(self, message, context):
        from fedssl.exchange import protocol

        reply = app(message, context)
        pair = (protocol.from_record(m.content["arrays"]) for m in (message, reply))
        self.updates.append(tuple(pair))
        return reply


def test_every_update_that_leaves_a_client_is_clipped_and_fedavg_is_their_mean():
    free, bound = Tapped(), Tapped()
    serve(small_experiment(rounds=1, strategy=UNIFORM), free, [])
    experiment = small_experiment(rounds=1, strategy=UNIFORM, privacy={"clipping_norm": 1e-2})
    outcome = serve(experiment, bound, [])
    assert min(distance(*update) for update in free.updates) > 2e-2
    for update in bound.updates:
        assert distance(*update) == pytest.approx(1e-2, rel=1e-3)
    before = bound.updates[0][0]
    for name, array in outcome.model.arrays.items():
        expected = np.mean(
            [
                before[name] + (after[name] - before[name]) * 1e-2 / distance(before, after)
                for _, after in free.updates
            ],
            axis=0,
        )
        np.testing.assert_allclose(array, expected, atol=1e-6)


def test_a_bound_that_nobody_meets_changes_no_bit():
    plain = serve(small_experiment(), SerialGrid(Apps(app), 6), [])
    bound = serve(small_experiment(privacy=FREE), SerialGrid(Apps(app), 6), [])
    assert all(
        bound.model.arrays[n].tobytes() == a.tobytes() for n, a in plain.model.arrays.items()
    )


def test_the_noise_of_a_client_has_the_deviation_that_the_file_says():
    quiet, noisy = Tapped(), Tapped()
    serve(small_experiment(rounds=1, privacy={"clipping_norm": 0.1}), quiet, [])
    loud = {"clipping_norm": 0.1, "noise_multiplier": 2.0}
    serve(small_experiment(rounds=1, privacy=loud), noisy, [])
    noises = []
    for (_, clipped), (_, sent) in zip(quiet.updates, noisy.updates, strict=True):
        noises.append(np.concatenate([(sent[n] - clipped[n]).ravel() for n in clipped]))
    for noise in noises:
        assert noise.std() == pytest.approx(0.2, rel=5 / math.sqrt(2 * len(noise)))
    assert abs(np.corrcoef(noises)[0, 1]) < 5 / math.sqrt(len(noises[0]))


def test_the_noise_of_the_server_is_a_cohorts_share_of_it():
    def run(**privacy):
        experiment = small_experiment(
            rounds=1, strategy=UNIFORM, privacy={"clipping_norm": 0.1, **privacy}
        )
        return serve(experiment, SerialGrid(Apps(app), 6), []).model.arrays

    quiet, noisy = run(), run(noise_multiplier=2.0, noise_at="server")
    noise = np.concatenate([(noisy[name] - quiet[name]).ravel() for name in quiet])
    assert noise.std() == pytest.approx(0.2 / 3, rel=5 / math.sqrt(2 * len(noise)))


@pytest.mark.parametrize("at", ["client", "server"])
def test_noise_is_the_same_on_every_engine(at):
    privacy = {"clipping_norm": 0.1, "noise_multiplier": 0.1, "noise_at": at}
    results = []
    for kind, workers in (("serial", "auto"), ("serial", "auto"), ("ray", 2)):
        experiment = small_experiment(
            strategy=UNIFORM, privacy=privacy, engine={"kind": kind, "workers": workers}
        )
        with Engine() as workforce:
            results.append(workforce.run(experiment).model.arrays)
    for other in results[1:]:
        assert all(other[name].tobytes() == a.tobytes() for name, a in results[0].items())


class Units(Observer):
    def __init__(self):
        self.ok = 0

    def round_ended(self, end):
        self.ok += end.row.clients_ok


def test_fused_clients_send_what_each_alone_would_but_for_rounding():
    experiment = small_experiment(
        federation={"labels": {"per_class": 8}},
        privacy={"clipping_norm": 1e-2, "noise_multiplier": 0.5},
    )
    fused = small_experiment(**{**_sections(experiment), "engine": {"fuse": "on"}})
    seen = Units()
    together = serve(fused, SerialGrid(Apps(app, train_together), 6), [seen]).model.arrays
    alone = serve(experiment, SerialGrid(Apps(app), 6), []).model.arrays
    assert seen.ok == 6
    for name, array in alone.items():
        np.testing.assert_allclose(together[name], array, atol=1e-5)


def _sections(experiment):
    return {name: experiment.to_dict()[name] for name in ("federation", "privacy")}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"method": {"kind": "freematch"}}, r"\[method\] sends .* beside the weights"),
        (
            {"augment": {"strong": {"kind": "ctaugment", "scope": "server"}}},
            r"\[augment\] sends 'augment.strong' .*change \[augment\]",
        ),
        ({"model": {"norm": "batch"}}, "statistics such as .*running_mean"),
        ({"model": {"norm": "static"}}, "statistics such as"),
        ({"strategy": "rscfed"}, "rscfed may ask a client several times a round"),
    ],
)
def test_what_noise_would_not_cover_or_would_break_is_refused(sections, said):
    experiment = small_experiment(
        **sections, privacy={"clipping_norm": 1.0, "noise_multiplier": 1.0}
    )
    with pytest.raises(InputError, match=said):
        check_experiment(experiment)
    with pytest.raises(InputError, match=said):
        serve(experiment, SerialGrid(Apps(app), 6), [])


def with_noise(strategy, at):
    return small_experiment(
        strategy=strategy,
        privacy={"clipping_norm": 1.0, "noise_multiplier": 0.1, "noise_at": at},
    )


@pytest.mark.parametrize(
    "strategy", ["fedavg", "flwr:FedAvg", {"weight": "uniform", "averaging": "population"}]
)
def test_noise_at_the_server_needs_clients_that_count_alike(strategy):
    with pytest.raises(InputError, match=r"privacy.noise_at(.|\n)*uniform"):
        check_experiment(with_noise(strategy, "server"))


@pytest.mark.parametrize(
    "method", [{"kind": "semifl"}, {"kind": "fl2"}, {"kind": "dividemix", "prior": "client"}]
)
def test_a_method_whose_clients_may_sit_out_is_refused(method):
    """Whether a client takes part depends on its images, and nothing hides that."""
    private = {"clipping_norm": 1.0, "noise_multiplier": 0.1}
    with pytest.raises(
        InputError, match="may sit a round out, which tells something of their images"
    ):
        check_experiment(small_experiment(method=method, privacy=private))


def test_a_strategy_that_keeps_or_sends_state_is_refused_and_one_without_is_not():
    """SCAFFOLD's variates travel unclipped. FedDyn's h_i follows the unclipped steps, and its H the clipped ones.

    FedProx changes only how a client trains, and the mean stays plain.
    """
    with pytest.raises(
        InputError, match=r"\[strategy\] sends 'scaffold.server'.*change \[strategy\]"
    ):
        check_experiment(with_noise("scaffold", "client"))
    check_experiment(with_noise({"kind": "fedprox", "weight": "uniform"}, "server"))
    for privacy in ({"clipping_norm": 1.0}, {"clipping_norm": 1.0, "noise_multiplier": 0.1}):
        with pytest.raises(
            InputError, match=r"clients of feddyn keep state that follows(.|\n)*'fedprox'"
        ):
            check_experiment(small_experiment(strategy="feddyn", privacy=privacy))


@pytest.mark.parametrize("kind", ["fedadagrad", "fedadam", "fedavgm", "fedyogi"])
def test_noise_at_the_server_needs_a_plain_mean(kind):
    """Noise for one round's mean does not cover a step in which updates of earlier rounds count too."""
    check_experiment(with_noise(UNIFORM, "server"))
    optimizer = {"kind": kind, "weight": "uniform"}
    with pytest.raises(InputError, match=r"privacy.noise_at(.|\n)*plain mean(.|\n)*'fedavg'"):
        check_experiment(with_noise(optimizer, "server"))
    check_experiment(with_noise(optimizer, "client"))


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm"])
def test_a_number_of_the_method_is_no_weight_where_it_does_not_leave(kind):
    with pytest.raises(InputError, match=r"strategy.weight.*numbers do not leave a client"):
        check_experiment(with_noise({"kind": kind, "weight": "number:certainty"}, "client"))


def test_clipping_alone_goes_with_statistics():
    experiment = small_experiment(model={"norm": "batch"}, privacy={"clipping_norm": 0.5})
    grid = Tapped()
    serve(experiment, grid, [])
    assert all(distance(*update) < 0.5 * (1 + 1e-3) for update in grid.updates)


def test_where_data_is_private_nobody_can_draw_the_noise_again():
    simulated = small_experiment()
    private = small_experiment(federation={"private": True})

    def draw(experiment, client=0):
        stream = noise_stream(experiment, server_round=1, client=client)
        return stream.standard_normal(4).tolist()

    assert draw(simulated) == draw(simulated) != draw(simulated, 1)
    assert draw(private) != draw(private)
