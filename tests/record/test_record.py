"""The run directory and the screen: all files, readable at any moment, with NaN as an empty cell."""

import io
import json
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import load_file

from fedssl.app.simulation import virtual_seconds
from fedssl.clients.client_app import app
from fedssl.core.console import Console
from fedssl.core.errors import InputError
from fedssl.data.client_names import client_names
from fedssl.data.federation import Deal, draw_federation
from fedssl.data.images import Dataset
from fedssl.data.images import Images as DataImages
from fedssl.data.labels.at_clients import AtClients
from fedssl.data.partitions.iid import IID
from fedssl.data.shard import ImageSpec
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.experiment import Experiment
from fedssl.record.description import (
    describe,
    remarks_on_data,
    remarks_on_means,
    remarks_on_systems,
)
from fedssl.record.global_model import GlobalModel
from fedssl.record.provenance import data_facts, environment, partition_table
from fedssl.record.rows import Failure, Observer, Outcome, RoundEnd, RoundRow, summarize
from fedssl.record.run_directory import RunDirectory
from fedssl.record.run_path import new_run_path
from fedssl.server.app import serve
from fedssl.views.federation_table import (
    describe_skew,
    describe_system,
    device_table,
    federation_table,
    gini,
    label_skew,
)
from fedssl.views.pictures.federation_plot import plot_federation
from fedssl.views.run import Run
from fedssl.views.screen.display import (
    PlainDisplay,
    failure_lines,
    make_display,
    percent,
    sparkline,
)
from fedssl.views.screen.live_display import LiveDisplay
from fedssl.views.text_table import OnScreen
from tests.helpers import broken_client, federation_of, small_experiment

NAN = float("nan")

NUMBERS = [str(client) for client in range(400)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    experiment = small_experiment(
        rounds=4, server={"evaluate_every": 2, "checkpoint_every": 2}, model={"norm": "batch"}
    )
    directory = RunDirectory(tmp_path_factory.mktemp("runs") / "one")
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [directory])
    return experiment, directory.path, outcome


def test_everything_is_there(finished):
    _, path, _ = finished
    assert sorted(p.name for p in path.iterdir()) == [
        "classes.csv", "clients.csv", "data.json", "ema.safetensors", "environment.json", "events.jsonl", "experiment.toml",
        "model.safetensors", "numbers.csv", "partition.csv", "rounds.csv", "summary.json",
    ]  # fmt: skip


def test_the_experiment_can_be_run_again_from_its_record(finished):
    experiment, path, _ = finished
    assert Experiment.load(path / "experiment.toml") == experiment


def test_rounds_and_clients(finished):
    _, path, outcome = finished
    rounds = pd.read_csv(path / "rounds.csv")
    clients = pd.read_csv(path / "clients.csv")
    assert rounds["round"].tolist() == [1, 2, 3, 4]
    assert rounds.server_accuracy.isna().tolist() == [True, False, True, False]
    assert (rounds.clients_ok == 3).all()
    assert clients.groupby("round").size().tolist() == [3] * 4
    assert (clients.status == "ok").all()
    model_bytes = clients.bytes_up.iloc[0]
    assert (rounds.bytes_up == 3 * model_bytes).all()
    assert (rounds.bytes_down == 3 * model_bytes).all()
    weighted = (clients.loss * clients.num_steps).groupby(
        clients["round"]
    ).sum() / clients.num_steps.groupby(clients["round"]).sum()
    np.testing.assert_allclose(rounds.loss, weighted, rtol=1e-6)
    assert rounds.pseudo_label_coverage.between(0, 1).all()
    assert len(outcome.rounds) == 4


def test_classes_add_up_to_what_rounds_and_clients_say(finished):
    _, path, _ = finished
    run = Run(path)
    assert run.classes.columns.tolist() == [
        "round", "label", "considered", "accepted", "predicted", "right",
    ]  # fmt: skip
    assert run.classes.label.tolist() == [*range(10)] * 4
    sums = run.classes.groupby("round").sum()
    rounds = run.rounds.set_index("round")
    np.testing.assert_allclose(sums.accepted / sums.considered, rounds.pseudo_label_coverage)
    np.testing.assert_allclose(sums.right / sums.accepted, rounds.pseudo_label_accuracy)
    np.testing.assert_allclose(sums.accepted, sums.predicted)
    assert (sums.accepted > 0).any()


def test_rounds_without_pseudo_labels_have_no_classes(tmp_path):
    phases = [{"rounds": 1, "method": {"kind": "supervised"}}, {"rounds": 1}]
    experiment = small_experiment(rounds=None, phases=phases)
    serve(experiment, SerialGrid(Apps(app), 6), [RunDirectory(tmp_path / "run")])
    assert Run(tmp_path / "run").classes["round"].unique().tolist() == [2]


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedAdam"])
def test_drift_is_how_far_clients_and_their_aggregate_went(tmp_path, strategy):
    models = []

    class Keep(Observer):
        def round_ended(self, end):
            models.append(end.model.arrays)

    serve(
        small_experiment(rounds=3, strategy=strategy),
        SerialGrid(Apps(app), 6),
        [RunDirectory(tmp_path / "run"), Keep()],
    )
    run = Run(tmp_path / "run")
    for before, after, norm in zip(models, models[1:], run.rounds.update_norm[1:], strict=False):
        steps = [np.float64(after[name]) - before[name] for name in after]
        assert norm == pytest.approx(np.linalg.norm(np.concatenate([s.ravel() for s in steps])))
    longest = run.clients.groupby("round").update_norm.max()
    assert (run.clients.update_norm > 0).all()
    if strategy == "fedavg":  # a mean of steps is not longer than the longest
        assert (run.rounds.set_index("round").update_norm <= longest).all()


def test_the_aggregates_step_is_measured_before_the_server_trains(tmp_path):
    """Clients of zero steps' length change nothing; the server's own training does not count."""
    experiment = small_experiment(
        federation={"labels": {"kind": "at_server", "per_class": 4}}, train={"lr": 1e-30}
    )
    serve(experiment, SerialGrid(Apps(app), 6), [RunDirectory(tmp_path / "run")])
    assert Run(tmp_path / "run").rounds.update_norm.tolist() == [0, 0]


def test_what_is_clipped_is_not_measured_at_clients(tmp_path):
    experiment = small_experiment(privacy={"clipping_norm": 0.001})
    serve(experiment, SerialGrid(Apps(app), 6), [RunDirectory(tmp_path / "run")])
    run = Run(tmp_path / "run")
    assert run.clients.update_norm.isna().all()
    assert run.classes.empty
    assert run.rounds.update_norm.between(0, 0.001 * (1 + 1e-6)).all()


def test_weights(finished):
    _, path, outcome = finished
    model, ema = load_file(path / "model.safetensors"), load_file(path / "ema.safetensors")
    for name, array in outcome.model.arrays.items():
        assert np.array_equal(model[name], array)
        assert (model[name].shape, model[name].dtype) == (array.shape, array.dtype)
        assert np.array_equal(ema[name], outcome.model.ema[name])


def test_the_ema_is_the_mean_of_the_first_models():
    """With a decay of .9 and its warm-up, the average of 3 rounds is their plain mean."""
    models = []

    class Keep(Observer):
        def round_ended(self, end):
            models.append(end.model.arrays)

    outcome = serve(small_experiment(rounds=3), SerialGrid(Apps(app), 6), [Keep()])
    for name, average in outcome.model.ema.items():
        np.testing.assert_allclose(average, np.mean([m[name] for m in models], axis=0), atol=1e-6)


def test_the_partition_is_recorded(finished):
    experiment, path, _ = finished
    table = pd.read_csv(path / "partition.csv")
    federation = federation_of(experiment)
    assert np.array_equal(table.client, federation.owner)
    assert table.labeled.sum() == 40
    assert np.array_equal(table.label, federation.data.train.labels)


def test_summary_and_environment(finished):
    _experiment, path, outcome = finished
    summary = json.loads((path / "summary.json").read_text())
    assert summary["rounds"] == 4
    assert summary["last_rounds"] == 2  # two were evaluated
    evaluated = [row.server_accuracy for row in outcome.rounds if row.evaluated]
    assert summary["server_accuracy"] == pytest.approx(np.mean(evaluated))
    assert json.loads((path / "environment.json").read_text())["versions"]["flwr"].startswith(
        "1.41"
    )
    events = [
        json.loads(line)["event"] for line in (path / "events.jsonl").read_text().splitlines()
    ]
    assert events == ["began", "ended"]
    assert tomllib.loads((path / "experiment.toml").read_text())["seed"] == 0


def test_a_killed_run_leaves_its_finished_rounds_readable(tmp_path):
    directory = RunDirectory(tmp_path / "run")

    class Killed(Exception):
        pass

    class Killer(PlainDisplay):
        def round_ended(self, end):
            assert len(pd.read_csv(tmp_path / "run" / "rounds.csv")) == end.row.round
            if end.row.round == 2:
                raise Killed

    with pytest.raises(Killed):
        serve(
            small_experiment(rounds=5),
            SerialGrid(Apps(app), 6),
            [directory, Killer(Console(file=io.StringIO()))],
        )
    assert len(pd.read_csv(tmp_path / "run" / "rounds.csv")) == 2
    last = json.loads((tmp_path / "run" / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(InputError, match="is not empty"):
        RunDirectory(tmp_path / "full")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot write to .*file is not a folder"):
        RunDirectory(tmp_path / "file" / "below")
    RunDirectory(tmp_path / "new")
    assert not (tmp_path / "new").exists()  # made when the run begins
    assert (tmp_path / "full" / "precious").read_text() == "x"


def test_fresh_run_paths(tmp_path):
    experiment = small_experiment()
    first = new_run_path(experiment, tmp_path)
    assert first.is_dir()
    assert new_run_path(experiment, tmp_path) != first
    assert first.parent == tmp_path / "small"


def screen(display_class, terminal):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    _, size = broken_client()
    experiment = small_experiment(
        method={"kind": "tests.plugins.raising", "sizes": [size]}, federation={"sample": 6}
    )
    display = make_display(console)
    assert isinstance(display, display_class)
    serve(experiment, SerialGrid(Apps(app), 6), [display])
    return out.getvalue()


def test_plain_lines_where_there_is_no_terminal():
    text = screen(PlainDisplay, terminal=False)
    lines = text.strip().splitlines()
    assert "\x1b" not in text
    assert lines[1].startswith("round 1/2 tests.plugins.raising: accuracy ")
    assert "clients 5/6" in lines[1]
    assert (
        lines[2]
        == f"  client {broken_client()[0]} failed: RuntimeError: this client is broken on purpose"
    )
    assert lines[-1].endswith("2 client failures")


def test_clients_that_fail_alike_are_told_in_one_line():
    alike = [Failure(1, client, "Traceback:\n  line\nValueError: no") for client in range(7)]
    assert list(failure_lines([*alike, Failure(1, 9, "KeyError: a")])) == [
        "7 clients (0, 1, 2, 3, 4, ...) failed: ValueError: no",
        "client 9 failed: KeyError: a",
    ]


def test_a_live_screen_on_a_terminal():
    text = screen(LiveDisplay, terminal=True)
    assert "ETA" in text
    assert "5/6" in text
    assert "broken on purpose" in text
    assert "2 client failures" in " ".join(text.split())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_live_screen_on_a_terminal_that_cannot_show_bars(encoding):
    out = io.BytesIO()
    file = io.TextIOWrapper(out, encoding=encoding)
    display = make_display(Console(file=file, force_terminal=True, width=100))
    display.began(small_experiment(), federation_of(small_experiment()))
    for n, accuracy in ((1, 0.0), (2, 0.999)):
        display.round_ended(RoundEnd(row(n, accuracy), [], [], GlobalModel()))
    display.failed("")
    file.flush()
    assert b"_#" in out.getvalue()
    assert b"?" not in out.getvalue().replace(b"\x1b[?", b"")


@pytest.mark.parametrize("inactive", [0, 2])
@pytest.mark.parametrize("terminal", [False, True])
def test_inactive_clients_are_counted_and_the_screen_names_them_only_if_there_are_any(
    terminal, inactive
):
    """Five clients of the cohort trained in each of two rounds, one failed, and `inactive` had nothing to train on."""
    experiment = small_experiment(rounds=2)
    out = io.StringIO()
    display = make_display(Console(file=out, force_terminal=terminal, width=100))
    rows = [replace(row(n, 0.5, failed=1), clients_inactive=inactive) for n in (1, 2)]
    display.began(experiment, federation_of(experiment))
    for one in rows:
        display.round_ended(RoundEnd(one, [], [], GlobalModel()))
    outcome = Outcome(GlobalModel(), tuple(rows), 2.0)
    display.ended(outcome)
    assert rows[0].cohort_size == 6 + inactive
    summary = summarize(experiment, outcome)
    assert (summary["clients_inactive"], summary["clients_lost"]) == (2 * inactive, 0)
    said = ", 4 inactive" if inactive else ""
    shown = " ".join(out.getvalue().split())
    assert shown.endswith(f"2.0 s, 2 client failures{said}")
    if terminal:
        assert f"5/{6 + inactive}" in out.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_an_incident_is_one_line(terminal):
    out = io.StringIO()
    display = make_display(Console(file=out, force_terminal=terminal, width=100))
    lost = "worker 1, units 3 to 5: worker lost: The actor died\n\tpid: 77"
    display.began(small_experiment(), federation_of(small_experiment()))
    display.round_ended(RoundEnd(row(1, 0.5), [], [], GlobalModel(), incidents=[lost]))
    display.failed("")
    assert "incident: worker 1, units 3 to 5: worker lost: The actor died" in out.getvalue()
    assert "pid" not in out.getvalue()


def test_plain_lines_say_what_the_run_waits_for_and_until_when():
    out = io.StringIO()
    until = datetime(2026, 1, 1, 12, 0, 5).astimezone()
    display = PlainDisplay(Console(file=out, width=40))
    display.waiting("client 1 went away, and client 2 went away too", until)
    said = out.getvalue()
    assert said.endswith("client 2 went away too; the run waits until 12:00:05 at most\n")
    assert said.count("\n") == 1


def test_what_the_run_waits_for_is_an_event_once_the_run_has_begun(tmp_path):
    directory, experiment = RunDirectory(tmp_path / "run"), small_experiment()
    directory.waiting("nobody hears it", None)
    directory.began(experiment, federation_of(experiment))
    directory.waiting("client 1 went away", datetime(2026, 1, 1, 12, tzinfo=UTC))
    directory.waiting("client 2 is late", None)
    directory.close()
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    said = [(event["what"], event["until"]) for event in events if event["event"] == "waiting"]
    assert said == [
        ("client 1 went away", "2026-01-01T12:00:00+00:00"),
        ("client 2 is late", None),
    ]


def row(round, accuracy, pseudo=NAN, failed=0):
    return RoundRow(
        round,
        0,
        "fixmatch",
        1.0,
        accuracy,
        0.5,
        accuracy,
        0.5,
        0.1,
        pseudo,
        pseudo,
        10,
        10,
        5,
        failed,
    )


def outcome_of(accuracies):
    return Outcome(GlobalModel(), tuple(row(i + 1, a) for i, a in enumerate(accuracies)), 2.0)


def test_the_reported_accuracy_is_the_mean_of_the_last_rounds_never_the_best():
    experiment = small_experiment(server={"last_rounds": 3})
    summary = summarize(experiment, outcome_of([0.1, 0.99, NAN, 0.2, NAN, 0.3, 0.4]))
    assert summary["server_accuracy"] == pytest.approx(0.3)
    assert summary["last_rounds"] == 3


def test_small_words():
    assert percent(0.1234) == "12.3 %"
    assert percent(NAN) == "-"
    assert sparkline([0, 0.5, 1.0], 10) == "▁▅█"
    assert len(sparkline([i / 99 for i in range(100)], 20)) == 20
    assert sparkline([i / 99 for i in range(100)], 20)[-1] == "█"


def test_a_picture_is_drawn(tmp_path):
    plot_federation(federation_of(small_experiment()), NUMBERS, "a title", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "p.png").stat().st_size > 10_000


def test_many_clients_are_still_shown(tmp_path):
    experiment = small_experiment()
    data = experiment.data.dataset(0)
    many = draw_federation(data, Deal(clients=400), 0)
    plot_federation(many, NUMBERS, "many", tmp_path / "many.png")
    console = Console(file=io.StringIO(), width=200)
    console.print(OnScreen(federation_table(many, NUMBERS)))
    assert len(console.file.getvalue().strip().splitlines()) == 42
    assert "the 20 largest and 20 smallest of 400" in describe_skew(many)
    assert label_skew(many) > label_skew(federation_of(experiment))


def text_of(table, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(OnScreen(table))
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("sizes", "expected"), [([5, 5, 5], 0), ([0, 0, 0, 12], 0.75), ([1, 3], 0.25), ([7], 0)]
)
def test_gini_of_known_cases(sizes, expected):
    assert gini(np.array(sizes)) == pytest.approx(expected)


def own_federation(truth, owner_count, names):
    """Return a federation of blank images of the given classes, -1 where unknown."""
    truth = np.array(truth)
    images = DataImages(np.zeros((len(truth), 1, 2, 2), np.uint8), truth, truth >= 0)
    spec = ImageSpec((1, 2, 2), len(names), (0.5,), (0.5,), flips=False)
    held_out = images.take(np.flatnonzero(truth >= 0)[:2])
    data = Dataset(images, held_out, "test", spec, names, notes=("3 images cannot be read",))
    deal = Deal(clients=owner_count, partition=IID(), labels=AtClients(per_class=1))
    return draw_federation(data, deal, 0)


def test_images_of_unknown_class_and_what_was_left_out_are_shown(tmp_path):
    federation = own_federation([0, 1] * 20 + [-1] * 60, 5, ("cat", "dog"))
    shown = text_of(federation_table(federation, NUMBERS))
    assert "class unknown" in shown
    assert "left out: 3 images cannot be read" in remarks_on_data(federation)
    assert "0 of 5 clients" not in describe_skew(federation)  # two labels for five clients
    plot_federation(federation, NUMBERS, "t", tmp_path / "u.png")
    assert (tmp_path / "u.png").stat().st_size > 10_000


def test_many_classes_are_counted_and_not_listed(tmp_path):
    names = tuple(f"class {i}" for i in range(100))
    federation = own_federation(list(range(100)) * 3, 4, names)
    shown = text_of(federation_table(federation, NUMBERS))
    assert "classes" in shown
    assert "class 50" not in shown
    plot_federation(federation, NUMBERS, "t", tmp_path / "c.png")
    assert Image.open(tmp_path / "c.png").height < 3000


def test_clients_of_unknown_classes_only_do_not_break_the_skew():
    federation = own_federation([0, 1] + [-1] * 98, 50, ("cat", "dog"))
    assert 0 <= label_skew(federation) <= 1


def test_devices_are_summed_up(tmp_path):
    system = {"speed": {"kind": "choices", "values": [10.0, 1000.0], "shares": [0.5, 0.5]}}
    experiment = small_experiment(system=system)
    devices, seconds = virtual_seconds(experiment)
    shown = text_of(device_table(devices, seconds))
    speeds = next(line for line in shown.splitlines() if "images/s" in line)
    assert "10" in speeds
    assert "1e+03" in speeds
    assert "a client's round, s" in shown
    late = small_experiment(
        system={**system, "deadline": float(np.median(seconds)) + 1e-6, "over_selection": 1.5}
    )
    said = describe_system(late, seconds)
    assert "5 asked for 3 wanted" in said
    assert "3 of 6 clients can make it" in said
    plot_federation(federation_of(experiment), NUMBERS, "t", tmp_path / "d.png", seconds, 3.0)
    assert (tmp_path / "d.png").stat().st_size > 10_000


def test_the_partitions_file_says_who_holds_what_and_with_what_label():
    federation = federation_of(
        small_experiment(federation={"labels": {"kind": "at_server"}, "label_noise": "pair"})
    )
    table = pd.read_csv(io.BytesIO(partition_table(federation)))
    assert (table.client == -1).sum() == 40
    labeled = table[table.labeled]
    assert (labeled.client == -1).all()
    assert (labeled.given != labeled.label).sum() == 8
    assert (table.given[~table.labeled] == -1).all()


def test_what_differs_between_clients_is_said_in_the_first_line():
    experiment = small_experiment(
        federation={
            "partition": {"kind": "classes", "classes": 2},
            "unlabeled_partition": "iid",
            "features": "rotation",
            "label_noise": {"kind": "pair", "rate": 0.3},
        }
    )
    said = describe(experiment, federation_of(experiment))
    assert "(classes, unlabeled iid, rotation by client)" in said
    assert "40 labels, 30% of them wrong (pair)" in said


@pytest.mark.parametrize(
    ("method", "strategy", "halves"),
    [
        ("fedmatch", "fedmatch", []),
        ("fixmatch", "fedavg", []),
        ("cbafed", "fedavg", ["method.kind = 'cbafed'"]),
        ("cbafed", "fedmatch", ["method.kind = 'cbafed'", "strategy.kind = 'fedmatch'"]),
    ],
)
def test_half_a_system_is_told(method, strategy, halves):
    table = {"method": {"kind": method}, "strategy": {"kind": strategy}}
    said = remarks_on_systems(small_experiment(**table))
    assert [remark.partition(" is half a system")[0] for remark in said] == halves


@pytest.mark.parametrize(
    ("labels", "strategy", "said"),
    [
        ({"kind": "some_clients", "labeled_clients": 1}, "fedavg", "5 of 6 clients hold no label and have {share:.0%} of the weight"),
        ({"kind": "some_clients", "labeled_clients": 1}, {"kind": "scaffold"}, "5 of 6 clients hold no label and have 83% of the weight"),
        ({"kind": "some_clients", "labeled_clients": 1}, {"kind": "fedavg", "weight": "labeled"}, ""),
        ({"kind": "some_clients", "labeled_clients": 1}, "rscfed", ""),
        ({"kind": "some_clients", "labeled_clients": 5}, "fedavg", ""),
        ({"kind": "every_client"}, "fedavg", ""),
        ({"kind": "at_server"}, "fedavg", ""),
    ],
)  # fmt: skip
def test_clients_without_labels_that_have_most_of_the_weight_are_told(labels, strategy, said):
    experiment = small_experiment(
        federation={"clients": 6, "sample": 3, "labels": labels}, strategy=strategy
    )
    federation = federation_of(experiment)
    found = remarks_on_means(experiment, federation)
    assert len(found) == bool(said)
    share = federation.sizes[federation.labeled_sizes == 0].sum() / federation.sizes.sum()
    assert all(each.startswith(said.format(share=share)) for each in found)


def test_clients_of_a_natural_partition_are_called_by_what_is_theirs(tmp_path):
    sites = np.array(["berlin", "lyon", "[oslo]"])[np.arange(90) % 3]
    labels = np.arange(90) % 2
    np.savez(tmp_path / "a.npz", images=np.zeros((90, 2, 2), np.uint8), labels=labels, site=sites)
    partition = {"kind": "natural", "column": "site"}
    experiment = small_experiment(
        data={"source": f"npz:{tmp_path}/a.npz", "train_size": None},
        federation={"clients": 3, "sample": 2, "partition": partition},
    )
    federation = federation_of(experiment)
    names = client_names(federation, experiment.federation.partition)
    for client, name in enumerate(names):
        own = federation.data.train.columns["site"][federation.rows(client)]
        (site,) = {federation.data.column_values["site"][code] for code in own}
        assert name == f"{client} ({site})"
    assert "[oslo]" in text_of(federation_table(federation, names))
    narrow = text_of(federation_table(federation, names), width=30)
    assert "…" not in narrow
    assert all(name in narrow for name in names)
    assert data_facts(experiment, federation)["client_names"] == names
    plot_federation(federation, names, "t", tmp_path / "n.png")
    two = small_experiment(
        data={"source": f"npz:{tmp_path}/a.npz", "train_size": None},
        federation={"clients": 2, "sample": 2, "partition": partition},
    )
    assert any(
        name.endswith(" +1)") for name in client_names(federation_of(two), two.federation.partition)
    )
    iid = small_experiment()
    assert client_names(federation_of(iid), iid.federation.partition) == NUMBERS[:6]
    assert data_facts(iid, federation_of(iid))["client_names"] == []


def test_a_token_in_the_command_is_not_recorded(monkeypatch):
    """Flower passes one to a server app, and the record of a run may be shown to anybody."""
    command = ["flwr-serverapp", "--token", "c0ffee", "--run-once", "--token=c0ffee", "--token"]
    monkeypatch.setattr(sys, "argv", command)
    shown = ["flwr-serverapp", "--token", "...", "--run-once", "--token=...", "--token"]
    assert environment()["command"] == shown
