"""The protocols: every file of a folder has the same data, federation, model and steps, and every baseline is there."""

from pathlib import Path

import pytest

from fedssl.clients.local_data import simulated_federation
from fedssl.data.federation import Federation
from fedssl.exchange.census import Census
from fedssl.experiment.experiment import Experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
REFERENCE = "fixmatch"
"""The file that the other files of its folder are compared with."""

BASELINES = {
    "labels_at_server": {"server_alone", "server_alone_strong"},
    "labels_at_clients": {"supervised", "supervised_strong"},
    "one_labeled_client": {"labeled_alone", "labeled_alone_strong"},
    "four_labeled_clients": {"labeled_alone", "labeled_alone_strong"},
}
"""The baselines of each protocol that learn from labels only; the other baselines are in every protocol."""

EVERYWHERE = {"fixmatch", "fixmatch_received", "all_labels", "one_machine"}

IN_PHASES = {"fedema"}
"""Files whose phases have views, batches and learning rates of their own: features are learned first, and then the classes."""

FILES = [
    path
    for folder in BASELINES
    for path in sorted((EXPERIMENTS / folder).glob("*.toml"))
    if path.stem not in IN_PHASES
]

DEALT_OTHERWISE = {
    "labeled_alone": {"sample"},
    "labeled_alone_strong": {"sample"},
    "all_labels": {"labels"},
    "one_machine": {"clients", "sample", "labels"},
}
"""Settings of the federation in which a baseline may differ from the reference, by the name of its file."""

OTHER_STEPS = {"server_alone", "server_alone_strong", "labeled_alone", "labeled_alone_strong"}
"""Baselines whose clients without labels take no step: the server or the labeled clients take as many as in the reference."""

SAME_TRAINING = ("batch_size", "optimizer", "schedule")
"""Settings of ``[train]`` that all files of a protocol share, beside the learning rate; the batch is of labeled images."""

OTHER_RATE = {"fedmatch"}
"""Systems that diverge at the reference's learning rate: their files have a tenth of it."""

PASSES = {"rscfed": 3.0}
"""Number of times that a round trains a sampled client's share of the federation, by strategy: RSCFed's three sub-cohorts."""


def client_steps(experiment: Experiment, federation: Federation) -> float:
    """Return the expected number of steps that all clients of a run take together, if every client learns."""
    census = Census.of_simulation(federation)
    holdings = zip(census.num_labeled.tolist(), census.num_examples.tolist(), strict=True)
    steps = [experiment.recipe.num_steps(max(1, labeled), size) for labeled, size in holdings]
    asked = experiment.federation.sample / len(steps)
    passes = PASSES.get(experiment.strategy.kind, 1.0)
    return experiment.num_rounds * passes * asked * sum(steps)


def deal(experiment: Experiment) -> dict[str, object]:
    return dict(experiment.to_dict()["federation"])


@pytest.mark.parametrize("folder", BASELINES)
def test_every_protocol_has_every_baseline(folder: str) -> None:
    names = {path.stem for path in (EXPERIMENTS / folder).glob("*.toml")}
    assert BASELINES[folder] | EVERYWHERE <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_files_of_a_protocol_share_data_federation_model_and_steps(path: Path) -> None:
    own = Experiment.load(path)
    reference = Experiment.load(path.with_name(f"{REFERENCE}.toml"))
    assert own.name == f"{path.parent.name}-{path.stem}".replace("_", "-")
    for section in ("data", "model", "augment", "seed"):
        assert own.to_dict().get(section) == reference.to_dict().get(section), section
    mine, theirs = deal(own), deal(reference)
    differ = {key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)}
    assert differ <= DEALT_OTHERWISE.get(path.stem, set())
    rate = 0.1 if path.stem in OTHER_RATE else 1.0
    assert own.train.lr == pytest.approx(rate * reference.train.lr)
    for setting in SAME_TRAINING:
        assert getattr(own.train, setting) == getattr(reference.train, setting), setting
    if own.server_trains:
        assert own.server.train == reference.server.train
    if path.stem in OTHER_STEPS:
        assert own.train == reference.train
        assert own.num_rounds == reference.num_rounds
        return
    steps, wanted = (client_steps(each, simulated_federation(each)) for each in (own, reference))
    # Steps of epochs are rounded up, and clients hold 40 images more if the server holds no labels.
    assert steps == pytest.approx(wanted, rel=0.04)


@pytest.mark.parametrize("kind", sorted(IN_PHASES))
def test_a_file_in_phases_shares_data_federation_model_rounds_and_steps(kind: str) -> None:
    paths = (EXPERIMENTS / "labels_at_clients" / f"{name}.toml" for name in (kind, REFERENCE))
    own, reference = (Experiment.load(path) for path in paths)
    for section in ("data", "federation", "model", "seed"):
        assert own.to_dict().get(section) == reference.to_dict().get(section), section
    assert sum(plan.num_rounds for plan in own.plans) == reference.num_rounds
    assert all(plan.train.local_steps == reference.train.local_steps for plan in own.plans)


@pytest.mark.parametrize("folder", BASELINES)
def test_the_baselines_are_what_their_names_say(folder: str) -> None:
    runs = {name: Experiment.load(EXPERIMENTS / folder / f"{name}.toml") for name in EVERYWHERE}
    local, received = (runs[name].method.to_dict() for name in ("fixmatch", "fixmatch_received"))
    assert (local["labeler"], received["labeler"]) == ("local", "received")
    assert (
        {**local, "labeler": "received"}
        == received
        == {
            **runs["one_machine"].method.to_dict(),
            "labeler": "received",
        }
    )
    assert runs["all_labels"].method.to_dict() == {"kind": "supervised", "labeled_view": "strong"}
    assert simulated_federation(runs["all_labels"]).labeled.all()
    weak, strong = (
        Experiment.load(EXPERIMENTS / folder / f"{name}.toml") for name in sorted(BASELINES[folder])
    )
    for experiment, view in ((weak, "weak"), (strong, "strong")):
        assert experiment.method.kind == "supervised"
        learner = experiment.server.method if experiment.server_trains else experiment.method
        assert learner.views().labeled == (view,)


@pytest.mark.parametrize("folder", BASELINES)
def test_one_machine_has_as_many_labels_as_the_federation(folder: str) -> None:
    """In the federation of one labeled client, the number of labels depends on the seed; one machine has the mean."""
    federation, machine = (
        simulated_federation(Experiment.load(EXPERIMENTS / folder / f"{name}.toml"))
        for name in (REFERENCE, "one_machine")
    )
    counts = int(federation.labeled.sum()), int(machine.labeled.sum())
    if folder.startswith("labels_at"):
        assert counts[0] == counts[1]
    if folder == "labels_at_server":
        assert (federation.labeled == machine.labeled).all()
    num_images = len(machine.owner)
    share = {"one_labeled_client": 0.1, "four_labeled_clients": 0.4}.get(folder)
    if share is not None:
        assert counts[1] == pytest.approx(share * num_images, abs=5)


PAPERS = sorted((EXPERIMENTS / "cifar10").glob("labels_at_clients_*.toml"))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_files_beside_the_figures_of_labels_at_every_client_have_that_protocol(path: Path) -> None:
    experiment = Experiment.load(path)
    table = experiment.to_dict()
    assert (experiment.num_rounds, table["federation"]["clients"]) == (300, 20)
    assert table["federation"]["sample"] == 8
    assert table["federation"]["labels"]["kind"] == "every_client"
    assert (table["model"]["kind"], table["model"]["norm"]) == ("resnet8", "batch")
    assert (experiment.train.lr, experiment.train.weight_decay) == (0.1, 1e-4)
    assert (experiment.train.batch_size, experiment.train.schedule.kind) == (128, "constant")
    if "all_labels" not in path.stem:
        assert experiment.recipe.num_steps(250, 2500) == 49
