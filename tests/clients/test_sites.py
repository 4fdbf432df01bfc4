"""Simulated sites: the same clients, labels and bits as a deployment whose clients have the sites' images."""

import csv

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from fedssl.app.simulation import Engine, check_experiment
from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.experiment.experiment import Experiment
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import app as server_app
from fedssl.server.app import serve
from fedssl.views.run import Run
from tests.clients.test_private_data import digits, homes  # noqa: F401
from tests.data.own_images import colors, save
from tests.helpers import federation_of, fedssl, refused, small_experiment, small_toml
from tests.nodes import Nodes

NAMES = ("lyon", "bern", "oslo")


@pytest.fixture
def sites(homes):  # noqa: F811
    """Return three sites: two folders, a part and none of their images labeled, and a file of labeled images."""
    kinds = ("folder", "folder", "npz")
    named = zip(NAMES, kinds, homes, strict=True)
    return {name: f"{kind}:{path}" for name, kind, path in named}


def sites_experiment(sites, **overrides):
    federation = {"clients": None, "sample": 2, "sites": sites} | overrides.pop("federation", {})
    return small_experiment(federation=federation, **overrides)


def nodes(experiment):
    """Return a grid of deployed clients with the images of the sites."""
    sites = experiment.federation.sites
    paths = [site.path for site in sites.values()]
    return Nodes([{"partition-id": n, "data-path": path} for n, path in enumerate(paths)])


def bits(outcome):
    return {name: array.tobytes() for name, array in outcome.model.arrays.items()}


LABELS_AT_SERVER = {"federation": {"labels": {"kind": "at_server", "per_class": 2}}}


@pytest.mark.parametrize(
    "sections", [{}, LABELS_AT_SERVER, {"method": {"kind": "flexmatch", "unlabeled_ratio": 2}}]
)
def test_a_simulation_of_sites_has_the_bits_of_their_deployment(sites, sections):
    experiment = sites_experiment(sites, rounds=3, **sections)
    deployed = experiment.deployed()
    assert deployed.federation.private
    assert deployed.federation.sites is None
    check_experiment(experiment)
    simulated = serve(experiment, SerialGrid(Apps(app), 3), [])
    assert bits(simulated) == bits(serve(deployed, nodes(experiment), []))
    assert len({row.server_accuracy for row in simulated.rounds}) > 1  # it learns


def test_clients_are_numbered_by_name_whatever_their_order_in_the_file(sites):
    experiment = sites_experiment(sites)
    federation = federation_of(experiment)
    assert federation.sites == ("bern", "lyon", "oslo")
    assert experiment.federation.clients == federation.num_clients == 3
    assert federation.sizes.tolist() == [20, 20, 20]
    assert federation.labeled_sizes.tolist() == [0, 10, 20]
    turned = dict(reversed(sites.items()))
    assert federation_of(sites_experiment(turned)).sites == federation.sites
    assert Experiment.from_dict(experiment.to_dict()) == experiment


def test_a_site_trains_on_its_own_images_and_labels(sites, digits):  # noqa: F811
    images, labels = digits
    federation = federation_of(sites_experiment(sites))
    oslo, lyon = federation.shard(2), federation.shard(1)
    assert (oslo.images.numpy()[:, 0] == images[40:]).all()
    assert oslo.labels.tolist() == labels[40:].tolist()
    assert sorted(lyon.labels.tolist()) == sorted([*labels[:10], *[-1] * 10])
    held_out, truth = federation.held_out_at(1)
    assert (len(held_out), sorted(truth.tolist())) == (20, sorted(labels[:20]))
    assert len(federation.held_out_at(2)[0]) == 0
    assert federation.held_out_sizes.tolist() == [0, 20, 0]
    # The images of [data] are the server's: they judge the model, and no site trains on them.
    plain = federation_of(small_experiment())
    assert federation.held_out.labels.tolist() == plain.held_out.labels.tolist()
    assert (federation.owner[: len(plain.owner)] == -3).all()


def test_a_judge_with_labels_of_its_own_takes_the_images_that_a_deployed_server_has(sites):
    judge = {"server": {"evaluator": {"kind": "knn", "per_class": 2}}}
    experiment = sites_experiment(sites, **judge)
    evaluator = experiment.server.evaluator
    here, there = (federation_of(each) for each in (experiment, experiment.deployed()))
    assert evaluator.rows(here).tolist() == evaluator.rows(there).tolist()
    without = sites_experiment(sites, server={"evaluator": "knn"})
    with pytest.raises(InputError, match="the server knows of no label"):
        check_experiment(without)


def test_the_record_has_the_partition_of_the_sites_and_their_names(tmp_path, sites):
    experiment = sites_experiment(sites, federation={"sample": 3})
    with Engine() as engine:
        engine.run(experiment, [RunDirectory(tmp_path / "run")])
    run = Run(tmp_path / "run")
    table = run.partition
    assert [(table["client"] == client).sum() for client in range(3)] == [20, 20, 20]
    assert "3 sites with 60 images and 30 labels" in run.data["description"]
    assert run.federation.sites == ("bern", "lyon", "oslo")
    with (tmp_path / "run" / "clients.csv").open() as file:
        counted = {
            (row["client"], row["num_examples"], row["num_labeled"]) for row in csv.DictReader(file)
        }
    assert counted == {("0", "20", "0"), ("1", "20", "10"), ("2", "20", "20")}
    assert fedssl("report", tmp_path / "run").exit_code == 0
    assert "1 (lyon)" in (tmp_path / "run" / "report.html").read_text()


def test_validate_and_show_name_the_sites(tmp_path, monkeypatch, sites):
    monkeypatch.chdir(tmp_path)
    file = small_toml(
        tmp_path / "e.toml", federation={"clients": None, "sample": None, "sites": sites}
    )
    said = fedssl("validate", file)
    assert said.exit_code == 0, said.output
    assert "3 sites with 60 images and 30 labels, 3 a round" in said.output
    said = fedssl("show", file)
    assert said.exit_code == 0, said.output
    for name in ("0 (bern)", "1 (lyon)", "2 (oslo)"):
        assert name in said.output
    assert (tmp_path / "small-federation.png").exists()
    said = fedssl("baseline", file)
    assert "label spreading" in said.output, said.output


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lyon": "folder:/no/where"}, "federation.sites.lyon: .*there is no such folder"),
        ({"lyon": "hf:mnist"}, "federation.sites.lyon.source: .*'folder:PATH' or 'npz:PATH'"),
        ({"lyon": "/srv/photos"}, "a site is 'folder:PATH' or 'npz:PATH'"),
        ({"lyon": "folder:a.npz"}, "a name that ends in .npz is an npz file"),
        ({"lyon": {"source": "folder:x", "bad": 1}}, "federation.sites.lyon.bad: unknown key; one of: bad_images, source"),
        ({"a\nb": "folder:x"}, "cannot be the name of a site"),
        ({"lyon": 3}, "federation.sites.lyon: is 3; a site is 'folder:PATH'"),
    ],
)  # fmt: skip
def test_a_site_that_cannot_be_used_is_named(sites, change, said):
    with pytest.raises(InputError, match=said):
        check_experiment(sites_experiment({**sites, **change}))


def test_a_class_that_the_server_does_not_have_and_flawed_images_are_one_error_each(
    tmp_path, sites
):
    save(tmp_path / "new" / "cat" / "1.png", colors()[0])
    with pytest.raises(InputError) as caught:
        check_experiment(sites_experiment({**sites, "new": f"folder:{tmp_path / 'new'}"}))
    assert str(caught.value).startswith("federation.sites.new: ")
    assert "class folder 'cat' is no class of the federation; it has: 0, 1" in str(caught.value)
    flawed = {"source": f"folder:{tmp_path / 'flawed'}"}
    save(tmp_path / "flawed" / "0" / "1.png", colors()[0])
    (tmp_path / "flawed" / "0" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"set federation.sites.flawed.bad_images = 'skip'"):
        check_experiment(sites_experiment({**sites, "flawed": flawed}))
    skipping = sites_experiment({**sites, "flawed": {**flawed, "bad_images": "skip"}})
    assert federation_of(skipping).sizes.tolist() == [20, 1, 20, 20]
    assert any(note.startswith("site flawed: ") for note in federation_of(skipping).data.notes)


@pytest.mark.parametrize(
    ("federation", "said"),
    [
        ({"private": True}, "private = true is a deployment"),
        ({"clients": 5, "sample": 2}, "clients = 5, but sites names 3"),
        ({"sample": 4}, "sample = 4 is more than clients = 3"),
        ({"partition": "iid"}, "sites: each site brings its own images and labels, which partition cannot"),
        ({"labels": {"per_class": 2}}, "which labels cannot change"),
        ({"features": "rotation"}, "which features cannot change"),
        ({"sites": {}}, "there is no site"),
    ],
)  # fmt: skip
def test_settings_that_do_not_go_with_sites(sites, federation, said):
    with pytest.raises(InputError, match=said):
        small_experiment(federation={"clients": None, "sample": 2, "sites": sites} | federation)


def test_the_same_images_are_not_two_sites_and_not_the_servers_test_images(tmp_path, sites):
    with pytest.raises(InputError, match="'lyon' and 'again' are the same images"):
        sites_experiment({**sites, "again": sites["lyon"]})
    rng = np.random.default_rng(0)
    for cls in ("cat", "dog"):
        for i in range(10):
            save(tmp_path / "all" / cls / f"{i}.png", colors(seed=int(rng.integers(1000)))[0])
    same = {"a": f"folder:{tmp_path / 'all'}"}
    table = {
        "name": "x",
        "data": {"source": f"folder:{tmp_path}/./all"},
        "federation": {"sites": same},
    }
    with pytest.raises(InputError, match=r"federation.sites.a: is the data of \[data\] too"):
        check_experiment(Experiment.from_dict(table))
    save(tmp_path / "own" / "train" / "cat" / "1.png", colors()[0])
    save(tmp_path / "own" / "train" / "dog" / "1.png", colors()[0])
    save(tmp_path / "own" / "test" / "dog" / "2.png", colors(seed=3)[0])
    own = f"folder:{tmp_path / 'own'}"
    check_experiment(
        Experiment.from_dict(
            {**table, "data": {"source": own}, "federation": {"sites": {"a": own}}}
        )
    )


def test_a_weight_that_a_deployed_client_would_not_send_is_refused(sites):
    weighing = {"strategy": {"kind": "fedavg", "weight": "number:certainty"}}
    for experiment in (one := sites_experiment(sites, **weighing), one.deployed()):
        with pytest.raises(InputError, match="numbers do not leave a client"):
            check_experiment(experiment)


def test_sites_are_not_deployed_as_they_are(sites):
    experiment = sites_experiment(sites)
    config = {"experiment-json": experiment.to_json()}
    context = Context(1, 1, {}, RecordDict(), config)
    with pytest.raises(
        InputError, match=r"federation.sites: is for fedssl run(.|\n)*private = true"
    ):
        server_app(nodes(experiment), context)
    with pytest.raises(InputError, match="drop system"):
        sites_experiment(sites, system={"dropout": 0.1}).deployed()


def test_private_clients_without_sites_are_told_of_them(tmp_path):
    file = small_toml(tmp_path / "e.toml", federation={"clients": 3, "private": True})
    refused(fedssl("run", file), "federation.private", "[federation.sites]", "private=false")
