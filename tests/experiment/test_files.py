"""The experiment files: comparisons are fair, and SemiFL's figures are compared with SemiFL's own steps."""

from pathlib import Path

import pytest

from fedssl.clients.local_data import simulated_federation
from fedssl.exchange.census import Census
from fedssl.experiment.experiment import Experiment

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
OTHERS = [
    path
    for folder in ("digits", "fashion_mnist", "noisy_labels")
    for path in sorted((EXPERIMENTS / folder).glob("*.toml"))
    if path.name != "supervised.toml"
]
SEMIFL = sorted((EXPERIMENTS / "cifar10").glob("fixmatch_*.toml")) + sorted(
    (EXPERIMENTS / "svhn").glob("*.toml")
)
FURTHER = {
    "remixmatch": {"augment"},
    "noisy_student": {"rounds", "phases"},
    **{kind: {"augment", "train", "server"} for kind in ("moco", "simclr", "byol")},
}
"""Sections besides the method in which a file differs from its baseline: ReMixMatch's strong views are CTAugment's, a
student needs a teacher's phase, and contrastive methods have views, batches and judges of their own."""


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_method_differs_from_its_baseline_by_the_method_alone(path: Path) -> None:
    own = Experiment.load(path).to_dict()
    baseline = Experiment.load(path.with_name("supervised.toml")).to_dict()
    differ = {key for key in own.keys() | baseline.keys() if own.get(key) != baseline.get(key)}
    assert differ <= {"name", "method"} | FURTHER.get(path.stem, set())


def images_shown(path: Path) -> float:
    """Return the expected number of images that a run shows to the networks it trains, each view of an image once."""
    experiment = Experiment.load(path)
    census = Census.of_simulation(simulated_federation(experiment))
    holdings = list(zip(census.num_labeled.tolist(), census.num_examples.tolist(), strict=True))
    total = 0.0
    for plan in experiment.plans:
        recipe, views = plan.recipe, plan.method.views()
        for labeled, size in holdings:
            batch = recipe.train.batch_size
            step = batch * len(views.labeled) * (labeled > 0)
            step += batch * views.ratio * len(views.unlabeled)
            share = plan.federation.sample / len(holdings)
            total += plan.num_rounds * share * recipe.num_steps(labeled, size) * step
    return total


def test_the_chain_of_phases_shows_as_many_images_as_fixmatch() -> None:
    chain = images_shown(EXPERIMENTS / "pretraining" / "simclr.toml")
    assert chain == pytest.approx(images_shown(EXPERIMENTS / "digits" / "fixmatch.toml"), rel=0.01)


@pytest.mark.parametrize("folder", ["digits", "fashion_mnist"])
def test_the_better_baseline_shows_its_labels_strongly(folder: str) -> None:
    weak, strong = (
        Experiment.load(EXPERIMENTS / folder / f"{name}.toml")
        for name in ("supervised", "supervised_strong")
    )
    assert (weak.method.views().labeled, strong.method.views().labeled) == (("weak",), ("strong",))
    assert weak.method.kind == strong.method.kind == "supervised"


@pytest.mark.parametrize("path", SEMIFL, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_files_beside_semifls_figures_take_semifls_steps(path: Path) -> None:
    """Five passes of batches of 10 over 500 images are 250 steps; gradients are clipped, clients count alike."""
    experiment = Experiment.load(path)
    assert experiment.recipe.num_steps(3, 500) == 250
    assert experiment.train.clip_norm == 1
    assert experiment.to_dict()["strategy"]["weight"] == "uniform"
    if experiment.federation.labels.at_server:
        assert experiment.server_recipe.num_steps(250, 250) == 125
    else:  # a client's few labels are no batch to normalize by
        assert experiment.to_dict()["model"]["norm"] == "group"


def test_the_file_of_semifl_has_all_parts_of_semifl() -> None:
    """Only the batches of the clients are larger than SemiFL's."""
    experiment = Experiment.load(EXPERIMENTS / "labels_at_server" / "semifl.toml")
    table = experiment.to_dict()
    assert table["method"] == {"kind": "semifl", "threshold": 0.95, "mix_weight": 1, "alpha": 0.75}
    assert experiment.federation.labels.at_server
    assert table["server"]["method"]["kind"] == "supervised"
    assert table["strategy"]["kind"] == "fedavgm"
    assert (table["strategy"]["momentum"], table["strategy"]["weight"]) == (0.5, "uniform")
    assert table["model"]["norm"] == "static"
    own, server = experiment.train, experiment.server_recipe.train
    for train in (own, server):
        assert (train.local_epochs, train.clip_norm, train.keep_momentum) == (5, 1, True)
        assert (train.optimizer.kind, train.momentum, train.nesterov) == ("sgd", 0.9, True)
    assert own.model_copy(update={"batch_size": 10}) == server


@pytest.mark.parametrize(("folder", "figure"), [("imagenette", "64.2"), ("imagewoof", "38.6")])
def test_files_of_the_public_moco_run_have_its_recipe(folder: str, figure: str) -> None:
    """The run's probe saw the first layer of the projection head; ours sees the backbone too."""
    path = EXPERIMENTS / folder / "moco_probe.toml"
    assert figure in path.read_text()
    table = Experiment.load(path).to_dict()
    assert table["data"]["source"] == folder
    assert table["model"]["kind"] == "torchvision:resnet18"
    method, train, judge = table["method"], table["train"], table["server"]["evaluator"]
    assert (list(method["projection"]), method["temperature"]) == ([100, 50, 25], 0.05)
    assert (method["queue_size"], method["momentum"]) == (8192, 0.999)
    assert (train["batch_size"], train["weight_decay"]) == (256, 1e-6)
    assert train["lr"] * train["schedule"]["final"] == pytest.approx(1e-5)
    assert (judge["fraction"], list(judge["layers"])) == (0.1, ["projection", "backbone"])
