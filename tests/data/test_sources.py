"""Sources: real images, the right shapes, and a clear word when data is missing."""

import gzip
import struct

import numpy as np
import pytest

from fedssl.data.sources.base import SOURCES
from fedssl.data.sources.digits import Digits
from fedssl.data.sources.fashion_mnist import FashionMNIST
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


def test_sources_are_found_by_name():
    assert {"digits", "fashion_mnist"} <= set(SOURCES.names())
