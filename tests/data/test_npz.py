"""A user's own arrays are read exactly as written, or refused in one error that says what does not fit."""

import numpy as np
import pytest

from fedssl.core.errors import InputError
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.npz import Npz
from tests.data.own_images import colors, refused


def write_npz(path, **changes):
    images = colors(20)
    arrays = {"images": images, "labels": np.arange(20) % 2} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return Npz(name=str(path))


def test_arrays_are_read_exactly(tmp_path):
    test = colors(4, seed=1)
    source = write_npz(
        tmp_path / "x.npz",
        test_images=test,
        test_labels=[0, 1, 1, 0],
        class_names=["cat", "dog"],
        site=np.repeat(["x", "y"], 10),
        test_site=np.repeat(["z"], 4),
        remark="of no length",
    )
    data = source.dataset(0)
    np.testing.assert_array_equal(data.train.images, colors(20).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.held_out.images, test.transpose(0, 3, 1, 2))
    assert data.held_out.labels.tolist() == [0, 1, 1, 0]
    assert data.class_names == ("cat", "dog")
    assert dict(data.column_values) == {"site": ("x", "y", "z")}
    assert data.train.columns["site"].tolist() == [0] * 10 + [1] * 10
    assert data.held_out.columns["site"].tolist() == [2] * 4


def test_gray_arrays_unlabeled_images_and_no_class_names(tmp_path):
    labels = np.arange(20) % 2
    labels[::5] = UNKNOWN
    source = write_npz(tmp_path / "x.npz", images=colors(20)[..., 0], labels=labels)
    data = source.dataset(0)
    assert data.spec.shape == (1, 8, 8)
    assert data.class_names == ("0", "1")
    assert (data.train.labels == UNKNOWN).sum() == 4
    assert (data.held_out.labels >= 0).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": None}, "has no array 'labels'; it has ['images']"),
        ({"images": colors(20) / 255}, "images is float64 of shape (20, 8, 8, 3)"),
        ({"images": colors(20).astype(np.uint16)}, "images is uint16"),
        ({"images": colors(20)[0, 0]}, "images is uint8 of shape (8, 3)"),
        (
            {"images": colors(20).transpose(0, 3, 1, 2)},
            "images has 8 channels; there must be 1 or 3",
        ),
        ({"images": colors(20)[:, :0]}, "no pixels"),
        ({"images": colors(19)}, "labels is int64 of shape (20,); it must be integers, (19,)"),
        ({"labels": np.arange(20) / 2}, "labels is float64"),
        ({"labels": np.array(["cat"] * 20)}, "labels is <U3"),
        ({"labels": np.arange(20) - 2}, "labels has -2"),
        ({"labels": np.full(20, 10**9)}, "has labels up to 1000000000, but 20 images"),
        ({"class_names": ["cat"]}, "has class_names of shape (1,), but labels up to 1"),
        ({"class_names": "cat"}, "has class_names of shape ()"),
        ({"test_images": colors(2)}, "has no array 'test_labels'"),
        (
            {"test_images": colors(2), "test_labels": [0, 1], "site": np.arange(20)},
            "training images have the columns ['site'], test images []",
        ),
        ({"images": colors(0), "labels": np.zeros(0, int)}, "there are no training images"),
        (
            {"test_images": colors(0), "test_labels": np.zeros(0, int)},
            "there are no test images",
        ),
        ({"labels": np.zeros(20, int)}, "fewer than two"),
        (
            {"test_images": colors(2, side=9), "test_labels": [0, 1]},
            "training images are (3, 8, 8), test images (3, 9, 9)",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes, said):
    source = write_npz(tmp_path / "x.npz", **changes)
    with pytest.raises(InputError) as caught:
        source.prepare()
    assert caught.value.field == "data.source"
    assert f"npz:{tmp_path / 'x.npz'}" in str(caught.value)
    assert said in str(caught.value)


def test_classes_without_images_and_unknown_test_classes_of_arrays(tmp_path):
    arrays = {
        "labels": np.arange(20) % 2 * 2,
        "class_names": ["cat", "dog", "emu"],
        "test_images": colors(3),
        "test_labels": [0, 1, UNKNOWN],
    }
    source = write_npz(tmp_path / "x.npz", **arrays)
    refused(
        source,
        "1 class without training images (dog)",
        "2 test images are of no class there is to learn (test row 1, test row 2)",
    )
    data = source.model_copy(update={"bad_images": "skip"}).dataset(0)
    assert data.class_names == ("cat", "emu")
    assert data.held_out.labels.tolist() == [0]


def files_that_are_no_arrays(folder):
    """Yield paths of files that numpy reads in part or not at all."""
    names = ("empty", "text", "cut", "one.npy", "objects")
    paths = {name: folder / f"{name}.npz" if "." not in name else folder / name for name in names}
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("no arrays")
    np.savez_compressed(paths["cut"], images=colors(20), labels=np.arange(20) % 2)
    whole = bytearray(paths["cut"].read_bytes())
    whole[200:600] = bytes(400)
    paths["cut"].write_bytes(whole)
    np.save(paths["one.npy"], colors(2))
    np.savez(paths["objects"], images=np.array([{}, None], dtype=object), labels=[0, 1])
    return paths


@pytest.mark.parametrize("name", ["empty", "text", "cut", "one.npy", "objects"])
def test_files_that_are_no_arrays_are_refused(tmp_path, name):
    path = files_that_are_no_arrays(tmp_path)[name]
    with pytest.raises(InputError, match=r"data.source: npz:.*cannot be read.*numpy.savez"):
        Npz(name=str(path)).prepare()


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such file; check the path"):
        Npz(name=str(tmp_path / "gone.npz")).prepare()
