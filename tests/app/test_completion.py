"""What a shell completes: options of commands, settings of the experiment file, and values."""

import pytest
from click.shell_completion import ShellComplete
from typer.main import get_command

from fedssl.app.commands.completion import complete_explained, complete_setting
from fedssl.app.commands.places import find_place
from fedssl.cli import app


@pytest.mark.parametrize("command", ["run", "sweep", "validate", "show", "baseline", "deploy run"])
def test_every_set_of_a_command_completes_settings(command):
    shell = ShellComplete(get_command(app), {}, "fedssl", "_FEDSSL_COMPLETE")
    found = shell.get_completions([*command.split(), "e.toml", "--set"], "method.thresh")
    assert found[0].value == "method.threshold="


def test_explain_completes_places():
    shell = ShellComplete(get_command(app), {}, "fedssl", "_FEDSSL_COMPLETE")
    found = {one.value for one in shell.get_completions(["explain"], "train.l")}
    assert {"train.lr", "train.local_steps"} <= found


def test_new_completes_methods():
    shell = ShellComplete(get_command(app), {}, "fedssl", "_FEDSSL_COMPLETE")
    found = [one.value for one in shell.get_completions(["new", "--method"], "fix")]
    assert found == ["fixmatch"]


def test_sections_end_with_a_dot_and_settings_with_an_equals_sign():
    found = complete_setting("")
    assert {"method.", "federation.", "rounds=", "seed="} <= set(found)
    assert all(one.endswith((".", "=")) for one in found)
    assert "phases." not in found  # their settings begin with a number


def test_a_kind_has_the_settings_of_all_kinds():
    found = complete_setting("method.")
    assert {"method.kind=", "method.threshold=", "method.unlabeled_ratio="} <= set(found)
    assert "method.name=" not in found


def test_the_only_section_goes_on_with_its_settings():
    assert complete_setting("federation.part") == complete_setting("federation.partition.")


def test_values_of_kinds_choices_and_switches():
    assert complete_setting("method.kind=fi") == ["method.kind=fine_tune", "method.kind=fixmatch"]
    assert complete_setting("method=fix") == ["method=fixmatch"]
    assert "data.source=folder:" in complete_setting("data.source=")
    assert complete_setting("federation.private=") == [
        f"federation.private={one}" for one in ("false", "true")
    ]
    assert complete_setting("model.norm=g") == ["model.norm=group"]


def test_the_only_setting_shows_its_default():
    assert complete_setting("train.lr_") == []
    assert complete_setting("train.lr")[0] == "train.lr="
    assert len(complete_setting("train.lr")) == 2


@pytest.mark.parametrize("nothing", ["nowhere.", "rounds.", "method.kind.x", "a=b", "..", "x.y=z"])
def test_what_is_not_there_completes_to_nothing(nothing):
    assert complete_setting(nothing) == []


def test_explain_completes_kinds_and_what_they_have():
    assert complete_explained("method.fix") == complete_explained("method.fixmatch.")
    assert "method.fixmatch.threshold" in complete_explained("method.fixmatch.")
    assert {"method.fixmatch.", "method.first_share"} <= set(complete_explained("method.fi"))
    assert complete_explained("data.folder.name") == []


def test_every_completed_place_can_be_explained():
    waiting, found = [""], []
    while waiting:
        place = waiting.pop()
        found.append(place)
        below = complete_explained(place) if place.endswith(".") or not place else []
        waiting += [one for one in below if one not in found]
    assert len(found) > 1000
    for place in found:
        find_place(place)
