"""Mistakes in the form of an experiment file are told before torch is imported, in the model's own words."""

import json
import subprocess
import sys

import pytest

from fedssl.core.errors import InputError
from fedssl.core.toml import read_toml
from fedssl.experiment import outline as outlines
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.form import check_form
from fedssl.experiment.outline import FILE, Outline
from tests.docs.pages import ROOT
from tests.helpers import fedssl

TABLE = json.loads(FILE.read_text(encoding="utf-8"))

FILES = sorted(
    file
    for folder in ("experiments", "examples")
    for file in (ROOT / folder).rglob("*.toml")
    if file.name != "pyproject.toml"
)


def told_by(check, *arguments):
    """Return the message of a check; None if it finds no mistake."""
    try:
        check(*arguments)
    except InputError as error:
        return str(error)
    return None


def told_early(file, settings=()):
    return told_by(check_form, file, read_toml(file), settings)


def told_by_model(file, settings=()):
    return told_by(Experiment.load, file, settings)


def check_words(file, settings):
    """Assert that settings are told in the model's words, or left to the model."""
    said = told_early(file, settings)
    assert said is None or said == told_by_model(file, settings), settings


def written(folder, text='data = "digits"\n'):
    file = folder / "e.toml"
    file.write_text(text, encoding="utf-8")
    return file


MISTAKES = [
    ["method.tresh=3"],
    ["method.threshold=3"],
    ["method.threshold=true"],
    ["method.threshold=high"],
    ["method.labeler=nobody"],
    ["method.kind=fixmatsh"],
    ["method=fixmatsh"],
    ["method.kind=3"],
    ["method=3"],
    ["method.kind=fixmatch:x"],
    ["method.kind=flexmatch", "method.alpha=1"],
    ["method.alpha=1"],
    ["method.kind=supervised", "method.threshold=.5"],
    ["method.lr=1"],
    ["train.lr=-1"],
    ["train.lr=fast"],
    ["train.lrr=1"],
    ["train.lr=-1", "train.lrr=1", "rounds=0", "engine.kind=rai"],
    ["train.learning_rate=1"],
    ["train.optimizer=sdg"],
    ["train.optimizer.kind=sgd", "train.optimizer.beta=1"],
    ["train.schedule=cosin"],
    ["train.precision=fp8"],
    ["train.local_steps=1.5"],
    ["train=3"],
    ["strategy.kind=fedprox", "strategy.mu=-1"],
    ["strategy.kind=fedprox", "strategy.muu=1"],
    ["strategy.kind=fedavg:x"],
    ["model.kind=resnet50"],
    ["model=resnet5"],
    ["strategy=FedMedian"],
    ["strategy.kind=FedProx"],
    ["data=mnsit"],
    ["data.source=tests"],
    ["model.width=0"],
    ["model.kind=resnet9", "model.widht=8"],
    ["data.validation=2"],
    ["data.trian_size=3"],
    ["data.source=unset"],
    ["federation.client=3"],
    ["federation.clients=0"],
    ["federation.alpha=1"],
    ["federation.partition.alpha=0"],
    ["federation.partition.alhpa=1"],
    ["federation.partition=dirichlet:0.3"],
    ["federation.partition.kind=shards", "federation.partition.size=x"],
    ["federation.labels.per_clas=4"],
    ["federation.labels.kind=at_serve"],
    ["federation.label_noise=symmetrik"],
    ["federation.features=rotatoin"],
    ["federation.private=3"],
    ["augment.weak.kind=strong"],
    ["augment.strong.depht=3"],
    ["augment.contrast.crop.scales=1"],
    ["server.kind=fedavg"],
    ["server.emadecay=1"],
    ["server.ema_decay=1"],
    ["server.evaluator=knm"],
    ["server.evaluator.kind=knn", "server.evaluator.k=0"],
    ["server.method.kind=fixmatsh"],
    ["server.method.tresh=1"],
    ["server.stop_when.minute=3"],
    ["server.stop_when.minutes=-3"],
    ["engine.kind=rai"],
    ["engine.workers=many"],
    ["engine.memory_per_worker=much"],
    ["record.report=perhaps"],
    ["record.reports=true"],
    ["privacy.clip=3"],
    ["privacy.clipping_norm=1", "privacy.delta=2"],
    ["privacy.clipping_norm=1", "privacy.secure_aggregation=true"],
    ["privacy.secure_aggregation=true"],
    ["system.deadlin=3"],
    ["system.availability.kind=allways"],
    ["tracker=mlflo"],
    ["tracker.url=x"],
    ["lr=1"],
    ["nothing=1"],
    ["threshold=.5"],
    ["source=x"],
    ["name=a b"],
    ["seed=-1"],
    ["seed=one"],
    ["rounds=0"],
    ["phases=3"],
    ["phases.0.rounds=3"],
    ["train.lr.x=3"],
    ["train=3", "train.lr=3"],
]


@pytest.mark.parametrize("settings", MISTAKES, ids=" ".join)
def test_a_mistake_is_told_as_the_model_tells_it(tmp_path, settings):
    file = written(tmp_path)
    said = told_early(file, settings)
    assert said is not None
    assert said == told_by_model(file, settings)


TEXTS = [
    "rounds = 3\n",
    'data = "digits"\nmethod = 3\n',
    'data = "digits"\nmethod = []\n',
    'data = "digits"\nmethod = "fixmatsh"\n',
    'data = "digits"\n[method]\nthreshold = 2\n',
    'data = "digits"\n[train]\nlr = "0.1"\n',
    'data = "digits"\n[federation.partition]\nkind = "dirichle"\n',
    'data = "digits"\nphases = [{ rounds = 1, train = { clients = 3 } }]\n',
    'data = "digits"\nphases = [{ rounds = 1, method = { tresh = 3 } }]\n',
    'data = "digits"\nphases = [{ rounds = 1 }, { rounds = 1, method = "fixmatsh" }]\n',
    'data = "digits"\nphases = [{ rounds = 1, federation = { clients = 3 } }]\n',
    'data = "digits"\nphases = [{ rounds = 1, engine = { workers = 3 } }]\n',
    'data = "digits"\nphases = [{ rounds = 0 }]\n',
    'data = "digits"\nphases = [{}]\n',
    'data = "digits"\nphases = [{ rounds = 1 }, { rounds = 1, model = { weights = "x" } }]\n',
    'data = "digits"\nmethod = { kind = "flexmatch", threshold = 0.5 }\n'
    'phases = [{ rounds = 1, method = { kind = "supervised", threshold = 0.5 } }]\n',
    'data = "digits"\nmethod = "flexmatch"\nphases = [{ rounds = 1, method = { tresh = 0.5 } }]\n',
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_mistake_of_a_file_is_told_as_the_model_tells_it(tmp_path, text):
    file = written(tmp_path, text)
    said = told_early(file)
    assert said is not None
    assert said == told_by_model(file)


def section_of(name):
    """Return the settings of a class in the outline, and for a section below it."""
    return TABLE["classes"][name]["fields"]


def mistakes_in(place, fields):
    """Yield settings, most of them mistakes: unknown keys, and for each plain setting some values."""
    yield f"{place}{[*fields][-1]}x=1"
    for name, field in fields.items():
        if "section" not in field and "family" not in field:
            yield from (f"{place}{name}={value}" for value in ("-1e9", "1e9", "word"))


SECTIONS = {
    "": "fedssl.experiment.experiment:RunSettings",
    "federation.": "fedssl.experiment.sections:FederationSection",
    "train.": "fedssl.training.optimization:Train",
    "server.": "fedssl.experiment.sections:ServerSection",
    "server.stop_when.": "fedssl.experiment.sections:StopSection",
    "system.": "fedssl.experiment.system.section:System",
    "engine.": "fedssl.experiment.sections:EngineSection",
    "record.": "fedssl.experiment.sections:RecordSection",
    "privacy.": "fedssl.experiment.privacy:Privacy",
}


@pytest.mark.parametrize("place", SECTIONS)
def test_no_setting_of_a_section_is_told_in_other_words(tmp_path, place):
    file = written(tmp_path)
    for setting in mistakes_in(place, section_of(SECTIONS[place])):
        check_words(file, [setting])


PACKAGES = {family["package"]: place for place, family in reversed(TABLE["families"].items())}
"""The first section that names a member of each package."""


@pytest.mark.parametrize("place", PACKAGES.values())
def test_no_setting_of_a_kind_is_told_in_other_words(tmp_path, place):
    """A setting that all kinds have is tried at the first kind only, and so is an unknown key, about which the model thinks long."""
    file = written(tmp_path)
    family = TABLE["families"][place]
    common = section_of(family["base"])
    for number, (kind, name) in enumerate(TABLE["kinds"][family["package"]].items()):
        fields = section_of(name)
        colon = ":x" if "name" in fields else ""
        for setting in mistakes_in(f"{place}.", fields) if fields else ():
            key = setting.partition("=")[0].removeprefix(f"{place}.")
            if number and (key in common or key not in fields):
                continue
            settings = [f"{place}.{family['key']}={kind}{colon}", setting]
            check_words(file, settings)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_file_without_a_mistake_passes(file):
    assert told_early(file) is None


OWN = """
from fedssl.methods.fixmatch import FixMatch
class Sharp(FixMatch):
    temperature: float = 0.5
"""


@pytest.mark.parametrize(
    "settings",
    [
        ["method.kind=sharp.py", "method.temperature=1"],
        ["method.kind=sharp.py:Sharp", "method.whatever=1"],
        ["method.kind=lab.sharp", "method.whatever=1"],
        ["method.kind=fedssl.methods.fixmatch", "method.whatever=1"],
        ["method.kind=nothere.py"],
        ["augment.mine.kind=identity", "augment.mine.whatever=1"],
        ["augment.mine=nothing"],
        ["strategy=flwr:FedMedian"],
        ["data.source=folder:nothere"],
        ["federation.sites.a=folder:nothere"],
        ["federation.sites.a.sources=folder:nothere"],
        ["system.speed=3"],
        ["system.speed.kind=nothing"],
        ["server.train.lrr=3"],
        ["train.rates.x=-1"],
        ["train.milestones=[2]"],
        ["federation.sample=11"],
        ["engine.fuse=1"],
        ["method.pseudo_labels=number:x"],
    ],
    ids=" ".join,
)
def test_what_only_the_model_can_tell_is_left_to_it(tmp_path, settings):
    (tmp_path / "sharp.py").write_text(OWN, encoding="utf-8")
    if settings != ["method.pseudo_labels=number:x"]:
        assert told_early(written(tmp_path), settings) is None


def test_beside_a_kind_of_the_users_own_other_sections_are_checked(tmp_path):
    file = written(tmp_path, 'data = "digits"\nmethod = { kind = "sharp.py", temperature = 1 }\n')
    (tmp_path / "sharp.py").write_text(OWN, encoding="utf-8")
    assert told_early(file) is None
    assert "train.lrr: unknown key" in told_early(file, ["train.lrr=1"])
    # A change of kind keeps the settings that both kinds have, and the outline does not know those of the user's kind.
    assert told_early(file, ["method.kind=fixmatch", "method.tresh=3"]) is None


def test_an_outline_of_other_code_tells_nothing(tmp_path, monkeypatch):
    file = written(tmp_path)
    assert told_early(file, ["method.tresh=3"]) is not None
    monkeypatch.setattr(outlines, "digest_of", lambda modules, packages: "of other code")
    assert told_early(file, ["method.tresh=3"]) is None


def test_a_new_setting_or_file_makes_another_digest(tmp_path, monkeypatch):
    """Whoever works on fedssl and has not yet run `make references` is not told that a new setting is unknown."""
    monkeypatch.setattr(outlines, "PACKAGE", tmp_path)
    (tmp_path / "methods").mkdir()
    file = tmp_path / "methods" / "sharp.py"

    def digest():
        return outlines.digest_of(["fedssl.methods.sharp"], ["fedssl.methods"])

    text = 'class Sharp:\n    """Words."""\n\n    a: float = Field(\n        0.5,\n    )\n\n    def f(self):\n        x: int = 3\n'
    file.write_text(text)
    first = digest()
    file.write_text(text.replace("Words", "Other words").replace("x: int", "y: int"))
    assert digest() == first
    for changed in (
        text.replace("0.5", "0.6"),
        text.replace("    def", "    b: int = 3\n\n    def"),
    ):
        file.write_text(changed)
        assert digest() != first
    file.write_text(text)
    (file.parent / "other.py").touch()
    assert digest() != first


def test_the_outline_is_of_this_code():
    assert Outline.read().is_current


COMMANDS = [
    *(
        (*command.split(), "e.toml", "--set", "method.tresh=3")
        for command in ("run", "validate", "show", "baseline", "advise")
    ),
    ("run", "e.toml", "--engine", "rai"),
    ("validate", "e.toml", "--set", "train.lr=-1"),
    ("validate", "e.toml", "--set", "method.kind=fixmatsh"),
    ("validate", "wrong.toml"),
    ("run", "e.toml", "wrong.toml"),
    ("sweep", "wrong.toml"),
    ("sweep", "e.toml", "--set", "method.tresh=3,4"),
    ("sweep", "e.toml", "--set", "method.kind=fixmatch,fixmatsh"),
    ("sweep", "e.toml", "wrong.toml", "--set", "method.kind=fixmatch,supervised"),
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Change into a folder with a file without a mistake and one with a mistake."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path)
    (tmp_path / "wrong.toml").write_text('data = "digits"\n[train]\nlrr = 3\n', encoding="utf-8")


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    "words",
    [
        *COMMANDS,
        ("deploy", "run", "e.toml", "--set", "method.tresh=3"),
        ("run", "e.toml", "--lr", ".1"),
    ],
    ids=" ".join,
)
def test_a_command_tells_it_without_torch(words):
    code = f"""
import sys
from fedssl.cli import app
try:
    app({words!r})
except SystemExit as error:
    print(error.code, {{"torch", "pandas", "numpy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout == "2 set()\n", done.stdout + done.stderr


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_says_the_same_without_the_outline(words, monkeypatch):
    early = fedssl(*words)
    monkeypatch.setattr(outlines, "digest_of", lambda modules, packages: "of other code")
    late = fedssl(*words)
    assert early.exit_code == late.exit_code == 2
    assert early.output == late.output
