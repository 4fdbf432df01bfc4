"""A preset is its settings: it lies below a file's own settings, and `--set preset=NAME` lies over them."""

from pathlib import Path

import pytest

from fedssl.app.commands.completion import _values
from fedssl.app.sweep.applicable import leave_out_unknown
from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import METHODS, family_at
from fedssl.experiment.form import check_form
from fedssl.experiment.preset import FOLDER, preset_names
from tests.helpers import SMALL, fedssl, finished, refused, small_experiment, small_toml

NAME = "freematch_by_labels"
FREEMATCH = METHODS.get("freematch")


def written(path, text):
    path.write_text(f'rounds = 2\n{text}\n[data]\nsource = "digits"\n', encoding="utf-8")
    return path


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_an_experiment_and_says_what_it_is(name):
    table = {key: value for key, value in SMALL.items() if key != "method"}
    assert Experiment.from_dict({**table, "preset": name}) != Experiment.from_dict(table)
    assert (FOLDER / f"{name}.toml").read_text(encoding="utf-8").startswith("# ")


def test_a_files_own_settings_lie_over_its_preset(tmp_path):
    file = written(tmp_path / "e.toml", f'preset = "{NAME}"\nmethod.fairness_weight = 0.9')
    found = Experiment.load(file)
    assert (found.method.kind, found.method.labeler) == ("freematch", "local_if_labeled")
    assert found.method.fairness_weight == 0.9
    assert found.strategy.weight == "labeled_or_all"


def test_a_preset_that_is_set_lies_over_the_file_and_below_the_other_settings(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    found = Experiment.load(file, ["method.labeler=local", f"preset={NAME}"])
    assert (found.method.kind, found.method.labeler) == ("freematch", "local")
    assert found.method.unlabeled_ratio == 2, "the file's setting that both kinds have is kept"
    assert small_experiment().with_settings(f"preset={NAME}").method.kind == "freematch"


def test_a_record_holds_the_settings_and_not_the_name(tmp_path):
    found = Experiment.load(small_toml(tmp_path / "e.toml"), [f"preset={NAME}"])
    assert "preset" not in found.to_toml()
    (tmp_path / "kept.toml").write_text(found.to_toml(), encoding="utf-8")
    assert Experiment.load(tmp_path / "kept.toml") == found


def test_another_name_is_one_message(tmp_path):
    file = small_toml(tmp_path / "e.toml")
    refused(fedssl("validate", file, "--set", "preset=freematch"), "no preset 'freematch'", NAME)
    with pytest.raises(InputError, match="there is no preset 3"):
        Experiment.from_dict({**SMALL, "preset": 3})
    with pytest.raises(InputError, match=r"no preset \['a'\]"):
        Experiment.from_dict({**SMALL, "preset": ["a"]})


def test_editors_and_the_shell_know_the_names():
    (names, _) = Experiment.model_json_schema()["properties"]["preset"]["anyOf"]
    assert names.get("enum", [names.get("const")]) == preset_names()
    assert _values("preset") == preset_names()


@pytest.mark.parametrize("setting", [["preset=freematch"], ["preset=3"]])
def test_a_wrong_name_is_told_before_torch_is_imported(setting):
    with pytest.raises(InputError, match="there is no preset"):
        check_form(Path("e.toml"), {}, setting)


def test_a_presets_own_settings_are_in_order_before_torch_is_imported():
    """A setting that FreeMatch has and the default method lacks is right over the preset alone."""
    table = {"data": "digits", "method": {"statistics_scope": "client"}}
    check_form(Path("e.toml"), {**table, "preset": NAME}, [])
    with pytest.raises(InputError, match="statistics_scope"):
        check_form(Path("e.toml"), {**table, "preset": NAME}, ["preset=unset"])


def test_a_command_may_leave_out_the_files_preset(tmp_path):
    file = written(tmp_path / "e.toml", f'preset = "{NAME}"')
    found = Experiment.load(file, ["preset=unset"])
    assert (found.method.kind, found.strategy.weight) == ("fixmatch", "all")


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_runs(tmp_path, name):
    file = small_toml(tmp_path / "e.toml")
    finished(
        fedssl(
            "run", file, "--set", f"preset={name}", "--set", "rounds=1", "--out", tmp_path / "run"
        )
    )


def test_a_setting_that_is_unset_is_that_of_the_file_below_the_preset(tmp_path):
    file = small_toml(tmp_path / "e.toml", method={"kind": "freematch", "fairness_weight": 0.8})
    preset = f"preset={NAME}"
    assert Experiment.load(file, [preset]).method.fairness_weight == 0.8
    found = Experiment.load(file, [preset, "method.fairness_weight=unset", "strategy.weight=unset"])
    assert found.method.fairness_weight == FREEMATCH.model_fields["fairness_weight"].default
    assert found.strategy.weight == "all"


def test_what_another_kind_than_the_presets_keeps_and_lacks_is_said(tmp_path):
    file = written(tmp_path / "e.toml", f'preset = "{NAME}"\nmethod.kind = "fixmatch"')
    assert "kept: method.labeler = local_if_labeled" in str(Experiment.load(file).changed_kinds)
    file = written(tmp_path / "e.toml", f'preset = "{NAME}"\nstrategy.kind = "feddyn"')
    assert "left out: strategy.weight" in str(Experiment.load(file).changed_kinds)
    file = written(tmp_path / "e.toml", 'strategy.kind = "feddyn"')
    found = Experiment.load(file, [f"preset={NAME}"])
    assert found.method.kind == "freematch"
    assert "left out: strategy.weight = labeled_or_all (feddyn" in str(found.changed_kinds)
    found = Experiment.load(file, [f"preset={NAME}", "strategy.kind=fedavg"])
    assert found.strategy.weight == "labeled_or_all"


def test_a_sweep_knows_the_kinds_of_presets():
    tables = [{"data": "digits", "preset": NAME}, {"data": "digits"}]
    setting = (("method.statistics_scope", "client"),)
    kept, said = leave_out_unknown(tables, [setting, setting], family_at)
    assert kept == [setting, ()]
    assert said == ["left out: method.statistics_scope (fixmatch has no such setting)"]
    points = [(("preset", name), *setting) for name in (NAME, "unset")]
    kept, _ = leave_out_unknown([{"data": "digits"}] * 2, points, family_at)
    assert kept == [points[0], points[1][:1]]
