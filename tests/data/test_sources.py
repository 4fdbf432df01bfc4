"""Sources: real images, the right shapes, and a clear word when data is missing."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import scipy.io
from torchvision import datasets

from fedssl.data.sources.base import SOURCES
from fedssl.data.sources.cifar10 import CIFAR10
from fedssl.data.sources.digits import Digits
from fedssl.data.sources.fashion_mnist import FashionMNIST
from fedssl.data.sources.svhn import SVHN
from fedssl.errors import InputError


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


def test_train_size_cuts_and_is_checked():
    assert len(Digits(train_size=100).dataset(0).train) == 100
    with pytest.raises(InputError, match=r"data.train_size: is 5000, but there are 1437"):
        Digits(train_size=5000).dataset(0)


def test_a_validation_split_of_nothing_is_refused():
    with pytest.raises(
        InputError, match=r"data.validation: is 0.0003, which is none of 1437 images"
    ):
        Digits(validation=0.0003).dataset(0)


def idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def test_fashion_mnist_reads_torchvisions_layout(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, count in (("train", 50), ("t10k", 20)):
        idx(
            raw / f"{name}-images-idx3-ubyte", generator.integers(0, 256, (count, 28, 28), np.uint8)
        )
        idx(raw / f"{name}-labels-idx1-ubyte", generator.integers(0, 10, count, np.uint8))
    data = FashionMNIST(root=tmp_path).dataset(0)
    assert data.train.images.shape == (50, 1, 28, 28)
    assert len(data.held_out) == 20
    assert data.class_names[0] == "T-shirt/top"


def test_missing_fashion_mnist_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"data.root: .*download=true.*FashionMNIST/raw"):
        FashionMNIST(root=tmp_path).dataset(0)


def test_broken_fashion_mnist_is_one_clear_error(tmp_path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("train", "t10k"):
        for part in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            (raw / f"{name}-{part}").write_bytes(gzip.compress(b"not idx"))
    with pytest.raises(InputError, match=r"data.root"):
        FashionMNIST(root=tmp_path).dataset(0)


def lift_checksums(monkeypatch):
    """Let torchvision take our files for the published ones; that they are there is still checked."""
    for part in ("train_list", "test_list"):
        files = [[name, None] for name, _ in getattr(datasets.CIFAR10, part)]
        monkeypatch.setattr(datasets.CIFAR10, part, files)
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": None})
    splits = {name: [url, file, None] for name, (url, file, _) in datasets.SVHN.split_list.items()}
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)


CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_cifar(root, images):
    """Write torchvision's files, as many images in each; images (6, n, 3, 32, 32), labels count through."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for name, part in zip(CIFAR_FILES, images, strict=True):
        rows = {"data": part.reshape(len(part), -1), "labels": [i % 10 for i in range(len(part))]}
        (folder / name).write_bytes(pickle.dumps(rows))
    names = [f"class {i}" for i in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))


def test_cifar10_reads_torchvisions_layout(tmp_path, monkeypatch):
    lift_checksums(monkeypatch)
    images = np.random.default_rng(0).integers(0, 256, (6, 12, 3, 32, 32), np.uint8)
    write_cifar(tmp_path, images)
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


def test_missing_cifar10_says_how_to_get_it(tmp_path):
    with pytest.raises(InputError, match=r"data.root: .*download=true.*cifar-10-batches-py"):
        CIFAR10(root=tmp_path).dataset(0)


def test_damaged_cifar10_is_one_clear_error(tmp_path):
    write_cifar(tmp_path, np.zeros((6, 1, 3, 32, 32), np.uint8))  # not what torchvision expects
    with pytest.raises(InputError, match=r"data.root: no readable CIFAR-10"):
        CIFAR10(root=tmp_path).dataset(0)


def write_svhn(root, split, images):
    """Write torchvision's file: height, width, channels, images; the digits 1 to 9 and then 0, called 10."""
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % 10 + 1
    scipy.io.savemat(root / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": labels})


def test_svhn_reads_torchvisions_layout(tmp_path, monkeypatch):
    lift_checksums(monkeypatch)
    generator = np.random.default_rng(0)
    parts = {
        split: generator.integers(0, 256, (count, 3, 32, 32), np.uint8)
        for split, count in (("train", 20), ("test", 11), ("extra", 13))
    }
    for split, images in parts.items():
        write_svhn(tmp_path, split, images)
    data = SVHN(root=tmp_path).dataset(0)
    np.testing.assert_array_equal(data.train.images, parts["train"])
    np.testing.assert_array_equal(data.train.labels, [*range(1, 10), 0] * 2)
    np.testing.assert_array_equal(data.held_out.images, parts["test"])
    assert data.train.images.dtype == np.uint8
    assert data.train.images.flags["C_CONTIGUOUS"]
    assert data.train.labels.dtype == np.int64
    assert data.class_names[0] == "0"
    assert not data.spec.flips
    more = SVHN(root=tmp_path, extra=True).dataset(0)
    np.testing.assert_array_equal(
        more.train.images, np.concatenate([parts["train"], parts["extra"]])
    )
    np.testing.assert_array_equal(more.train.labels[20:], [*range(1, 10), 0, 1, 2, 3])
    assert len(more.held_out) == 11


def test_missing_svhn_names_the_file_to_get(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"data.root: .*download=true.*train_32x32.mat in ROOT"):
        SVHN(root=tmp_path).dataset(0)
    lift_checksums(monkeypatch)
    for split in ("train", "test"):
        write_svhn(tmp_path, split, np.zeros((1, 3, 32, 32), np.uint8))
    with pytest.raises(InputError, match=r"no readable extra images of SVHN.*extra_32x32.mat"):
        SVHN(root=tmp_path, extra=True).dataset(0)


def test_sources_are_found_by_name():
    """And a module of the package that holds none is no source."""
    assert {"cifar10", "digits", "fashion_mnist", "svhn"} <= set(SOURCES.names())
    assert not {"base", "torchvision_files"} & set(SOURCES.names())
