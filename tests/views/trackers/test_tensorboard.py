"""Event files for TensorBoard, read back with TensorBoard."""

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import small_experiment
from tests.resuming import Copier, Stop, Stopper
from tests.views.trackers import tracked


def events(folder):
    return EventAccumulator(str(folder)).Reload()


def rounds(folder):
    """Every value of every scalar by step; one that is there twice is an error."""
    read, found = events(folder), {}
    for name in read.Tags()["scalars"]:
        history = read.Scalars(name)
        found[name] = {event.step: event.value for event in history}
        assert len(found[name]) == len(history), name
    return {name: steps for name, steps in found.items() if "/" not in name}


def single(columns):
    """Event files hold single precision."""
    return {name: pytest.approx(steps, rel=1e-6) for name, steps in columns.items()}


def text(folder, name):
    (event,) = events(folder).Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_a_run_is_in_the_event_files_as_in_its_record(tmp_path):
    tracked.run(small_experiment(rounds=3, tracker="tensorboard"), tmp_path / "run")
    folder = tmp_path / "run" / "tensorboard"
    assert rounds(folder) == single(tracked.recorded(tmp_path / "run"))
    assert "| method.threshold | 0.3 |" in text(folder, "settings")
    assert f"| run_directory | {tmp_path / 'run'} |" in text(folder, "settings")
    assert text(folder, "status") == "finished"
    read = events(folder)
    assert read.Scalars("summary/ema_accuracy")
    assert "_hparams_/session_start_info" in read.summary_metadata


@pytest.mark.parametrize(
    ("error", "status"), [(Stop(), "failed"), (KeyboardInterrupt(), "interrupted")]
)
def test_one_that_stops_is_marked_and_goes_on_with_every_round_once(tmp_path, error, status):
    experiment = small_experiment(rounds=5, tracker="tensorboard")
    folder = tmp_path / "run" / "tensorboard"
    with pytest.raises(type(error)):
        tracked.run(experiment, tmp_path / "run", Stopper(3, error))
    assert text(folder, "status") == status
    tracked.go_on(experiment, tmp_path / "run")
    assert rounds(folder) == single(tracked.recorded(tmp_path / "run"))


def test_killed_after_any_round_it_has_every_round_once(tmp_path):
    experiment = small_experiment(rounds=4, tracker="tensorboard", server={"checkpoint_every": 2})
    tracked.run(experiment, tmp_path / "run", Copier(tmp_path / "run", tmp_path / "killed"))
    for after in range(1, 5):
        path = tmp_path / "killed" / str(after)
        assert rounds(path / "tensorboard")["loss"].keys() == set(range(1, after + 1))
        tracked.go_on(experiment, path)
        assert rounds(path / "tensorboard") == single(tracked.recorded(path))


def test_a_folder_holds_a_folder_for_every_run(tmp_path):
    settings = {"kind": "tensorboard", "folder": str(tmp_path / "all")}
    for seed in (0, 1):
        tracked.run(small_experiment(seed=seed, tracker=settings), tmp_path / f"seed{seed}")
    found = {str(path.relative_to(tmp_path / "all")) for path in (tmp_path / "all").glob("*/*")}
    assert found == {"small/seed0", "small/seed1"}
    assert rounds(tmp_path / "all" / "small" / "seed1")["loss"].keys() == {1, 2}
