"""`fedssl explain` tells what stands at every place of the experiment file, and names what is near a place that is not there."""

import re
import sys
import uuid

import pytest

from fedssl.app.commands.listing import FAMILIES
from fedssl.core.findings import section_of
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import PLUGIN_SECTIONS, family_at
from fedssl.experiment.phases import Phase
from tests.helpers import fedssl, finished, refused


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("", ("rounds", "federation", "All settings that define a run")),
        ("train", ("batch_size", "B, labeled examples per step", "32")),
        ("train.lr", ("learning rate; > 0", "0.05")),
        ("method", ("fixmatch", "Let the confident prediction", "explain method.KIND")),
        ("method.flexmatch", ("status_scope", "one of: client, server")),
        ("federation.partition.dirichlet.alpha", ("concentration", "0.5")),
        ("phases", ("rounds", "required")),
        ("privacy.clipping_norm", ("required", "largest L2 norm")),
        ("augment.mine.randaugment", ("num_ops", "≤ 8")),
        ("server.stop_when", ("no_gain", "minutes", "The table server.stop_when")),
        ("data.source", ("explain data.KIND", "digits")),
        ("method.tests.plugins.certain", ("unlabeled_weight",)),
        ("model", ("model.kind", "every model.KIND has", "weights", "new_head")),
        ("model.weights", ("weights with which the first phase begins", "unset")),
        ("method.unlabeled_ratio", ("comatch, distill, fixmatch", "7", "noisy_student", "5")),
        ("train.", ("batch_size",)),
    ],
)
def test_a_place_is_explained(place, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = fedssl("explain", *([place] if place else []))
    assert result.exit_code == 0, result.output
    for word in words:
        assert word in result.output


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fixmatch", ("method.fixmatch and server.method.fixmatch", "Let the confident prediction", "0.95")),
        ("first_share", ("method.fedema.first_share", "tau, mu of a client's first mixture")),
        ("threshold", ("method.threshold", "comatch, fixmatch", "augment.weak.threshold")),
        ("lr", ("train.lr", "server.train.lr", "learning rate; > 0", "strategy.lr", "proxyfl")),
        ("partition", ("federation.partition.kind", "dirichlet (default)")),
        ("dirichlet.alpha", ("federation.partition.dirichlet.alpha", "concentration")),
        ("kind", ("strategy.kind", "fedavg", "engine.kind")),
    ],
)  # fmt: skip
def test_a_name_alone_is_found_wherever_it_is(name, words, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    result = fedssl("explain", name)
    finished(result)
    for word in words:
        assert word in result.output


def test_a_section_is_shown_as_a_table_and_never_as_python(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    rows = [line.split("│") for line in fedssl("explain").output.splitlines()]
    defaults = {row[0].strip(): row[1].strip() for row in rows if len(row) > 2}
    assert defaults["engine"] == defaults["server"] == "table"
    assert defaults["strategy"] == "fedavg"


@pytest.mark.parametrize("command", ["list methods", "list strategies", "explain method", "explain threshold", "explain engine"])  # fmt: skip
def test_a_narrow_terminal_cuts_no_name(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    result = fedssl(*command.split())
    finished(result)
    assert "…" not in result.output


@pytest.mark.parametrize("columns", ["40", "80"])
@pytest.mark.parametrize("place", ["threshold", "train", "server", "lr"])
def test_no_terminal_breaks_a_word(place, columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    words = set(re.findall(r"[\w.]+", fedssl("explain", place).output))
    monkeypatch.setenv("COLUMNS", columns)
    result = fedssl("explain", place)
    finished(result)
    assert set(re.findall(r"[\w.]+", result.output)) <= words


def test_another_word_for_a_setting_is_understood():
    refused(fedssl("explain", "learning_rate"), "did you mean train.lr")


def test_every_section_with_kinds_is_explained():
    for section, family in PLUGIN_SECTIONS.items():
        result = fedssl("explain", section)
        assert result.exit_code == 0, (section, result.output)
        assert family.names()[0] in result.output


@pytest.mark.parametrize("family", FAMILIES)
def test_a_list_names_the_command_that_explains_its_settings(family):
    said = fedssl("list", family).output.splitlines()[-1]
    place = said.removeprefix("fedssl explain ").split(".KIND")[0]
    assert family_at(place) is not None, said


def test_a_place_that_is_not_there():
    refused(fedssl("explain", "tra"), "there is no 'tra'", "did you mean 'train'?")
    refused(fedssl("explain", "method.fixmach"), "did you mean 'method.fixmatch'?")
    refused(
        fedssl("explain", "method.fixmatch.treshold"), "did you mean 'method.fixmatch.threshold'?"
    )
    refused(fedssl("explain", "threshhold"), "there is no 'threshhold'; did you mean 'threshold'?")
    refused(fedssl("explain", "method.treshold"), "did you mean 'method.threshold'?")
    refused(fedssl("explain", "xyzzy"), "there is no 'xyzzy'; one of: augment, data")
    refused(fedssl("explain", "method.xyzzy"), "there is no method 'xyzzy'; one of: byol")
    refused(fedssl("explain", "alpha.x"), "'alpha' stands at federation.partition.alpha and")
    refused(fedssl("explain", "train.lr.x"), "there is no 'train.lr.x'")
    refused(fedssl("explain", "train..lr"), "there is no 'train.'")
    refused(
        fedssl("explain", "method.tests.plugins.certan"), "did you mean 'tests.plugins.certain'?"
    )


def test_every_section_and_kind_tells_what_each_setting_means():
    """A setting without a description would be explained by an empty cell."""
    silent = []
    models = {"": Experiment, "phases": Phase}
    for name, field in Experiment.model_fields.items():
        if (section := section_of(field.annotation)) is not None:
            models[name] = section
    for section, family in PLUGIN_SECTIONS.items():
        models |= {f"{section}.{kind}": family.get(kind) for kind in family.names()}
    for place, model in models.items():
        silent += [f"{place}.{name}" for name, f in model.model_fields.items() if not f.description]
    assert silent == []


ADAPT = """
from pydantic import Field
from fedssl.methods.fixmatch import FixMatch
class Adapt(FixMatch):
    floor_of_mine: float = Field(0.2, ge=0, description="least threshold")
"""


@pytest.fixture
def adapt(tmp_path, monkeypatch):
    """Write a method of one's own into the current folder, and return its file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("COLUMNS", "200")
    file = tmp_path / f"adapt_{uuid.uuid4().hex}.py"
    file.write_text(ADAPT)
    return file.name


def test_a_setting_of_ones_own_file_is_found_at_its_place(adapt):
    for kind in (adapt, f"{adapt}:Adapt"):
        result = fedssl("explain", f"method.{kind}.floor_of_mine")
        finished(result)
        assert "least threshold; ≥ 0" in result.output
        assert "0.2" in result.output
    missing = fedssl("explain", f"method.{adapt}.floor_of_min")
    refused(
        missing,
        f"there is no 'method.{adapt}.floor_of_min'",
        f"did you mean 'method.{adapt}.floor_of_mine'?",
    )
    finished(fedssl("explain", f"method.{adapt}"))


def test_a_setting_of_a_module_of_ones_own_is_found_at_its_place(monkeypatch):
    result = fedssl("explain", "method.tests.plugins.raising.sizes")
    finished(result)
    assert "shard sizes of the clients that raise" in " ".join(result.output.split())


def test_a_name_that_only_a_file_here_has_is_told_with_the_file(adapt):
    result = fedssl("explain", "floor_of_mine")
    refused(result, f"{adapt} has that name", f"such as method.{adapt}.floor_of_mine")
