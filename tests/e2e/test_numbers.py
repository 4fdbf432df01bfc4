"""A number that a method returns reaches record, report, trackers and comparisons, and can be a weight."""

import csv
import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fedssl.clients.client_app import app
from fedssl.clients.fused_app import train_together
from fedssl.exchange import protocol
from fedssl.strategies.by_sums import SumStrategy
from fedssl.views.comparison.comparison import Comparison
from fedssl.views.reports.material import read_material
from fedssl.views.reports.round_charts import number_charts
from fedssl.views.run import Run
from tests.clients.test_fused_app import requests
from tests.helpers import fedssl, refused, sha256, small_experiment, small_toml
from tests.resuming import Stop, Stopper, bits, go_on
from tests.resuming import run as run_through

METHOD = {"kind": "tests.plugins.certain", "unlabeled_ratio": 2}
SUPERVISED = {"kind": "supervised"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two rounds of six clients with TensorBoard."""
    folder = tmp_path_factory.mktemp("numbers")
    file = small_toml(folder / "e.toml", method=METHOD, tracker="tensorboard", engine={"kind": "serial"})  # fmt: skip
    for seed in (0, 1):
        done = fedssl("run", file, "--set", f"seed={seed}", "--out", folder / f"run{seed}")
        assert done.exit_code == 0, done.output
    return folder / "run0"


def rows_of(run):
    with (run / "numbers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_record_has_a_row_a_client_and_the_mean_by_steps(run):
    rows = rows_of(run)
    assert list(rows[0]) == ["round", "client", "name", "value"]
    clients = Run(run).clients
    for round in (1, 2):
        own = clients[(clients["round"] == round) & (clients["status"] == "ok")]
        steps = dict(zip(own["client"], own["num_steps"], strict=True))
        found = {
            int(row["client"]): float(row["value"])
            for row in rows
            if row["name"] == "certainty" and int(row["round"]) == round
        }
        server = found.pop(-1)
        assert found.keys() == steps.keys()
        mean = sum(steps[c] * v for c, v in found.items()) / sum(steps.values())
        assert server == pytest.approx(mean, rel=1e-12)
        assert 0.1 <= server < 1
    rare = {row["value"] for row in rows if row["name"] == "rare"}
    assert rare == {"3.0"}  # the mean over the steps in which it is known


def test_the_report_draws_it(run):
    charts = {chart.name: chart for chart in number_charts(read_material(Run(run), None))}
    assert charts.keys() == {"number-certainty", "number-rare"}
    rows = charts["number-certainty"].rows
    assert [row["round"] for row in rows] == [1, 2]
    assert all(row["lowest client"] <= row["server"] <= row["highest client"] for row in rows)
    assert "Recorded: certainty" in (run / "report.html").read_text()


def test_the_tracker_has_it(run):
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    found = [event.value for event in events.Scalars("number/certainty")]
    recorded = [
        float(row["value"])
        for row in rows_of(run)
        if (row["name"], row["client"]) == ("certainty", "-1")
    ]
    assert found == pytest.approx(recorded, rel=1e-6)


def test_compare_sums_it_up_over_seeds(run, tmp_path):
    comparison = Comparison.of_runs([run, run.with_name("run1")], force=False)
    (line,) = (row for row in comparison.numbers.to_dict("records") if row["name"] == "certainty")
    ends = []
    for folder in (run, run.with_name("run1")):
        own = [
            row for row in rows_of(folder) if (row["name"], row["client"]) == ("certainty", "-1")
        ]
        ends.append(np.mean([float(row["value"]) for row in own]))  # both of the last ten rounds
    assert line["seeds"] == 2
    assert line["mean"] == pytest.approx(np.mean(ends))
    assert line["std"] == pytest.approx(np.std(ends, ddof=1))
    done = fedssl("compare", run, run.with_name("run1"), "--out", tmp_path / "out")
    assert "what methods recorded" in done.output
    assert "certainty" in (tmp_path / "out" / "comparison_numbers.csv").read_text()
    assert "Recorded: certainty" in (tmp_path / "out" / "comparison.html").read_text()


def test_it_can_be_a_strategys_weight(run, tmp_path):
    """The mean weighted by it, worked out here from two clients' own replies."""
    experiment = small_experiment(
        rounds=1, method=METHOD, federation={"sample": 2}, strategy={"weight": "number:certainty"}
    )
    file = tmp_path / "e.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    assert fedssl("run", file, "--out", tmp_path / "run").exit_code == 0
    clients = sorted(Run(tmp_path / "run").clients["client"])
    messages, contexts = requests(experiment, clients)
    messages[0].content["config"]["server-round"] = 1
    replies = [app(m, c) for m, c in zip(messages, contexts, strict=True)]
    weights = [protocol.metrics_of(reply)["number/certainty"] for reply in replies]
    arrays = [protocol.from_record(reply.content["arrays"]) for reply in replies]
    for name, found in load_file(tmp_path / "run" / "model.safetensors").items():
        expected = sum(w * a[name].astype(float) for w, a in zip(weights, arrays, strict=True))
        assert np.allclose(found, expected / sum(weights), atol=1e-6), name
    plain = tmp_path / "plain"
    assert fedssl("run", file, "--set", "strategy.weight=all", "--out", plain).exit_code == 0
    assert sha256(plain / "model.safetensors") != sha256(tmp_path / "run" / "model.safetensors")


@pytest.mark.parametrize("kind", ["freematch", "flexmatch", "softmatch"])
def test_methods_whose_thresholds_move_record_them(kind, tmp_path):
    file = small_toml(tmp_path / "e.toml", method={"kind": kind, "unlabeled_ratio": 2})
    assert fedssl("run", file, "--out", tmp_path / "run").exit_code == 0
    names = {row["name"] for row in rows_of(tmp_path / "run")}
    known = {"mean_confidence", "variance"} if kind == "softmatch" else {"threshold", "lowest_threshold"}  # fmt: skip
    assert names == known
    assert all(0 <= float(row["value"]) <= 1 for row in rows_of(tmp_path / "run"))


def test_a_weight_that_no_client_sends_or_that_does_not_leave_is_one_error(tmp_path):
    file = small_toml(tmp_path / "e.toml", method=SUPERVISED)
    weight = ["--set", "strategy.weight=number:certainty"]
    done = fedssl("run", file, *weight, "--out", tmp_path / "run")
    assert done.exit_code == 1
    assert "recorded no 'certainty'" in done.output
    private = ["--set", "privacy.clipping_norm=1"]
    refused(fedssl("validate", file, *weight, *private), "strategy.weight", "do not leave a client")
    refused(fedssl("validate", file, "--set", "strategy.weight=number:"), "strategy.weight")


@pytest.mark.parametrize("fused", [False, True])
def test_it_does_not_leave_a_client_whose_update_is_clipped(fused):
    def sent(**overrides):
        experiment = small_experiment(method=METHOD, **overrides)
        messages, contexts = requests(experiment, [3, 4])
        if fused:
            replies = train_together(messages, contexts).messages
        else:
            replies = [app(m, c) for m, c in zip(messages, contexts, strict=True)]
        return [name for reply in replies for name in reply.content["metrics"] if "/" in name]

    assert sent() == ["number/certainty", "number/rare"] * 2
    assert sent(privacy={"clipping_norm": 100.0}) == []


def test_a_name_that_is_none_and_a_number_that_is_none_are_refused(tmp_path):
    from fedssl.core.numbers import MOST_NUMBERS, check_names

    check_names(["a", "A.b-c_1"])
    for names in (["a/b"], [""], ["1a"], ["a" * 49], [f"n{i}" for i in range(MOST_NUMBERS + 1)]):
        with pytest.raises(ValueError, match="number"):
            check_names(names)


class Measuring(SumStrategy):
    """Says how long it has been there."""

    def numbers(self):
        return {"kept": float(len(self.cohorts.census)), "unknown": math.nan}


def test_a_strategy_records_what_it_returns(tmp_path, monkeypatch):
    monkeypatch.setattr("fedssl.strategies.fedavg.AveragingStrategy.numbers", Measuring.numbers)
    file = small_toml(tmp_path / "e.toml", method=SUPERVISED)
    assert fedssl("run", file, "--out", tmp_path / "run").exit_code == 0
    found = [(row["client"], row["name"], row["value"]) for row in rows_of(tmp_path / "run")]
    assert found == [("-1", "strategy.kept", "6.0")] * 2
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["rounds"] == 2


def test_a_run_that_goes_on_has_every_number_once(tmp_path):
    """Rows of a round that was written only in part, or after the checkpoint, are cut off and written again."""
    experiment = small_experiment(rounds=4, method=METHOD, server={"checkpoint_every": 2})
    run_through(experiment, tmp_path / "whole")
    with pytest.raises(Stop):
        run_through(experiment, tmp_path / "stopped", Stopper(3))
    go_on(experiment, tmp_path / "stopped")
    assert bits(tmp_path / "stopped") == bits(tmp_path / "whole")
    assert "numbers.csv" in bits(tmp_path / "whole")
