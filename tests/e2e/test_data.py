"""A user's own images from end to end: run cold and warm, killed while preparing, refused in one message."""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers import command, fedssl, in_a_process, refused, sha256

TABLES = """
name = "own"
rounds = 2
[data]
source = "{source}"
{data}
[federation]
clients = 4
sample = 2
{federation}
[model]
widths = [8, 16]
hidden = 16
[method]
unlabeled_ratio = 1
[train]
local_steps = 2
batch_size = 8
"""


def write_pngs(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 12)) -> Path:
    """Write color noise as PNG files, so many in each subfolder."""
    generator = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = generator.integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i:03}.png")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("FEDSSL_CACHE", str(folder))
    return folder


@pytest.fixture
def pngs(tmp_path):
    return write_pngs(
        tmp_path / "pngs", {"cat/site_1": 20, "cat/site_2": 20, "dog/site_1": 40, "unlabeled": 40}
    )


def experiment(tmp_path, source, data="", federation="labels = { per_class = 4 }"):
    file = tmp_path / "own.toml"
    file.write_text(TABLES.format(source=source, data=data, federation=federation))
    return file


def entries(cache):
    """Return the data sets of a cache folder; what draws pages is kept there too."""
    return sorted(path.name for path in cache.iterdir() if path.is_dir() and path.name != "vega")


def as_parquet(pngs: Path, folder: Path) -> Path:
    """Write the labeled images of a folder as the Hugging Face Hub lays data sets out."""
    import datasets

    classes = ["cat", "dog"]
    paths = [path for name in classes for path in sorted((pngs / name).rglob("*.png"))]
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in paths],
        "label": [classes.index(path.relative_to(pngs).parts[0]) for path in paths],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)}
    )
    folder.mkdir()
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("kind", ["folder", "hf"])
def test_own_images_run_cold_on_two_workers_and_warm_in_one_process(tmp_path, cache, pngs, kind):
    source = pngs if kind == "folder" else as_parquet(pngs, tmp_path / "hub")
    file = experiment(tmp_path, f"{kind}:{source}")
    cold, warm = (("run", file, "--plain", "--out", tmp_path / name) for name in ("cold", "warm"))
    done = in_a_process(*cold, "--engine", "ray", "--workers", 2)
    assert "0 client failures" in done.stdout
    assert f"preparing {kind}:" in done.stderr
    again = fedssl(*warm, "--engine", "serial")
    assert "0 client failures" in again.output
    assert f"preparing {kind}:" not in again.output
    first, second = (sha256(tmp_path / name / "model.safetensors") for name in ("cold", "warm"))
    assert first == second
    assert len(entries(cache)) == 1


def test_a_natural_partition_follows_the_folders(tmp_path, cache, pngs):
    partition = '[federation.partition]\nkind = "natural"\ncolumn = "folder"\n'
    federation = f"labels = {{ per_class = 4 }}\n{partition}"
    file = experiment(tmp_path, f"folder:{pngs}", federation=federation)
    too_many = fedssl("validate", file)
    assert too_many.exit_code == 2
    result = fedssl("validate", file, "--set", "federation.clients=3")
    assert result.exit_code == 0, result.output  # site_1, site_2, and the unlabeled ones' none
    assert "3 clients (natural)" in result.output


def test_killed_while_preparing_the_next_run_recovers(tmp_path, cache):
    """Large images, so that there is time to kill it; the files do not change, so it is the same entry that recovers."""
    root = write_pngs(tmp_path / "pngs", {"a": 150, "b": 150}, size=(300, 300))
    file = experiment(tmp_path, f"folder:{root}", data="size = 12\nchannels = 3")
    process = subprocess.Popen(command("validate", file))
    deadline = time.monotonic() + 120
    while not list(cache.glob("*.partial/train_images.npy")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (partial,) = entries(cache)
    assert partial.endswith(".partial")
    result = fedssl("run", file, "--engine", "serial", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert entries(cache) == [partial.removesuffix(".partial")]


def spoil(name):
    """Return a function that spoils a folder of images in one way."""

    def truncated(root):
        path = root / "cat" / "000.png"
        path.write_bytes(path.read_bytes()[:60])

    def gray(root):
        Image.new("L", (12, 12)).save(root / "cat" / "gray.png")

    def larger(root):
        Image.new("RGB", (13, 12)).save(root / "dog" / "large.png")

    def empty(root):
        (root / "fish").mkdir()

    return {"truncated": truncated, "gray": gray, "larger": larger, "empty": empty}[name]


@pytest.mark.parametrize(
    ("flaw", "words"),
    [
        ("truncated", ["1 image cannot be read (", "cat/000.png: "]),
        ("gray", ["1 image has 1 channels", "cat/gray.png"]),
        ("larger", ["1 image is not 12x12", "dog/large.png"]),
        ("empty", ["1 class without training images (fish)"]),
    ],
)
def test_flawed_folders_are_refused_or_skipped_on_request(tmp_path, cache, flaw, words):
    root = write_pngs(tmp_path / "pngs", {"cat": 20, "dog": 20})
    spoil(flaw)(root)
    file = experiment(tmp_path, f"folder:{root}")
    refused(fedssl("run", file, "--out", tmp_path / "out"), *words, "bad_images = 'skip'")
    assert not (tmp_path / "out").exists()
    assert entries(cache) == []
    skipped = fedssl("validate", file, "--set", "data.bad_images=skip")
    assert skipped.exit_code == 0, skipped.output
    shown = fedssl("show", file, "--set", "data.bad_images=skip", "--out", tmp_path / "p.png")
    assert f"left out: {words[0][:12]}" in shown.output


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("folder:/nowhere", ["folder:/nowhere: there is no such folder"]),
        ("npz:/nowhere.npz", ["there is no such file"]),
        ("hf:/nowhere/at/all", ["there is no such folder"]),
        ("mnist", ["data.root", "download=true"]),
        ("cifar100", ["data.root", "download=true"]),
        ("stl10", ["data.root", "download=true"]),
        ("svhn", ["data.root", "download=true", "train_32x32.mat"]),
        ("imagenette", ["data.root", "download=true"]),
        ("imagewoof", ["data.root", "download=true"]),
    ],
)
def test_data_that_is_not_there_says_what_to_do(tmp_path, cache, source, words):
    root = "" if ":" in source else f'root = "{tmp_path}"'
    refused(fedssl("validate", experiment(tmp_path, source, data=root)), *words)


def test_a_hundred_thousand_clients_are_shown(tmp_path, cache):
    labels = np.random.default_rng(0).integers(0, 10, 1_000_000)
    images = np.zeros((len(labels), 2, 2), np.uint8)
    tests = {"test_images": images[:100], "test_labels": np.arange(100) % 10}
    np.savez(tmp_path / "big.npz", images=images, labels=labels, **tests)
    partition = '[federation.partition]\nkind = "dirichlet"\nalpha = 0.1\n'
    federation = f"labels = {{ per_class = 4000 }}\n{partition}"
    file = experiment(tmp_path, f"npz:{tmp_path}/big.npz", federation=federation)
    many = ("--set", "federation.clients=100000")
    result = fedssl("show", file, *many, "--out", tmp_path / "big.png")
    assert result.exit_code == 0, result.output
    assert "the 20 largest and 20 smallest of 100,000" in result.output
    with Image.open(tmp_path / "big.png") as picture:
        assert max(picture.size) < 4000


def test_a_cache_that_cannot_be_written_names_the_way_out(tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file, not a folder")
    monkeypatch.setenv("FEDSSL_CACHE", str(blocked / "cache"))
    file = experiment(tmp_path, "digits")
    refused(fedssl("validate", file), "FEDSSL_CACHE", "set FEDSSL_CACHE to a folder")


def test_a_damaged_cache_is_prepared_anew(tmp_path, cache):
    file = experiment(tmp_path, "digits")
    assert fedssl("validate", file).exit_code == 0
    (entry,) = entries(cache)
    images = cache / entry / "train_images.npy"
    before = images.read_bytes()
    images.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))  # same size, other content
    done = in_a_process("validate", file)
    assert "is damaged; preparing it anew" in done.stderr
    assert images.read_bytes() == before
