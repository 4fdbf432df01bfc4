"""fedssl as a library: Python gives the same run as the command line, and a `Run` that displays itself."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fedssl as package
from fedssl import Experiment, InputError, Run, compare, run
from fedssl.app.library import _kept_engine
from fedssl.app.simulation import Engine
from fedssl.record.rows import Observer
from fedssl.views.screen.display import make_display
from fedssl.views.screen.notebook_display import NotebookDisplay
from tests.helpers import fedssl, refused, sha256, small_experiment, small_toml


class Stopper(Observer):
    """Presses the stop button after a round."""

    def __init__(self, after: int) -> None:
        self.after = after

    def round_ended(self, end):
        if end.row.round == self.after:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("library")
    experiment = small_experiment(rounds=3, method={"kind": "fixmatch", "threshold": 0.2})
    return run(experiment, out=folder / "run", progress=False)


def test_what_is_offered_is_there_and_nothing_is_imported_before():
    assert {getattr(package, name) for name in package.__all__} >= {Experiment, Run, run}
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = package.runn
    code = "import sys, fedssl; dir(fedssl); print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_messages_name_arguments_of_python(finished):
    experiment = finished.experiment
    with pytest.raises(InputError, match=r"^out: .* is not empty; .* go on .*: resume=True$"):
        run(experiment, out=finished.path, progress=False)
    with pytest.raises(InputError, match=r"rounds was 3 and is 9; .* without resume=True"):
        run(experiment.with_settings("rounds=9"), out=finished.path, resume=True, progress=False)
    for settings in ({"rounds": 3}, ["rounds=3"], 3):
        with pytest.raises(InputError, match=r'^settings: .* is no text; write "train.lr=0.1"$'):
            experiment.with_settings(settings)


def test_a_file_a_table_and_an_experiment_give_the_bits_of_the_command_line(tmp_path, finished):
    experiment = finished.experiment
    file = tmp_path / "e.toml"
    file.write_text(experiment.to_toml(), encoding="utf-8")
    assert fedssl("run", file, "--out", tmp_path / "cli", "--plain").exit_code == 0
    for given in (file, str(file), experiment.to_dict()):
        found = run(given, out=tmp_path / f"as-{type(given).__name__}", progress=False)
        for name in ("model.safetensors", "ema.safetensors"):
            wanted = sha256(tmp_path / "cli" / name)
            assert sha256(found.path / name) == sha256(finished.path / name) == wanted


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path, finished, monkeypatch):
    with Engine() as engine:
        monkeypatch.setattr("fedssl.app.library.make_display", lambda console: Stopper(after=1))
        with pytest.raises(KeyboardInterrupt, match=r"go on with run\(.*resume=True\)"):
            run(finished.experiment, out=tmp_path / "run", engine=engine)
        monkeypatch.undo()
        stopped = Run(tmp_path / "run")
        assert not stopped.is_finished
        assert len(stopped.round_rows) == 1
        with pytest.raises(InputError, match="not empty"):
            run(finished.experiment, out=tmp_path / "run", engine=engine, progress=False)
        found = run(
            finished.experiment, out=tmp_path / "run", resume=True, engine=engine, progress=False
        )
    assert len(found.round_rows) == 3
    assert sha256(found.path / "ema.safetensors") == sha256(finished.path / "ema.safetensors")


def test_a_damaged_checkpoint_is_said(tmp_path, finished, caplog, monkeypatch):
    experiment = finished.experiment.with_settings("server.checkpoint_every=1")
    monkeypatch.setattr("fedssl.app.library.make_display", lambda console: Stopper(after=2))
    with pytest.raises(KeyboardInterrupt):
        run(experiment, out=tmp_path / "run")
    (tmp_path / "run" / "checkpoint" / "round-000002" / "ema.safetensors").unlink()
    assert run(experiment, out=tmp_path / "run", resume=True, progress=False).is_finished
    assert caplog.messages == [
        "the checkpoint of round 2 is damaged: ema.safetensors is missing",
    ]
    assert caplog.records[0].levelname == "WARNING"


def test_what_is_done_is_not_run_again(finished, monkeypatch):
    monkeypatch.setattr("fedssl.app.library._run_in", None)
    assert run(finished.experiment, out=finished.path, resume=True).path == finished.path


def test_workers_are_kept_from_call_to_call_and_let_go_when_a_run_fails(tmp_path):
    experiment = small_experiment(rounds=1)
    run(experiment, out=tmp_path / "1", progress=False)
    kept = _kept_engine()
    grid = kept._grid
    assert grid is not None
    run(experiment.with_settings("seed=1"), out=tmp_path / "2", progress=False)
    assert kept._grid is grid
    raising = experiment.with_settings(
        "method.kind=tests.plugins.raising", "server.min_success=1.0"
    )
    with pytest.raises(package.RunFailed) as caught:
        run(raising, out=tmp_path / "3", progress=False)
    (note,) = caught.value.__notes__
    assert note.endswith(f"go on with run(..., out={str(tmp_path / '3')!r}, resume=True)")
    assert kept._grid is None


@pytest.mark.timeout(300)
def test_a_process_whose_workers_were_kept_ends_well_and_leaves_none(tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=1, engine={"kind": "ray", "workers": 2})
    code = f"""
from fedssl import run
from fedssl.app.library import _kept_engine
for out in "ab":
    run({str(file)!r}, out={str(tmp_path)!r} + "/" + out, progress=False)
for worker in _kept_engine()._grid.result().describe_workers():
    print(worker["pid"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 2
    until = time.monotonic() + 30  # Ray's workers end themselves once their raylet is gone
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data": {"source": "digits"}, "rouns": 3}, "rouns: unknown key; did you mean 'rounds'"),
        ("nowhere.toml", "nowhere.toml: no such file"),
    ],
)
def test_a_mistake_is_an_input_error(given, message):
    with pytest.raises(InputError, match=message):
        run(given, progress=False)


def test_settings_go_over_an_experiment_in_hand_as_over_its_file(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    settings = ["method.threshold=0.9", "federation.sample=4", "model.norm=none"]
    assert Experiment.load(file).with_settings(*settings) == Experiment.load(file, settings)
    with pytest.raises(InputError, match="threshold"):
        Experiment.load(file).with_settings("method.threshold=2")


def test_a_run_predicts_what_its_evaluation_counted(finished):
    held_out = finished.federation.held_out
    for average, column in ((True, "ema_accuracy"), (False, "server_accuracy")):
        probs = finished.predict(held_out.images, average=average)
        assert probs.shape == (len(held_out), 10)
        np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
        right = float((probs.argmax(1) == held_out.labels).mean())
        assert right == finished.rounds[column].iloc[-1]
    as_floats = torch.from_numpy(held_out.images) / 255
    assert np.array_equal(finished.predict(as_floats), finished.predict(held_out.images))
    assert finished.predict(held_out.images[:0]).shape == (0, 10)
    for view in (np.broadcast_to(held_out.images[:1], (3, 1, 8, 8)), held_out.images[::-1]):
        assert len(finished.predict(view)) == len(view)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8), np.uint8), "shape"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"give images of shape \(B, 1, 8, 8\)"),
        (np.zeros((2, 1, 8, 8), np.int64), "int64"),
        (np.full((2, 1, 8, 8), 255.0), r"runs from 255 to 255; scale floats to \[0, 1\]"),
        (np.full((2, 1, 8, 8), np.nan), "runs from nan"),
    ],
)
def test_images_that_a_run_cannot_take_are_refused(finished, images, message):
    with pytest.raises(InputError, match=message):
        finished.predict(images)


def test_a_run_shows_itself(finished, tmp_path):
    text = finished._repr_html_()
    assert f"{finished.summary['ema_accuracy'] * 100:.1f} %" in text
    assert str(finished.path) in text
    figure = finished.plot()
    left, right = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in (*left.lines, *right.lines)}
    assert set(drawn) == {"global model", "its moving average (EMA)", "right", "used"}
    wanted = [row.ema_accuracy * 100 for row in finished.round_rows]
    assert drawn["its moving average (EMA)"].tolist() == wanted
    for shown in (figure, finished.plot_federation()):
        (tmp_path / "p.png").write_bytes(shown._repr_png_())
        assert np.ptp(np.asarray(Image.open(tmp_path / "p.png").convert("L"))) > 200


def test_a_run_that_goes_on_shows_one_moment(tmp_path, finished, monkeypatch):
    """A round that is over while it is drawn is in neither of its lines."""
    for file in finished.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "summary.json").unlink()
    seen = [finished.round_rows[:2], finished.round_rows]
    monkeypatch.setattr("fedssl.views.run.read_rounds", lambda path: seen.pop(0))
    text = Run(tmp_path)._repr_html_()
    assert "not finished (2 rounds)" in text
    assert "after round 2" in text


def test_phases_are_marked_and_a_method_without_pseudo_labels_has_none(tmp_path):
    phases = [
        {"rounds": 1, "method": {"kind": "supervised"}},
        {"rounds": 1, "method": {"kind": "pi_model"}},
    ]
    scripted = small_experiment().to_dict() | {"phases": phases}
    del scripted["rounds"]
    left, _ = run(scripted, out=tmp_path / "a", progress=False).plot().axes
    assert [text.get_text() for text in left.texts] == ["supervised", "pi_model"]
    assert len(left.patches) == 1
    baseline = small_experiment(rounds=1, method={"kind": "supervised"})
    _, right = run(baseline, out=tmp_path / "b", progress=False).plot().axes
    assert not right.lines


def test_images_that_are_no_longer_the_runs_are_not_shown_as_its_own(finished, tmp_path):
    for file in finished.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    lines = (tmp_path / "partition.csv").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (tmp_path / "partition.csv").write_text("\n".join(lines))
    with pytest.raises(InputError, match="no longer"):
        Run(tmp_path).plot_federation()


def test_held_out_images_that_are_no_longer_the_runs_are_refused_too(finished, tmp_path):
    """Nobody holds them, so the partition says nothing of them."""
    for file in finished.path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = json.loads((tmp_path / "data.json").read_text())
    assert len(Run(tmp_path).federation.held_out) == facts["num_held_out"]
    facts["held_out_sha256"] = "0" * 64
    (tmp_path / "data.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match="no longer"):
        _ = Run(tmp_path).federation


def test_a_notebook_gets_one_output_that_is_updated(tmp_path, monkeypatch):
    calls = []

    class Handle:
        def update(self, bundle, raw):
            calls.append(bundle["text/plain"])

    def display(bundle, raw, display_id):
        calls.append(bundle["text/plain"])
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr("fedssl.app.library.make_display", lambda console: NotebookDisplay())
    found = run(small_experiment(rounds=2, method={"kind": "supervised"}), out=tmp_path / "run")
    assert calls[0].startswith("supervised on digits")
    assert "round 2 of 2" in calls[-1]
    assert f"EMA {found.summary['ema_accuracy'] * 100:.1f} %" in calls[-1]
    assert len(calls) <= 4


def test_the_console_decides_which_display(monkeypatch):
    from rich.console import Console

    assert isinstance(make_display(Console(force_jupyter=True)), NotebookDisplay)
    assert not isinstance(make_display(Console(force_jupyter=False)), NotebookDisplay)


def test_an_unknown_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        Run(tmp_path)
    refused(fedssl("export", tmp_path, "--format", "onnx"), "holds no run")
    refused(fedssl("predict", tmp_path, tmp_path), "holds no run")


@pytest.fixture(scope="module")
def two_lines(tmp_path_factory):
    """Return two seeds of two methods, run from Python."""
    folder = tmp_path_factory.mktemp("lines")
    lines = []
    for kind in ("supervised", "fixmatch"):
        experiment = small_experiment(rounds=2, name=kind, method={"kind": kind})
        lines.append(run(experiment, seeds=2, out=folder, progress=False))
    return folder, lines


def test_several_seeds_are_the_runs_of_the_command_line(two_lines, tmp_path):
    folder, (supervised, _) = two_lines
    assert [found.experiment.seed for found in supervised] == [0, 1]
    assert supervised[1].path == folder / "supervised-seed1"
    alone = run(
        small_experiment(rounds=2, name="supervised", seed=1, method={"kind": "supervised"}),
        out=tmp_path / "alone",
        progress=False,
    )
    assert sha256(alone.path / "ema.safetensors") == sha256(supervised[1].path / "ema.safetensors")


def test_runs_are_compared_in_python_as_on_the_command_line(two_lines, tmp_path):
    folder, lines = two_lines
    found = compare(lines, out=tmp_path / "python")
    assert (
        fedssl(
            "compare", folder / "supervised-seed0", folder, "--out", tmp_path / "cli", "--latex"
        ).exit_code
        == 0
    )
    names = {file.name for file in (tmp_path / "cli").iterdir()}
    assert {file.name for file in (tmp_path / "python").iterdir()} == names
    for name in ("comparison.csv", "comparison_tests.csv", "comparison.tex"):
        assert sha256(tmp_path / "python" / name) == sha256(tmp_path / "cli" / name)
    assert found.lines.label.tolist() == ["supervised", "fixmatch"]
    assert "what the seeds say" in str(found)
    assert repr(found) == "<Comparison of 2 lines, 4 runs, with supervised>"
    assert "<table" in found._repr_html_()
    assert found.plot()._repr_png_().startswith(b"\x89PNG")
    assert r"\toprule" in found.latex()
    turned = compare(folder, baseline="fixmatch")
    assert turned.lines.gain.iloc[1] == -found.lines.gain.iloc[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no runs are named"),
        (7, "compare: is 7; give runs"),
        ("nowhere", "nowhere: no such folder"),
    ],
)
def test_what_is_no_run_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        compare(given)


@pytest.mark.parametrize("name", ["baseline", "bound"])
def test_an_error_names_the_argument_and_no_option_of_the_command_line(name, two_lines):
    with pytest.raises(InputError, match=rf"^{name}: no line"):
        compare(two_lines[0], **{name: "method.kind=nothing"})


def test_a_measure_that_is_none_is_refused(two_lines):
    with pytest.raises(InputError, match="measures: no 'f1'; one of: auroc, "):
        compare(two_lines[0], measures=["f1"])


@pytest.mark.parametrize("seeds", [0, -1, True, 1.5, "3"])
def test_a_number_of_seeds_that_is_none_is_refused(seeds, tmp_path):
    with pytest.raises(InputError, match=r"seeds: is .*; give a number of seeds"):
        run(small_experiment(rounds=1), seeds=seeds, out=tmp_path / "x")
    assert not (tmp_path / "x").exists()
