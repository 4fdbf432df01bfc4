"""A section that gets another kind keeps what both kinds have, and says what it keeps and leaves out."""

import pytest

from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.methods.base import METHODS
from tests.helpers import fedssl, small_experiment, small_toml

FILE = """
name = "x"
[data]
source = "digits"
[federation]
clients = 4
sample = 2
[method]
kind = "fixmatch"
threshold = 0.8
unlabeled_ratio = 2
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "e.toml"
    path.write_text(FILE)
    return path


def test_another_kind_keeps_every_setting_that_it_has_too(file):
    """A newcomer's sweep over methods ran FixMatch with 2 unlabeled images for each labeled one, and FlexMatch with 7."""
    other = Experiment.load(file, ["method.kind=flexmatch"])
    assert (other.method.threshold, other.method.unlabeled_ratio) == (0.8, 2)
    assert other.changed_kinds == (
        "kept: method.threshold = 0.8 (the default of flexmatch is 0.95)",
        "kept: method.unlabeled_ratio = 2 (the default of flexmatch is 7)",
    )
    fewer = Experiment.load(file, ["method.kind=supervised"])
    assert fewer.changed_kinds == (
        "left out: method.threshold = 0.8 (supervised has no such setting)",
        "left out: method.unlabeled_ratio = 2 (supervised has no such setting)",
    )
    given = Experiment.load(file, ["method.kind=flexmatch", "method.threshold=0.9"])
    assert given.method.threshold == 0.9
    assert len(given.changed_kinds) == 1


@pytest.mark.parametrize("kind", METHODS.names())
def test_every_method_keeps_what_it_shares_and_the_rest_is_said(file, kind):
    """A setting is kept, or said to be left out: none changes or vanishes in silence."""
    experiment = Experiment.load(file, [f"method.kind={kind}"])
    for name, value in (("threshold", 0.8), ("unlabeled_ratio", 2)):
        left_out = f"left out: method.{name} = {value}" in " ".join(experiment.changed_kinds)
        assert left_out != (getattr(experiment.method, name, None) == value)


def test_python_and_the_command_line_agree(file):
    """Also on settings that the file gives at their defaults, and after other settings were laid over the file's."""
    file.write_text(FILE.replace("0.8", "0.95") + "unlabeled_weight = 1.0\n")
    for kind in ("mixmatch", "fedu", "supervised", "flexmatch"):
        loaded = Experiment.load(file, [f"method.kind={kind}", "seed=3"])
        in_steps = (
            Experiment.load(file).with_settings("seed=3").with_settings(f"method.kind={kind}")
        )
        assert loaded == in_steps
        assert sorted(loaded.changed_kinds) == sorted(in_steps.changed_kinds)
    assert loaded == Experiment.from_dict(loaded.to_dict())


def test_defaults_of_one_kind_do_not_become_settings_of_another(file):
    """MixMatch's weight is 75, FixMatch's is 1, and the file says neither."""
    mixmatch = Experiment.load(file).with_settings("method.kind=mixmatch")
    assert (mixmatch.method.unlabeled_weight, mixmatch.method.unlabeled_ratio) == (75.0, 2)


def test_a_setting_of_the_same_name_and_another_type_is_no_setting_of_both(file):
    """FedMatch's labels are where the labels are; those of Meta Pseudo Labels are hard or sampled."""
    fedmatch = Experiment.load(file, ["method.kind=fedmatch", "method.labels=server"])
    other = fedmatch.with_settings("method.kind=meta_pseudo_labels")
    assert any(line.startswith("left out: method.labels = server") for line in other.changed_kinds)


def test_the_kind_put_back_to_the_default_keeps_its_settings(file):
    file.write_text(FILE + '[model]\nkind = "cnn"\nwidths = [16, 32]\n')
    experiment = Experiment.load(file, ["model.kind=unset"])
    assert experiment.model.widths == (16, 32)
    assert experiment.changed_kinds == ()


def test_a_mistake_in_the_file_is_told_whatever_the_kind(file):
    file.write_text(FILE.replace("threshold", "treshold"))
    with pytest.raises(InputError, match=r"method.treshold: unknown key"):
        Experiment.load(file, ["method.kind=flexmatch"])


def test_a_phase_is_named(file):
    phases = '[[phases]]\nrounds = 1\n[phases.method]\nkind = "fixmatch"\nthreshold = 0.7\n'
    file.write_text(FILE + phases)
    changed = Experiment.load(file, ["phases.0.method.kind=supervised"]).changed_kinds
    assert changed == (
        "phase 0: left out: method.threshold = 0.7 (supervised has no such setting)",
    )


def test_another_folder_of_the_same_source_keeps_size_and_channels(tmp_path):
    data = {"source": "folder:one", "size": [20, 20], "channels": 1}
    file = small_toml(tmp_path / "e.toml", data=data)
    moved = Experiment.load(file, ["data.source=folder:two"])
    assert moved.data.kind == "folder:two"
    assert moved.data.size == (20, 20)
    assert moved.changed_kinds == ()


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
