"""The experiment file: valid and refused files, error messages, phases, overrides, round trips."""

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.families import family_at
from fedssl.experiment.settings import merge
from fedssl.methods.fixmatch import FixMatch
from fedssl.methods.supervised import Supervised

MINIMAL = '[data]\nsource = "digits"\n'


def load(tmp_path: Path, text: str, *settings: str) -> Experiment:
    file = tmp_path / "e.toml"
    file.write_text(text, encoding="utf-8")
    return Experiment.load(file, settings)


def test_every_section_is_optional_but_data(tmp_path):
    experiment = load(tmp_path, MINIMAL)
    assert experiment.method == FixMatch()
    assert experiment.strategy.kind == "fedavg"
    assert experiment.num_rounds == 40
    with pytest.raises(InputError, match="data: is missing"):
        load(tmp_path, 'name = "x"\n')


FULL = """
name = "digits-fixmatch"
seed = 3
[data]
source = "digits"
train_size = 300
[federation]
clients = 10
sample = 5
partition = {kind = "dirichlet", alpha = 0.3}
labels = {kind = "at_clients", per_class = 2}
[augment.strong]
kind = "randaugment"
num_ops = 1
weak = {translate = 0.25}
[model]
kind = "torchvision:resnet18"
[method]
kind = "fixmatch"
threshold = 0.9
[train]
local_epochs = 1.5
clip_norm = 1.0
[strategy]
kind = "fedavg"
weight = "labeled"
[engine]
kind = "ray"
workers = "auto"
gpus_per_worker = 0.5
[[phases]]
rounds = 10
method.kind = "supervised"
[[phases]]
rounds = 40
federation.sample = 8
"""


def test_round_trips_through_toml_and_json(tmp_path):
    experiment = load(tmp_path, FULL)
    assert load(tmp_path, experiment.to_toml()) == experiment
    assert load(tmp_path, load(tmp_path, MINIMAL).to_toml()) == load(tmp_path, MINIMAL)
    travelled = Experiment.from_json(experiment.to_json())
    assert travelled.model_copy(update={"engine": experiment.engine}) == experiment
    assert "engine" not in json.loads(experiment.to_json())


@pytest.mark.parametrize("fuse", ["off", "on", "auto", 2, 50])
def test_clients_are_fused_by_the_rule_never_always_or_by_a_number(tmp_path, fuse):
    experiment = load(tmp_path, MINIMAL, f"engine.fuse={fuse}")
    assert experiment.engine.fuse == fuse
    assert load(tmp_path, experiment.to_toml()) == experiment
    assert load(tmp_path, MINIMAL).engine.fuse == "auto"


def test_phases_script_the_rounds(tmp_path):
    experiment = load(tmp_path, FULL)
    first, second = experiment.plans[0], experiment.plans[1]
    assert experiment.num_rounds == 50
    assert first.method == Supervised()
    assert first.federation.sample == 5
    assert (first.num_rounds, second.num_rounds) == (10, 40)
    assert second.method == FixMatch(threshold=0.9)
    assert second.federation.sample == 8
    assert second.federation.partition == experiment.federation.partition


def test_settings_override(tmp_path):
    experiment = load(
        tmp_path, FULL, "method.threshold=0.5", "seed=9", "phases.1.rounds=2", "name=other"
    )
    assert experiment.plans[1].method == FixMatch(threshold=0.5)
    assert (experiment.seed, experiment.name, experiment.num_rounds) == (9, "other", 12)


def test_another_kind_forgets_the_old_ones_settings(tmp_path):
    experiment = load(tmp_path, FULL, "method.kind=mean_teacher", "method.ema_decay=0.9")
    assert experiment.method.kind == "mean_teacher"
    same = load(tmp_path, FULL, "method.kind=fixmatch")
    assert same.method == FixMatch(threshold=0.9)


def test_another_kind_keeps_what_its_family_has_in_common(tmp_path):
    """Where labels are changes; how many there are, and what is held out, does not."""
    text = '[data]\nsource = "digits"\ntrain_size = 500\nvalidation = 0.2\n[federation.labels]\nper_class = 7\n'
    text += '[federation.partition]\nkind = "dirichlet"\nalpha = 0.1\nmin_size = 3\n'
    for kind in ("at_server", "skewed", "some_clients"):
        labels = load(tmp_path, text, f"federation.labels.kind={kind}").federation.labels
        assert (labels.kind, labels.per_class) == (kind, 7)
    data = load(tmp_path, text, "data.source=npz:mine.npz").data
    assert (data.kind, data.train_size, data.validation) == ("npz:mine.npz", 500, 0.2)
    partition = load(tmp_path, text, "federation.partition.kind=shards").federation.partition
    assert partition.min_size == 3


def test_unset_takes_a_setting_out(tmp_path):
    text = MINIMAL + "[federation.labels]\nper_class = 7\n"
    changes = ["federation.labels.per_class=unset", "federation.labels.fraction=0.1"]
    labels = load(tmp_path, text, *changes).federation.labels
    assert (labels.per_class, labels.fraction) == (None, 0.1)
    assert load(tmp_path, text, "federation.labels=unset").federation.labels.per_class is None


def test_a_bare_name_is_short_for_a_table(tmp_path):
    text = 'data = "digits"\nmethod = "mean_teacher"\n[federation]\npartition = "iid"\n'
    experiment = load(tmp_path, text, "method.unlabeled_weight=0", "data.validation=0.2")
    assert experiment.method.kind == "mean_teacher"
    assert experiment.method.unlabeled_weight == 0
    assert experiment.data.validation == 0.2
    skewed = load(tmp_path, text, "federation.partition=dirichlet")
    assert skewed.federation.partition.kind == "dirichlet"
    with pytest.raises(InputError, match=r"federation.partition.alpha: unknown key"):
        load(tmp_path, text, "federation.partition.alpha=0.1")


def test_an_implied_kind_is_the_default_one(tmp_path):
    text = MINIMAL + "[method]\nthreshold = 0.5\n"
    assert load(tmp_path, text, "method.kind=fixmatch").method == FixMatch(threshold=0.5)
    assert load(tmp_path, text, "method.kind=supervised").method == Supervised()


def test_settings_reach_into_phases(tmp_path):
    text = MINIMAL + "[[phases]]\nrounds = 1\nmethod = {kind = 'fixmatch', threshold = 0.5}\n"
    experiment = load(tmp_path, text, "phases.0.method.kind=supervised")
    assert experiment.plans[0].method == Supervised()
    assert experiment.largest_sample == 5


def test_merge_leaves_its_inputs_alone():
    base = {"a": {"b": 1}, "l": [{"x": 1}]}
    merged = merge(base, {"a": {"c": 2}, "l": {"0": {"x": 5}}}, family_at)
    assert merged == {"a": {"b": 1, "c": 2}, "l": [{"x": 5}]}
    assert base == {"a": {"b": 1}, "l": [{"x": 1}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[data\n", r"is not valid TOML: .*line 1"),
        (MINIMAL + "[metod]\n", r"metod: unknown key; did you mean 'method'\?"),
        (MINIMAL + "[method]\ntreshold = 0.9\n", r"method.treshold: unknown key; did you mean 'threshold'"),
        (MINIMAL + "[federation]\nclient = 3\n", r"federation.client: unknown key; did you mean 'clients'"),
        (MINIMAL + '[train]\nlr = "fast"\n', r"train.lr: is 'fast', not a number"),
        (MINIMAL + "[train]\nlocal_steps = 1.5\n", r"train.local_steps: is 1.5: .*valid integer"),
        (MINIMAL + "[federation]\nclients = 3\nsample = 5\n", r"federation: sample = 5 is more than clients = 3"),
        (MINIMAL + "[federation.partition]\nalpha = 0\n", r"federation.partition.alpha: is 0.*greater than 0"),
        (MINIMAL + "[federation.partition]\nalpha = -1.0\n", r"federation.partition.alpha: is -1.0"),
        (MINIMAL + "[federation.partition]\nalpha = nan\n", r"federation.partition.alpha: is nan"),
        (MINIMAL + '[method]\nkind = "fixmach"\n', r"method.kind: there is no method 'fixmach'; did you mean 'fixmatch'"),
        (MINIMAL + '[strategy]\nkind = "fedavgg"\n', r"strategy.kind: there is no strategy 'fedavgg'; did you mean 'fedavg'"),
        (MINIMAL + '[model]\nkind = "cn"\n', r"model.kind: there is no model 'cn'; did you mean 'cnn'"),
        ('[data]\nsource = "digit"\n', r"data.source: there is no data source 'digit'; did you mean 'digits'"),
        ("[data]\n", r"data.source: is missing; one of: cifar10, cifar100, digits, fashion_mnist, folder, "),
        ('[data]\nsource = "folder"\n', r"data.source: is 'folder'; write 'folder:NAME' \(NAME: path of the folder\)"),
        ('data = 3\n', r"data: is 3, not a table"),
        (MINIMAL + '[federation.partition]\nkind = "dirichle"\n', r"there is no partition 'dirichle'"),
        (MINIMAL + '[federation.labels]\nkind = "at_client"\n', r"there is no label split"),
        (MINIMAL + '[federation.labels]\nper_class = 4\nfraction = 0.1\n', r"labels: per_class and fraction exclude each other; drop one"),
        (MINIMAL + '[federation.labels]\nper_class = [0, 0]\n', r"labels: per_class = \(0, 0\): there must be at least one label"),
        (MINIMAL + '[federation.labels]\nkind = "at_server"\n[federation.unlabeled_partition]\nkind = "iid"\n', r"federation: labels.kind = 'at_server'.*drop unlabeled_partition"),
        (MINIMAL + '[federation.unlabeled_partition]\nalpha = 1\n', r"federation.unlabeled_partition.kind: is missing; one of: classes, dirichlet"),
        (MINIMAL + '[federation.label_noise]\nkind = "pairs"\n', r"federation.label_noise.kind: there is no label noise 'pairs'; did you mean 'pair'"),
        (MINIMAL + '[federation.features]\nkind = "rotation"\nmax_degrees = 500\n', r"federation.features.max_degrees: is 500"),
        ('[data]\nsource = "digits"\nvalidation = 0.1\n[federation.labels]\nvalidation = 0.5\n', r"data.validation and federation.labels.validation exclude each other"),
        (MINIMAL + '[system]\nsped = 3\n', r"system.sped: unknown key; did you mean 'speed'"),
        (MINIMAL + '[system]\nspeed = "fast"\n', r"system.speed.kind: there is no law 'fast'"),
        (MINIMAL + '[system]\nspeed = { kind = "uniform", low = 2, high = 1 }\n', r"system.speed"),
        (MINIMAL + '[system]\ndeadline = 0\n', r"system.deadline: is 0"),
        (MINIMAL + '[system]\nover_selection = 0.5\n', r"system.over_selection: is 0.5"),
        (MINIMAL + '[system]\navailability = "sometimes"\n', r"system.availability.kind: there is no availability 'sometimes'"),
        (MINIMAL + '[server.method]\nkind = "fixmach"\n', r"server.method.kind: there is no method 'fixmach'; did you mean 'fixmatch'"),
        (MINIMAL + "[[phases]]\nrounds = 0\n", r"phases.0.rounds: is 0: .*greater than or equal to 1"),
        (MINIMAL + "[[phases]]\nmethod.kind = 'supervised'\n", r"phases.0.rounds: is missing"),
        (MINIMAL + "[[phases]]\nrounds = 1\ndata.source = 'mnist'\n", r"phases\[0\].data: a phase cannot set this; one of: model, method"),
        (MINIMAL + "[[phases]]\nrounds = 1\nmethd.kind = 'cnn'\n", r"phases\[0\].methd: a phase cannot set this"),
        (MINIMAL + "[[phases]]\nrounds = 1\nmethod.threshold = 2.0\n", r"phases\[0\].method.threshold: is 2.0"),
        (MINIMAL + "[[phases]]\nrounds = 1\nfederation.clients = 2\n", r"phases\[0\].federation: a phase can set federation.sample only"),
        (MINIMAL + "[[phases]]\nrounds = 1\nfederation.sample = 99\n", r"phases\[0\].federation: sample = 99"),
        ("rounds = 3\n" + MINIMAL + "[[phases]]\nrounds = 1\n", r"rounds and phases exclude each other"),
        (MINIMAL + "[train]\nlocal_steps = 3\nlocal_epochs = 1\n", r"train: local_steps and local_epochs exclude"),
        (MINIMAL + "[train]\nmomentum = 0.0\n", r"train: nesterov needs momentum"),
        (MINIMAL + '[strategy]\naveraging = "population"\nweight = "confident"\n', r"strategy: averaging = 'population'"),
        (MINIMAL + "[model]\nwidths = [12]\n", r"model: a width of 12 is not divisible into 8 groups"),
        (MINIMAL + "[engine]\nworkers = 0\n", r"engine: workers = 0"),
        (MINIMAL + "[engine]\nfuse = 1\n", r"engine: fuse = 1; it must be at least 2, or 'off', 'on' or 'auto'"),
        (MINIMAL + "[engine]\ngpus_per_worker = 1.5\n", r"gpus_per_worker = 1.5; above 1 it must be a whole number"),
        (MINIMAL + "[engine]\ncpus_per_client = 0\n", r"cpus_per_client"),
        (MINIMAL + "[engine]\ncpus_per_client = 2\nfuse = 'on'\n", r"fuse trains several clients in one process"),
        (MINIMAL + "[engine]\ngpus_per_worker = 2\nfuse = 8\n", r"fuse trains several clients in one process"),
        ('name = "../x"\n' + MINIMAL, r"name: is '../x'"),
        ("seed = -1\n" + MINIMAL, r"seed: is -1"),
        (MINIMAL + "[federation]\nclients = true\n", r"federation.clients: is True, not a number"),
        (MINIMAL + '[federation]\nclients = "7"\n', r"federation.clients: is '7', not a number"),
        (MINIMAL + "[[phases]]\nrounds = 1\nfederation = 5\n", r"a phase can set federation.sample only"),
        (MINIMAL + '[method]\nkind = "fedssl.models.cnn"\n', r"there is no method 'fedssl.models.cnn'"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_message(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "e.toml") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.toml: no such file"):
        Experiment.load(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="is a folder; name a TOML file"):
        Experiment.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed = " + b"9" * 5000, "is not valid TOML"),
        (b"seed = " + b"[" * 20_000 + b"]" * 20_000, "nested too deep"),
        (b"seed = \xff\xfe", "is not saved as UTF-8: line 1"),
        (b"\x00" * 10, "is no text"),
        (b"# " + b"x" * (5 << 20), "has more than 4 MiB"),
        (MINIMAL.encode() + b"[[phases]]\nrounds = 1\n" * 1001, "phases"),
    ],
)
def test_files_that_are_no_experiments_are_one_message(tmp_path, content, message):
    file = tmp_path / "e.toml"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Experiment.load(file)
    assert len(str(caught.value)) < 500


def test_settings_that_python_cannot_read_are_one_message(tmp_path):
    with pytest.raises(InputError, match="--set"):
        load(tmp_path, MINIMAL, "seed=" + "9" * 5000)


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    (tmp_path / "e.toml").write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert Experiment.load(tmp_path / "e.toml").data.kind == "digits"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    section=st.sampled_from(
        [
            "data",
            "federation",
            "method",
            "train",
            "strategy",
            "server",
            "engine",
            "phases",
            "privacy",
            "seed",
        ]
    ),
    table=VALUES
    | st.dictionaries(
        st.sampled_from(["kind", "source", "clients", "sample", "lr", "rounds", "labels"]), VALUES
    ),
)
def test_any_table_is_an_experiment_or_one_message(section, table):
    with contextlib.suppress(InputError):  # no other exception
        Experiment.from_dict({"data": {"source": "digits"}, section: table})


@pytest.mark.parametrize("setting", ["method.threshold", "=3", "a..b=1"])
def test_malformed_settings(tmp_path, setting):
    with pytest.raises(InputError, match=r"not of the form a.b=value"):
        load(tmp_path, MINIMAL, setting)


@pytest.mark.parametrize("setting", ["phases.0=3", "model.widths.0=16", "phases.².rounds=3"])
def test_settings_of_the_wrong_shape_are_refused_or_applied(tmp_path, setting):
    if setting.startswith("model"):
        text = MINIMAL + "[model]\nwidths = [8, 8]\n"
        assert load(tmp_path, text, setting).model.widths == (16, 8)
    else:
        with pytest.raises(InputError):
            load(tmp_path, FULL, setting)


def test_settings_into_nothing(tmp_path):
    with pytest.raises(InputError, match=r"phases.3: there are 2, counted from 0"):
        load(tmp_path, FULL, "phases.3.rounds=1")


def test_the_schema_knows_every_plugin():
    text = json.dumps(Experiment.model_json_schema())
    for word in (
        "fixmatch",
        "mean_teacher",
        "dirichlet",
        "^torchvision:.+",
        "at_clients",
        "fedavg",
        "digits",
    ):
        assert word in text


def test_experiments_of_the_repository_are_valid():
    files = sorted(Path("experiments").rglob("*.toml"))
    assert len(files) >= 4
    for file in files:
        Experiment.load(file)


def test_a_copy_resolves_its_phases_anew():
    experiment = Experiment.from_dict({"data": {"source": "digits"}, "phases": [{"rounds": 2}]})
    copied = experiment.model_copy(update={"seed": 5})
    assert [plan.seed for plan in experiment.plans + copied.plans] == [0, 5]
    assert experiment.plans is experiment.plans
