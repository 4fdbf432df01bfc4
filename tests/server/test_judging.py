"""A run whose phases have judges: the same bits on every engine and after every stop, and a record that names the judge."""

import dataclasses
import json

import pandas as pd
import pytest

from fedssl.app.simulation import check_experiment
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.plan import Wish
from fedssl.engine.ray.grid import RayGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.record.judges import UNTRAINED, judges_of, remarks_on_judges
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.server import evaluation
from fedssl.server.app import serve
from fedssl.views.screen.display import closing_line
from tests.helpers import federation_of, small_experiment
from tests.resuming import Copier, bits, go_on, run

PROBE = {"kind": "linear_probe", "layers": ["projection", "backbone"]}
CONTRASTING = {"kind": "tests.plugins.contrasting"}


def two_phases(**overrides):
    """Pre-training that a probe judges, another judge's round, and training with labels that the classifier judges."""
    phases = [
        {"rounds": 2, "method": CONTRASTING, "server": {"evaluator": PROBE}},
        {"rounds": 1, "server": {"evaluator": {"kind": "knn", "per_class": 3}}},
        {"rounds": 1},
    ]
    return small_experiment(rounds=None, phases=phases, model={"norm": "batch"}, **overrides)


class Rows(Observer):
    def __init__(self):
        self.ends = []

    def round_ended(self, end):
        self.ends.append(end)

    def seen(self):
        return [
            (repr(dataclasses.replace(end.row, seconds=0.0)), [repr(n) for n in end.numbers])
            for end in self.ends
        ]


def test_the_judge_of_a_phase_lies_over_that_of_the_experiment():
    experiment = two_phases(server={"evaluator": "knn"})
    kinds = [plan.server.evaluator.kind for plan in experiment.plans]
    assert kinds == ["linear_probe", "knn", "knn"]
    assert [plan.server.evaluator for plan in two_phases().plans[1:]] != [
        plan.server.evaluator for plan in experiment.plans[1:]
    ]
    again = type(experiment).from_dict(experiment.to_dict())
    assert again == experiment


def test_any_number_of_workers_judges_to_the_same_bits(monkeypatch):
    monkeypatch.setattr(evaluation, "WORTH_SHARING", 1)
    experiment = two_phases()
    here, there = Rows(), Rows()
    serve(experiment, SerialGrid(Apps(app), 6, "cpu"), [here])
    grid = RayGrid(Apps(app), 6, Wish(2, 0))
    try:
        serve(experiment, grid, [there])
    finally:
        grid.close()
    assert here.seen() == there.seen()
    assert not any(end.incidents for end in there.ends)


def test_killed_after_any_round_it_is_judged_to_the_same_bits(tmp_path):
    experiment = two_phases(server={"checkpoint_every": 1})
    run(experiment, tmp_path / "run", Copier(tmp_path / "run", tmp_path))
    whole = bits(tmp_path / "run")
    for stopped in (1, 2, 3):
        go_on(experiment, tmp_path / str(stopped))
        assert bits(tmp_path / str(stopped)) == whole


def test_every_layer_is_recorded_and_the_first_gives_the_accuracy(tmp_path):
    outcome = run(two_phases(), tmp_path / "run")
    numbers = pd.read_csv(tmp_path / "run" / "numbers.csv")
    by_round = numbers[numbers["client"] == -1].pivot(index="round", columns="name", values="value")
    for row in outcome.rounds[:2]:
        assert by_round["probe.projection"][row.round] == row.server_accuracy
        assert by_round["probe.projection.ema"][row.round] == row.ema_accuracy
        assert 0.2 < by_round["probe.backbone"][row.round] != row.server_accuracy
    assert by_round["probe.backbone"][3] == outcome.rounds[2].server_accuracy
    assert 4 not in by_round.index or by_round.filter(like="probe").loc[4].isna().all()


def test_the_record_names_the_judge_of_each_phase_and_the_last_accuracy_is_of_one_judge(tmp_path):
    experiment = two_phases(server={"last_rounds": 4})
    outcome = run(experiment, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "data.json").read_text())
    wanted = [
        "linear probe on projection, 40 labels",
        "kNN, 30 labels, per_class = 3",
        "classifier",
    ]
    assert facts["judged_by"] == wanted == list(outcome.judges)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["judged_by"] == "classifier"
    assert summary["last_rounds"] == 1  # not four rounds of three judges
    assert summary["server_accuracy"] == outcome.rounds[-1].server_accuracy
    assert f"accuracy {summary['server_accuracy'] * 100:.1f} %" in closing_line(experiment, outcome)


def test_the_judge_of_the_last_phase_is_on_the_last_line(tmp_path):
    experiment = small_experiment(method=CONTRASTING, server={"evaluator": PROBE})
    said = closing_line(experiment, run(experiment, tmp_path / "run"))
    assert "accuracy (linear probe on projection, 40 labels) " in said


def test_a_classifier_that_nobody_trains_is_called_so(tmp_path):
    experiment = small_experiment(method=CONTRASTING, rounds=5)
    judges = judges_of(experiment, federation_of(experiment))
    assert judges == (UNTRAINED,)
    assert remarks_on_judges(judges)[0].startswith("Phase 1 trains no classifier")
    said = closing_line(experiment, run(experiment, tmp_path / "run"))
    assert "accuracy (untrained classifier) " in said
    assert "The accuracy is chance, because the last phase trains no classifier" in said
    assert "learned nothing" not in said
    at_server = small_experiment(
        method=CONTRASTING, federation={"labels": {"kind": "at_server", "per_class": 4}}
    )
    assert judges_of(at_server, federation_of(at_server)) == (UNTRAINED,)


PRIVATE = {"private": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"server": {"evaluator": {"kind": "knn", "layers": ["projection"]}}},
            r"server\.evaluator\.layers: names 'projection', which the method does not have.*it has: backbone",
        ),
        (
            {"federation": PRIVATE, "server": {"evaluator": "knn"}},
            r"server\.evaluator: is 'knn'.*only the clients have labels.*set per_class or fraction",
        ),
    ],
)
def test_what_cannot_be_judged_is_refused_before_anything_runs(settings, message):
    experiment = small_experiment(**settings)
    with pytest.raises(InputError, match=message):
        check_experiment(experiment)

    class Remote(SerialGrid):
        is_simulation = False

    with pytest.raises(InputError, match=message):
        serve(experiment, Remote(Apps(app), 6), [])


def test_with_private_data_the_servers_own_images_can_serve():
    at_server = {**PRIVATE, "labels": {"kind": "at_server", "per_class": 4}}
    check_experiment(small_experiment(federation=at_server, server={"evaluator": "knn"}))
    own = {"kind": "knn", "fraction": 0.2}
    check_experiment(small_experiment(federation=PRIVATE, server={"evaluator": own}))


def test_a_run_judged_by_its_classifier_records_no_layers(tmp_path):
    run(small_experiment(), tmp_path / "run")
    assert "probe" not in (tmp_path / "run" / "numbers.csv").read_text()
    assert RunDirectory(tmp_path / "run", resume=True).is_finished


def test_a_judge_that_cannot_judge_is_refused_with_the_number_of_its_phase():
    phases = [
        {"rounds": 1},
        {"rounds": 1, "server": {"evaluator": {"kind": "knn", "layers": ["projection"]}}},
    ]
    with pytest.raises(InputError, match=r"^phases\[1\]\.server\.evaluator\.layers: names 'proj"):
        check_experiment(small_experiment(rounds=None, phases=phases))
    alone = small_experiment(server={"evaluator": {"kind": "knn", "per_class": 9999}})
    with pytest.raises(InputError, match=r"^server\.evaluator\.per_class: is 9999"):
        check_experiment(alone)
