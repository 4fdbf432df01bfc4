"""A section that gets another kind keeps what both kinds have, and says what it leaves out."""

import pytest

from fedssl.experiment.experiment import Experiment
from tests.helpers import fedssl, small_experiment, small_toml


def test_another_kind_keeps_every_setting_that_it_has_too(tmp_path):
    """A newcomer's sweep over methods ran FixMatch with 2 unlabeled images for each labeled one, and FlexMatch with 7."""
    method = {"kind": "fixmatch", "threshold": 0.8, "unlabeled_ratio": 2}
    file = small_toml(tmp_path / "e.toml", method=method)
    other = Experiment.load(file, ["method.kind=flexmatch"])
    assert (other.method.threshold, other.method.unlabeled_ratio) == (0.8, 2)
    assert other.dropped == ()
    fewer = Experiment.load(file, ["method.kind=supervised"])
    assert {
        "method.threshold = 0.8 (supervised has no such setting)",
        "method.unlabeled_ratio = 2 (supervised has no such setting)",
    } <= set(fewer.dropped)
    given = Experiment.load(file, ["method.kind=flexmatch", "method.threshold=0.9"])
    assert given.method.threshold == 0.9


def test_defaults_of_one_kind_do_not_become_settings_of_another(tmp_path):
    """From Python too, where an experiment has all settings: MixMatch's weight is 75, and FixMatch's is 1."""
    method = {"kind": "fixmatch", "unlabeled_ratio": 2}
    fixmatch = Experiment.load(small_toml(tmp_path / "e.toml", method=method))
    mixmatch = fixmatch.with_settings("method.kind=mixmatch")
    assert (mixmatch.method.unlabeled_weight, mixmatch.method.unlabeled_ratio) == (75.0, 2)
    assert fixmatch.with_settings("seed=3") == Experiment.load(tmp_path / "e.toml", ["seed=3"])


def test_another_folder_of_the_same_source_keeps_size_and_channels(tmp_path):
    data = {"source": "folder:one", "size": [20, 20], "channels": 1}
    file = small_toml(tmp_path / "e.toml", data=data)
    moved = Experiment.load(file, ["data.source=folder:two"])
    assert moved.data.kind == "folder:two"
    assert moved.data.size == (20, 20)
    assert moved.dropped == ()


def test_a_phase_with_another_kind_begins_its_section_anew():
    """The table below a phase has all defaults written out, which are not the user's wishes."""
    experiment = small_experiment(
        rounds=None,
        method={"kind": "fixmatch", "threshold": 0.5},
        phases=[{"rounds": 1}, {"rounds": 1, "method": {"kind": "flexmatch"}}],
    )
    assert experiment.plans[1].method.threshold == 0.95


@pytest.mark.parametrize("arguments", [("validate",), ("sweep", "--dry-run"), ("run", "--plain")])
def test_what_is_left_out_is_said(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    file = small_toml(tmp_path / "e.toml", rounds=1, method={"kind": "fixmatch", "threshold": 0.8})
    command, *options = arguments
    result = fedssl(command, file, *options, "--set", "method.kind=supervised")
    assert result.exit_code == 0, result.output
    said = "left out: method.threshold = 0.8 (supervised has no such setting)"
    assert result.output.count(said) == 1
    if command == "run":
        (page,) = tmp_path.glob("runs/*/*/report.html")
        assert "method.threshold = 0.8 (supervised has no such setting)" in page.read_text()
