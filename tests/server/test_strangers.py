"""Records and requests of strangers: the modules that they name are imported only if this is allowed."""

import contextlib
import importlib
import json
import os
import pickle
import shutil
import sys
import uuid

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from fedssl import Experiment, InputError, Run, run
from fedssl.app.deploy.services import client_service
from fedssl.clients.client_app import app
from fedssl.core.registry import Unimported
from fedssl.core.toml import settings_as_text
from fedssl.core.trust import NOBODY, Trust, trust_only, trusting
from fedssl.exchange import protocol
from fedssl.experiment.families import PLUGIN_SECTIONS
from fedssl.record.resume import refuse_changes, settings_that_change_results
from fedssl.views.comparison.gather import gather
from tests.helpers import fedssl, small_experiment
from tests.views.comparison.records import record

EVIL = """
from pathlib import Path
Path({mark!r}).write_text("it ran")
from fedssl.methods.fixmatch import FixMatch as Known
class Mine(Known):
    pass
"""


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Lay a module with a side effect beside us; return its name and the file that it writes."""
    package, mark = f"stranger_{uuid.uuid4().hex}", tmp_path / "mark"
    (tmp_path / package).mkdir()
    (tmp_path / package / "mine.py").write_text(EVIL.format(mark=str(mark)))
    (tmp_path / package / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    importlib.invalidate_caches()
    yield f"{package}.mine", mark
    for name in [name for name in sys.modules if name.startswith(package)]:
        del sys.modules[name]


def named(path, kind, old='kind = "fixmatch"'):
    """Write that a recorded run had another method."""
    file = path / "experiment.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, f'kind = "{kind}"'))
    return path


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Return the folder of a run with all its files."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run(small_experiment(rounds=1, record={"report": False}), out=path, progress=False)
    return path


@pytest.mark.parametrize(
    "command",
    [
        ("report", "RUN"),
        ("compare", "RUN"),
        ("export", "RUN", "--format", "safetensors"),
        ("predict", "RUN", "."),
    ],
    ids=lambda command: command[0],
)
def test_a_command_on_a_strangers_record_imports_nothing(stranger, tmp_path, whole_run, command):
    kind, mark = stranger
    stolen = named(shutil.copytree(whole_run, tmp_path / "run"), kind)
    words = [str(stolen) if word == "RUN" else word for word in command]
    done = fedssl(*words)
    assert not mark.exists()
    assert "Traceback" not in done.output
    if command[0] != "compare":
        assert "--plugins imports it" in done.output.replace("\n", " ")
    assert done.exit_code == (0 if command[0] in ("report", "compare") else 2), done.output


def overwrite(name, text):
    def damage(run):
        (run / name).write_text(text)

    return damage


def pipe(name):
    def damage(run):
        (run / name).unlink(missing_ok=True)
        os.mkfifo(run / name)

    return damage


def more_weights(run):
    arrays = load_file(run / "ema.safetensors")
    save_file(arrays | {"evil\x1b[2J": np.zeros(2, np.float32)}, run / "ema.safetensors")


def with_key(name, key, value):
    def damage(run):
        table = json.loads((run / name).read_text())
        (run / name).write_text(json.dumps(table | {key: value}))

    return damage


DAMAGES = {
    "pipe": pipe("clients.csv"),
    "pipe of weights": pipe("ema.safetensors"),
    "failed without reason": overwrite("events.jsonl", '{"event":"failed"}\n'),
    "a number as event": overwrite("events.jsonl", "1\n"),
    "deep": overwrite("data.json", "[" * 100_000),
    "no classes": with_key("data.json", "class_names", None),
    "few classes": with_key("data.json", "class_names", []),
    "odd shape": with_key("data.json", "shape", [0, "x"]),
    "odd evaluation": overwrite("evaluation.json", '{"round": 1, "models": {"a": 3}}'),
    "a field of megabytes": overwrite("rounds.csv", "round,method\n1," + "x" * 2**20 + "\n"),
    "more weights": more_weights,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_whatever_a_record_holds_is_read_or_is_one_error(tmp_path, whole_run, damage):
    path = shutil.copytree(whole_run, tmp_path / "run")
    other = shutil.copytree(whole_run, tmp_path / "other")
    damage(path)
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    for words in (
        ("report", path),
        ("compare", path, other),
        ("export", path, "--format", "safetensors", "--out", tmp_path / "w.safetensors"),
        ("predict", path, tmp_path / "x.png"),
    ):
        done = fedssl(*words)
        assert done.exit_code in (0, 2), (words[0], done.output, done.exception)
        assert "Traceback" not in done.output
        assert done.exit_code == 0 or done.output.count("error:") == 1, done.output
        assert "\x1b[2J" not in done.output


def test_plugins_are_imported_on_request(stranger, tmp_path):
    kind, mark = stranger
    path = named(record(tmp_path / "run", [0.5, 0.6]), kind)
    assert Run(path).experiment.method.kind == kind
    assert not mark.exists()
    assert type(Run(path, plugins=True).experiment.method).__name__ == "Mine"
    assert mark.exists()
    assert type(Run(path).experiment.method).__name__ == "Mine"  # imported already: nothing runs


def test_a_record_keeps_settings_and_says_what_needs_code(stranger, tmp_path):
    kind, mark = stranger
    experiment = Run(named(record(tmp_path / "run", [0.5]), kind)).experiment
    assert experiment.method.threshold == 0.3
    for made in (experiment.plans[0], experiment.with_settings("seed=3")):
        assert isinstance(made.method, Unimported)
    assert pickle.loads(pickle.dumps(experiment)).method.kind == kind
    assert experiment.to_dict()["method"]["kind"] == kind
    with pytest.raises(InputError, match=rf"method {kind} .* not imported; --plugins imports it"):
        experiment.method.classifier(None)
    with pytest.raises(InputError, match="--plugins"):
        experiment.method.slots()
    with pytest.raises(InputError):
        experiment.with_settings("method.kind=nowhere.at_all").method.views()
    assert not mark.exists()


def test_a_phase_of_a_record_imports_nothing_either(stranger, tmp_path):
    kind, mark = stranger
    path = record(tmp_path / "run", [0.5])
    text = (path / "experiment.toml").read_text().replace("rounds = 1\n", "", 1)
    (path / "experiment.toml").write_text(
        f'{text}\n[[phases]]\nrounds = 1\n[phases.method]\nkind = "{kind}"\n'
    )
    assert Run(path).experiment.plans[0].method.kind == kind
    assert not mark.exists()


def test_looking_for_a_run_to_resume_or_to_compare_imports_nothing(stranger, tmp_path):
    kind, mark = stranger
    path = named(record(tmp_path / "run", [0.5]), kind)
    with pytest.raises(InputError, match="other settings"):
        refuse_changes(path, small_experiment(rounds=1))
    assert len(gather([path]).lines) == 1
    assert not mark.exists()


@pytest.mark.parametrize("section", sorted(set(PLUGIN_SECTIONS)))
def test_every_family_keeps_the_table_of_a_stranger(stranger, section):
    family, (kind, mark) = PLUGIN_SECTIONS[section], stranger
    with trusting(NOBODY):
        plugin = family.build({family.key: kind, "own": [1, 2], "name": "x"})
    assert plugin.to_dict(family.key) == {family.key: kind, "own": [1, 2], "name": "x"}
    with trusting(Trust(())), pytest.raises(InputError, match="does not allow"):
        family.build(kind)
    assert not mark.exists()


def test_settings_of_an_unimported_source_compare_as_they_did(tmp_path):
    """`places` and the like are constants of the family, and what none has set is its default."""
    experiment = small_experiment()
    table = experiment.to_dict()
    table["data"] = {**table["data"], "source": "nowhere.at_all"}
    with trusting(NOBODY):
        found = Experiment.from_dict(table)
    assert found.evaluated_on == experiment.evaluated_on
    assert (
        settings_as_text(settings_that_change_results(found))["data.source"] == '"nowhere.at_all"'
    )


def ask(experiment_text, kind="train", **config):
    protocol.claim_identity(1)
    content = protocol.request_config(experiment_text, 0, 1, 1)
    content[protocol.ROUND] = 1
    message = protocol.new_message(
        kind, protocol.node_of(0), RecordDict({protocol.CONFIG: content})
    )
    context = Context(
        run_id=1,
        node_id=2,
        node_config={"partition-id": 0, **config},
        state=RecordDict(),
        run_config={},
    )
    return app(message, context)


def request_for(kind):
    """Return a request's experiment as a server may write it, without importing what it names."""
    table = json.loads(small_experiment(method={"kind": "supervised"}).to_client_json())
    return json.dumps({**table, "method": {"kind": kind}})


@pytest.mark.parametrize("kind", ["train", "evaluate", "query"])
def test_a_client_imports_nothing_that_it_does_not_allow(stranger, kind):
    module, mark = stranger
    for allowed in ({}, {"allowed-plugins": "other, stranger"}, {"allowed-plugins": ""}):
        reply = ask(request_for(module), kind, **allowed)
        assert reply.has_error()
        assert "does not allow" in reply.error.reason
    assert not mark.exists()


def test_a_client_answers_for_what_it_allows_and_for_nothing_else_afterwards(stranger):
    """What is parsed is cached; the cache must not answer for another trust."""
    module, mark = stranger
    text, package = request_for(module), module.partition(".")[0]
    assert ask(text, "query", **{"allowed-plugins": f"other, {package}"}).has_content()
    assert mark.exists()
    assert "does not allow" in ask(text, "query").error.reason
    assert "does not allow" in ask(text, "train").error.reason


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.sampled_from(["os", "this", "antigravity", "fedssl", "x", "__main__", ""]),
        min_size=2,
        max_size=4,
    ).map(".".join)
)
def test_a_client_imports_nothing_for_any_name(kind):
    known = set(sys.modules)
    with trusting(trust_only("mylab")), contextlib.suppress(InputError):
        PLUGIN_SECTIONS["method"].build(kind)
        raise AssertionError(kind)
    assert set(sys.modules) == known


def test_a_list_of_modules_allows_them_and_what_is_below():
    trust = trust_only(" mylab , other.module ")
    assert trust.allows("mylab")
    assert trust.allows("mylab.deep.er")
    assert trust.allows("other.module.x")
    assert not trust.allows("mylabs.x")
    assert not trust.allows("other")
    assert trust_only("*").allows("anything")
    assert not trust_only("").allows("anything")


def test_a_service_passes_the_list_to_its_node(tmp_path):
    service = client_service(
        "python",
        0,
        "h:1",
        tmp_path / "ca",
        tmp_path / "key",
        9,
        tmp_path,
        None,
        {"allowed-plugins": "mylab, other.module"},
    )
    config = service.command[service.command.index("--node-config") + 1]
    assert config == f'partition-id=0 folder="{tmp_path}" allowed-plugins="mylab, other.module"'
