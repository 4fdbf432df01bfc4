"""Sources: real images, the right shapes, and a clear message when data is missing."""

import gzip
import pickle
import shutil
import struct

import numpy as np
import pytest
import scipy.io
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets

from fedssl.core.errors import InputError
from fedssl.data.blocks import Block
from fedssl.data.cache import Raw
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.base import SOURCES, Source
from fedssl.data.sources.cifar10 import CIFAR10
from fedssl.data.sources.cifar100 import CIFAR100
from fedssl.data.sources.digits import Digits
from fedssl.data.sources.fashion_mnist import FashionMNIST
from fedssl.data.sources.fastai_subset import SITE
from fedssl.data.sources.imagenette import Imagenette
from fedssl.data.sources.imagewoof import Imagewoof
from fedssl.data.sources.mnist import MNIST
from fedssl.data.sources.stl10 import STL10
from fedssl.data.sources.svhn import SVHN


def some_images(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_digits_are_the_real_ones():
    data = Digits().dataset(0)
    everything = np.concatenate([data.train.images, data.held_out.images])
    assert everything.shape == (1797, 1, 8, 8)
    assert everything.dtype == np.uint8
    assert everything.max() == 255
    pixels = everything / 255
    assert abs(pixels.mean() - data.spec.mean[0]) < 0.001
    assert abs(pixels.std() - data.spec.std[0]) < 0.001
    assert not data.spec.flips


def test_digits_are_those_of_scikit_learn():
    theirs, raw = load_digits(), Digits().read()
    (block,) = raw.train
    levels = np.rint(theirs.images * (255 / 16))
    assert np.array_equal(block.images[:, 0], levels)
    assert np.array_equal(block.labels, theirs.target)


def test_train_size_cuts_and_is_checked():
    assert len(Digits(train_size=100).dataset(0).train) == 100
    with pytest.raises(InputError, match=r"data.train_size: is 5000, but there are 1437"):
        Digits(train_size=5000).dataset(0)


def test_a_validation_split_of_nothing_is_refused():
    with pytest.raises(
        InputError, match=r"data.validation: is 0.0003, which is none of 1437 images"
    ):
        Digits(validation=0.0003).dataset(0)


class Numbered(Source):
    """Images whose first pixels say which they are: labels[i] is the class of the i-th, -1 for none."""

    labels: tuple[int, ...]
    has_test: bool = False

    def read(self):
        def block(labels, part):
            pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
            pixels[:, 0, 0, 0] = part
            pixels[:, 0, 0, 1:] = np.arange(len(labels))[:, None] // [256, 1] % 256
            return Block(pixels, np.array(labels))

        test = [block([0, 1, 2], 1)] if self.has_test else None
        return Raw(("a", "b", "c"), [block(self.labels, 0)], test, flips=False)


def ids(images):
    return {tuple(pixels) for pixels in images.images.reshape(len(images), 3)}


@settings(max_examples=30, deadline=None)
@given(
    labels=st.lists(st.integers(-1, 2), max_size=60),
    validation=st.sampled_from([0.0, 0.3]),
    train_size=st.sampled_from([None, 5]),
    has_test=st.booleans(),
    seed=st.integers(0, 3),
)
def test_splits_never_overlap_and_hold_only_images_of_known_class_out(
    labels, validation, train_size, has_test, seed
):
    labels = (*labels, *[0, 1, 2] * 10)
    source = Numbered(
        labels=labels, has_test=has_test, validation=validation, train_size=train_size
    )
    data = source.dataset(seed)
    train, held_out = ids(data.train), ids(data.held_out)
    assert len(train) == len(data.train)
    assert len(held_out) == len(data.held_out) > 0
    assert not train & held_out
    assert (data.held_out.labels >= 0).all()
    assert data.held_out_name == ("validation" if validation else "test")
    if train_size is None:
        assert int((data.train.labels == UNKNOWN).sum()) == labels.count(-1)
    else:
        assert len(data.train) == train_size
    for part, images in enumerate([data.train, data.held_out]):
        is_test = has_test and part == 1 and not validation
        for pixels, label in zip(images.images.reshape(-1, 3), images.labels, strict=True):
            row = int(pixels[1]) * 256 + int(pixels[2])
            assert pixels[0] == is_test
            assert label == (row if is_test else labels[row])
    again = source.dataset(seed)
    np.testing.assert_array_equal(again.train.images, data.train.images)
    np.testing.assert_array_equal(again.held_out.images, data.held_out.images)


def test_validation_images_are_no_test_images_of_data_without_any_of_its_own():
    labels = tuple([0, 1, 2] * 20)
    test = ids(Numbered(labels=labels).dataset(0).held_out)
    data = Numbered(labels=labels, validation=0.25).dataset(0)
    assert not test & (ids(data.held_out) | ids(data.train))


def test_the_test_split_of_data_without_one_is_stratified():
    labels = tuple([0] * 100 + [1] * 50 + [2] * 10)
    held_out = Numbered(labels=labels, test_share=0.2).dataset(1).held_out
    assert np.bincount(held_out.labels).tolist() == [20, 10, 2]


def test_a_class_of_one_image_cannot_be_split():
    with pytest.raises(InputError, match=r"data.test_share: .*'c' has 1 images"):
        Numbered(labels=(0, 0, 0, 1, 1, 1, 2)).dataset(0)


def idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


MNIST_KINDS = pytest.mark.parametrize("source", [MNIST, FashionMNIST])


@MNIST_KINDS
def test_mnist_and_fashion_mnist_read_torchvisions_layout(source, tmp_path):
    raw = tmp_path / source.__name__ / "raw"
    raw.mkdir(parents=True)
    images = some_images(70, 28, 28)
    labels = np.arange(70, dtype=np.uint8) % 10
    for name, rows in (("train", slice(50)), ("t10k", slice(50, None))):
        idx(raw / f"{name}-images-idx3-ubyte", images[rows])
        idx(raw / f"{name}-labels-idx1-ubyte", labels[rows])
    data = source(root=tmp_path).dataset(0)
    np.testing.assert_array_equal(data.train.images, images[:50, None])
    np.testing.assert_array_equal(data.held_out.images, images[50:, None])
    np.testing.assert_array_equal(data.held_out.labels, labels[50:])
    assert data.class_names[0] == ("0" if source is MNIST else "T-shirt/top")
    assert data.spec.flips == (source is FashionMNIST)


@MNIST_KINDS
def test_broken_mnist_is_one_clear_error(source, tmp_path):
    raw = tmp_path / source.__name__ / "raw"
    raw.mkdir(parents=True)
    for name in ("train", "t10k"):
        for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (raw / f"{name}-{part}").write_bytes(gzip.compress(b"not idx"))
    with pytest.raises(InputError, match=r"data.root"):
        source(root=tmp_path).dataset(0)


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (MNIST, "MNIST/raw"),
        (FashionMNIST, "FashionMNIST/raw"),
        (CIFAR10, "cifar-10-batches-py"),
        (CIFAR100, "cifar-100-python"),
        (SVHN, "train_32x32.mat in ROOT|train_32x32.mat, test_32x32.mat"),
        (STL10, "stl10_binary"),
        (Imagenette, "imagenette2-160"),
        (Imagewoof, "imagewoof2-160"),
    ],
)
def test_missing_data_says_how_to_get_it(source, wanted, tmp_path):
    with pytest.raises(InputError, match=rf"data.root: .*download=true.*({wanted})") as caught:
        source(root=tmp_path).dataset(0)
    assert str(tmp_path) in str(caught.value)


def lift_checksums(monkeypatch):
    """Let torchvision take our files for the published ones; that they are there is still checked."""
    for reader in (datasets.CIFAR10, datasets.CIFAR100, datasets.STL10):
        for part in ("train_list", "test_list"):
            files = [[name, None] for name, _ in getattr(reader, part)]
            monkeypatch.setattr(reader, part, files)
        if reader is not datasets.STL10:
            monkeypatch.setattr(reader, "meta", reader.meta | {"md5": None})
    splits = {name: [url, file, None] for name, (url, file, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)


CIFAR10_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
CIFAR100_FILES = ["train", "test"]


def write_cifar(
    folder, images, files=CIFAR10_FILES, labels="labels", names="label_names", classes=10
):
    """Write torchvision's files, as many images in each; images (F, n, 3, 32, 32), labels count through."""
    folder.mkdir()
    for name, part in zip(files, images, strict=True):
        counted = [i % classes for i in range(len(part))]
        rows = {"data": part.reshape(len(part), -1), labels: counted}
        (folder / name).write_bytes(pickle.dumps(rows))
    meta = "meta" if "train" in files else "batches.meta"
    (folder / meta).write_bytes(pickle.dumps({names: [f"class {i}" for i in range(classes)]}))


def test_cifar10_reads_torchvisions_layout(tmp_path, monkeypatch):
    lift_checksums(monkeypatch)
    images = some_images(6, 12, 3, 32, 32)
    write_cifar(tmp_path / "cifar-10-batches-py", images)
    data = CIFAR10(root=tmp_path).dataset(0)
    np.testing.assert_array_equal(data.train.images, np.concatenate(images[:5]))
    np.testing.assert_array_equal(data.held_out.images, images[5])
    np.testing.assert_array_equal(data.held_out.labels, np.arange(12) % 10)
    assert data.train.images.dtype == np.uint8
    assert data.train.images.flags["C_CONTIGUOUS"]
    assert data.train.labels.dtype == np.int64
    assert data.class_names == tuple(f"class {i}" for i in range(10))
    assert data.spec.shape == (3, 32, 32)
    assert data.spec.flips


def test_cifar100_reads_the_fine_classes_of_torchvisions_layout(tmp_path, monkeypatch):
    lift_checksums(monkeypatch)
    images = some_images(2, 120, 3, 32, 32)
    names = {"labels": "fine_labels", "names": "fine_label_names", "classes": 100}
    write_cifar(tmp_path / "cifar-100-python", images, CIFAR100_FILES, **names)
    data = CIFAR100(root=tmp_path).dataset(0)
    np.testing.assert_array_equal(data.train.images, images[0])
    np.testing.assert_array_equal(data.held_out.images, images[1])
    np.testing.assert_array_equal(data.train.labels, np.arange(120) % 100)
    assert data.spec.num_classes == 100
    np.testing.assert_allclose(data.spec.mean, images[0].mean((0, 2, 3)) / 255, atol=1e-4)


@pytest.mark.parametrize("source", [CIFAR10, CIFAR100])
def test_damaged_cifar_is_one_clear_error(source, tmp_path):
    files = CIFAR10_FILES if source is CIFAR10 else CIFAR100_FILES
    folder = tmp_path / datasets.__dict__[source.__name__].base_folder
    write_cifar(folder, np.zeros((len(files), 1, 3, 32, 32), np.uint8), files)
    with pytest.raises(InputError, match=r"data.root: no readable CIFAR-100?"):
        source(root=tmp_path).dataset(0)  # the checksums are not those that torchvision expects


def write_svhn(root, split, images):
    """Write torchvision's file: height, width, channels, images; the digits 1 to 9 and then 0, called 10."""
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % 10 + 1
    scipy.io.savemat(root / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})


@pytest.fixture
def svhn(tmp_path, monkeypatch):
    """Images that were written in torchvision's layout, by split."""
    lift_checksums(monkeypatch)
    images = some_images(44, 3, 32, 32)
    parts = {"train": images[:20], "test": images[20:31], "extra": images[31:]}
    for split, part in parts.items():
        write_svhn(tmp_path, split, part)
    return parts


def test_svhn_reads_torchvisions_layout(tmp_path, svhn):
    data = SVHN(root=tmp_path).dataset(0)
    np.testing.assert_array_equal(data.train.images, svhn["train"])
    np.testing.assert_array_equal(data.train.labels, [*range(1, 10), 0] * 2)
    np.testing.assert_array_equal(data.held_out.images, svhn["test"])
    assert data.train.images.dtype == np.uint8
    assert data.train.images.flags["C_CONTIGUOUS"]
    assert data.train.labels.dtype == np.int64
    assert data.class_names[0] == "0"
    assert not data.spec.flips


@pytest.mark.parametrize("extra", ["unlabeled", "labeled"])
def test_svhns_extra_images_keep_their_class_but_may_be_without_label(extra, tmp_path, svhn):
    data = SVHN(root=tmp_path, extra=extra).dataset(0)
    np.testing.assert_array_equal(data.train.images, np.concatenate([svhn["train"], svhn["extra"]]))
    np.testing.assert_array_equal(data.train.labels[20:], [*range(1, 10), 0, 1, 2, 3])
    assert data.train.labelable[:20].all()
    assert (data.train.labelable[20:] == (extra == "labeled")).all()
    assert len(data.held_out) == 11


def test_missing_svhn_names_the_file_to_get(tmp_path, svhn):
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(InputError, match=r"no readable extra images of SVHN.*extra_32x32.mat"):
        SVHN(root=tmp_path, extra="unlabeled").dataset(0)


@pytest.fixture
def stl10(tmp_path, monkeypatch):
    """Images that were written in torchvision's layout: pixels by column, classes from 1."""
    lift_checksums(monkeypatch)
    images = some_images(47, 3, 96, 96)
    parts = {"train": images[:20], "test": images[20:30], "unlabeled": images[30:]}
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for split, part in parts.items():
        part.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.arange(len(part), dtype=np.uint8) % 10 + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {i}" for i in range(10)))
    return parts


def test_stl10_reads_torchvisions_layout_one_part_at_a_time(tmp_path, stl10, monkeypatch):
    monkeypatch.setattr("fedssl.data.sources.stl10.IMAGES_AT_ONCE", 5)
    data = STL10(root=tmp_path).dataset(0)
    expected = np.concatenate([stl10["train"], stl10["unlabeled"]])
    np.testing.assert_array_equal(data.train.images, expected)
    np.testing.assert_array_equal(data.train.labels, [*range(10)] * 2 + [UNKNOWN] * 17)
    np.testing.assert_array_equal(data.held_out.images, stl10["test"])
    np.testing.assert_array_equal(data.held_out.labels, range(10))
    assert data.class_names[9] == "class 9"


def test_stl10_without_its_unlabeled_images(tmp_path, stl10):
    data = STL10(root=tmp_path, unlabeled=False).dataset(0)
    np.testing.assert_array_equal(data.train.images, stl10["train"])


def test_stl10_without_class_names_is_one_clear_error(tmp_path, stl10):
    (tmp_path / "stl10_binary" / "class_names.txt").unlink()
    with pytest.raises(InputError, match=r"data.root: .*there is no class_names.txt"):
        STL10(root=tmp_path).dataset(0)


FASTAI_SUBSETS = [Imagenette, Imagewoof]


@pytest.fixture(params=FASTAI_SUBSETS, ids=lambda source: source.__name__)
def subset(request, tmp_path):
    """Plain images of other sizes, written in the published layout: brightness 20 times the class."""
    source = request.param(root=tmp_path, pixels=24)
    for split, count in (("train", 3), ("val", 2)):
        for cls, name in enumerate(sorted(source.names())):
            folder = tmp_path / f"{source.archive}-160" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new(
                    "L" if i == 2 else "RGB",
                    (160 + i, 170 + cls),
                    20 * cls if i == 2 else (20 * cls,) * 3,
                )
                image.save(folder / f"{i}.JPEG")
    return source


def test_a_subset_of_imagenet_is_read_from_its_folders_and_scaled(subset):
    data = subset.dataset(0)
    assert data.spec.shape == (3, 24, 24)
    np.testing.assert_array_equal(data.train.labels, np.repeat(np.arange(10), 3))
    np.testing.assert_array_equal(data.held_out.labels, np.repeat(np.arange(10), 2))
    brightness = data.train.images.mean((1, 2, 3))
    np.testing.assert_allclose(brightness, 20 * data.train.labels, atol=2)
    first = {"Imagenette": "tench", "Imagewoof": "Shih-Tzu"}[type(subset).__name__]
    assert (data.class_names[0], len(set(data.class_names))) == (first, 10)


def test_imagenette_is_what_torchvision_says_it_is():
    published = {wnid: names[0] for wnid, names in datasets.Imagenette._WNID_TO_CLASS.items()}
    assert Imagenette().names() == published
    for size, checksum in Imagenette.checksums.items():
        address = f"{SITE}/imagenette2-{size.removesuffix('px')}.tgz"
        assert datasets.Imagenette._ARCHIVES[size] == (address, checksum)


def test_a_damaged_image_of_a_subset_is_named(subset):
    name = sorted(subset.names())[4]
    damaged = next((subset.root / f"{subset.archive}-160" / "val" / name).iterdir())
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(
        InputError, match=rf"data.root: .*1 image cannot be read \(val/{name}/\d.JPEG: "
    ):
        subset.dataset(0)


def test_a_subset_without_one_of_its_classes_is_not_read(subset):
    name = sorted(subset.names())[9]
    shutil.rmtree(subset.root / f"{subset.archive}-160" / "val" / name)
    with pytest.raises(InputError, match=r"data.root: .*\(val has the folders "):
        subset.dataset(0)


@pytest.mark.parametrize("source", FASTAI_SUBSETS)
def test_a_subset_is_fetched_once_and_only_if_asked(source, tmp_path, monkeypatch):
    asked = []

    def fetch(address, root, md5):
        asked.append((address, root, md5))
        raise RuntimeError("no network")

    monkeypatch.setattr(datasets.utils, "download_and_extract_archive", fetch)
    with pytest.raises(InputError, match="no readable"):
        source(root=tmp_path).dataset(0)
    assert not asked
    with pytest.raises(InputError, match="no network"):
        source(root=tmp_path, size="320px", download=True).dataset(0)
    address = f"{SITE}/{source.archive}-320.tgz"
    assert asked == [(address, str(tmp_path), source.checksums.get("320px"))]


def test_published_data_is_prepared_once_whatever_cuts_it(tmp_path, svhn, monkeypatch):
    SVHN(root=tmp_path).dataset(0)
    monkeypatch.setattr(SVHN, "read", lambda self: pytest.fail("read again"))
    assert len(SVHN(root=tmp_path, train_size=7, download=True).dataset(1).train) == 7


def test_sources_are_found_by_name():
    """And a module of the package that holds none is no source."""
    found = set(SOURCES.names())
    published = {
        "cifar10",
        "cifar100",
        "digits",
        "fashion_mnist",
        "imagenette",
        "imagewoof",
        "mnist",
    }
    assert published | {"stl10", "svhn", "folder", "hf", "npz"} <= found
    assert not {"base", "fastai_subset", "torchvision_files", "own_images"} & found
