"""Virtual time from end to end: the same clients are late on every engine, and the record says so."""

import numpy as np
import pandas as pd
import pytest

from fedssl.app.simulation import Engine, check_experiment, virtual_seconds
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.views.screen.display import PlainDisplay
from fedssl.views.screen.live_display import LiveDisplay
from tests.helpers import (
    fedssl,
    finished,
    in_a_process,
    sha256,
    small_experiment,
    small_toml,
)

SYSTEM = {
    "speed": {"kind": "lognormal", "median": 50.0, "sigma": 1.0},
    "upload": {"kind": "choices", "values": [0.2, 5.0], "shares": [0.5, 0.5]},
}

ENGINES = ["serial", "ray", "flower"]


def slowest_third(experiment: Experiment) -> tuple[float, set[int]]:
    """Return a deadline that the slowest third of the clients misses, and who they are."""
    timed = virtual_seconds(experiment)
    assert timed is not None
    seconds = timed[1]
    order = np.argsort(seconds)
    third = len(seconds) // 3
    return float(seconds[order[-third - 1]]), {int(c) for c in order[-third:]}


@pytest.mark.timeout(600)
def test_the_slowest_third_is_late_on_every_engine(tmp_path):
    everybody = {"clients": 9, "sample": 9}
    draft = small_experiment(rounds=3, federation=everybody, system=SYSTEM)
    deadline, slow = slowest_third(draft)
    assert len(slow) == 3
    file = small_toml(
        tmp_path / "e.toml",
        rounds=3,
        federation=everybody,
        system={**SYSTEM, "deadline": deadline, "dropout": 0.2},
    )
    seen = {}
    for i, engine in enumerate(ENGINES):
        out = tmp_path / str(i)
        arguments = ("run", file, "--out", out, "--engine", engine, "--workers", 2)
        finished(fedssl(*arguments)) if engine == "serial" else in_a_process(*arguments)
        clients = pd.read_csv(out / "clients.csv")
        rounds = pd.read_csv(out / "rounds.csv")
        seen[engine] = (
            clients[["round", "client", "status", "virtual_seconds"]].to_csv(),
            rounds[["clients_ok", "clients_lost", "virtual_seconds"]].to_csv(),
            sha256(out / "model.safetensors"),
        )
    assert len(set(seen.values())) == 1, seen
    late = clients[clients.status == "late"]
    assert set(late.client) <= slow
    assert len(late) + (clients.client.isin(slow) & (clients.status == "dropped")).sum() == 9
    assert rounds.virtual_seconds.tolist() == pytest.approx([deadline, 2 * deadline, 3 * deadline])


def test_the_screen_says_who_was_lost_and_how_long_it_took(capsys):
    experiment = small_experiment(system={**SYSTEM, "dropout": 1.0, "deadline": 500.0})
    console = Console(width=200)
    with Engine() as engine:
        engine.run(experiment, [PlainDisplay(console)])
        engine.run(experiment, [LiveDisplay(Console(width=200, force_terminal=True))])
    said = capsys.readouterr().out
    assert said.count("6 lost in 1,000 virtual s") == 2
    assert "clients 0/3" in said


def run(**overrides):
    with Engine() as engine:
        return engine.run(small_experiment(**overrides))


def test_without_a_deadline_virtual_time_changes_no_bit():
    plain, timed = run(), run(system=SYSTEM)
    for name, array in plain.model.arrays.items():
        assert np.array_equal(timed.model.arrays[name], array)
    assert np.isnan(plain.rounds[-1].virtual_seconds)
    assert timed.rounds[-1].virtual_seconds > timed.rounds[0].virtual_seconds > 0


def test_over_selection_asks_more_and_counts_as_many_as_wanted():
    outcome = run(federation={"clients": 6, "sample": 3}, system={**SYSTEM, "over_selection": 1.5})
    assert [(row.clients_ok, row.clients_lost) for row in outcome.rounds] == [(3, 2)] * 2
    down = outcome.rounds[0].bytes_down
    assert down == pytest.approx(outcome.rounds[0].bytes_up * 5 / 3)


def test_a_round_that_nobody_makes_leaves_the_weights_and_the_run_goes_on():
    outcome = run(system={**SYSTEM, "dropout": 1.0, "deadline": 1000.0})
    assert [(row.clients_ok, row.clients_lost) for row in outcome.rounds] == [(0, 3)] * 2
    assert outcome.rounds[-1].virtual_seconds == 2000
    other = run(rounds=1, system={**SYSTEM, "dropout": 1.0, "deadline": 1000.0})
    for name, array in outcome.model.arrays.items():
        assert np.array_equal(other.model.arrays[name], array)


@pytest.mark.parametrize("kind", ["fedavg", "flwr:FedAvg", "flwr:FedAdam", "rscfed"])
def test_any_strategy_lives_with_fewer_replies(kind):
    system = {**SYSTEM, "dropout": 0.4, "deadline": 1000.0}
    outcome = run(rounds=4, strategy={"kind": kind}, system=system)
    asked = sum(row.cohort_size for row in outcome.rounds)
    assert asked == (36 if kind == "rscfed" else 12)
    assert 0 < sum(row.clients_lost for row in outcome.rounds) < asked


def test_the_servers_own_training_takes_virtual_time():
    """10 labels of a class, 2 steps of 8: 16 images a round at 8 a second, and once before the first."""
    labels = {"labels": {"kind": "at_server", "per_class": 1}}
    quick = run(federation=labels, system=SYSTEM)
    slow = run(federation=labels, system={**SYSTEM, "server_speed": 8.0})
    times = [row.virtual_seconds for row in quick.rounds]
    assert [row.virtual_seconds for row in slow.rounds] == pytest.approx(
        [times[0] + 4, times[1] + 6]
    )


def test_few_that_are_there_make_a_small_cohort(tmp_path):
    path = tmp_path / "times.csv"
    path.write_text("client,start,end\n1,0,1e9\n4,0,1e9\n")
    availability = {"kind": "schedule", "path": str(path)}
    outcome = run(system={"availability": availability})
    assert [row.clients_ok for row in outcome.rounds] == [2, 2]


def test_a_state_at_the_server_survives_lost_clients():
    method = {"kind": "freematch", "unlabeled_ratio": 2}
    outcome = run(rounds=3, method=method, system={**SYSTEM, "dropout": 0.5, "deadline": 1000.0})
    assert outcome.model.state
    assert all(np.isfinite(array).all() for array in outcome.model.state.values())


def test_a_deadline_that_nobody_can_meet_is_refused():
    with pytest.raises(InputError, match=r"system.deadline: is 0.001 s, but the fastest client"):
        check_experiment(small_experiment(system={**SYSTEM, "deadline": 0.001}))


def test_what_availability_rests_on_is_read_before_anything_runs(tmp_path):
    lost = {"kind": "schedule", "path": str(tmp_path / "lost.csv")}
    with pytest.raises(InputError, match=r"lost.csv: no such file"):
        check_experiment(small_experiment(system={"availability": lost}))
    never = tmp_path / "never.csv"
    never.write_text("client,start,end\n99,0,10\n")
    with pytest.raises(InputError, match=r"system.availability: no client is ever available"):
        check_experiment(
            small_experiment(system={"availability": {"kind": "schedule", "path": str(never)}})
        )
