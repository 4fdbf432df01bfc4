"""Data sets in the Hub's layouts are read exactly, or counted, named and refused; the network is never used."""

import gc
import io
import socket
import sys
import tempfile

import datasets
import numpy as np
import pytest
from PIL import Image

from fedssl.core.errors import InputError
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.hf import Hf
from tests.data.own_images import colors, refused, save_classes


@pytest.fixture(autouse=True)
def _alone(tmp_path, monkeypatch):
    """Keep what the library writes within the test, and the test off the network."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kw: pytest.fail(f"asked {args[0]}"))


def encoded(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


CLASSES = datasets.ClassLabel(names=["cat", "dog"])


def table(count=10, label=CLASSES, labels=None, seed=0, rows=None, **columns):
    """Return a split of noise; `columns` are (feature, values)."""
    image = [encoded(pixels) for pixels in colors(count, seed=seed)] if rows is None else rows
    labels = [i % 2 for i in range(count)] if labels is None else labels
    features = {"image": datasets.Image(), "label": label}
    values = {"image": image, "label": labels}
    for name, (feature, given) in columns.items():
        features[name], values[name] = feature, given
    return datasets.Dataset.from_dict(values, features=datasets.Features(features))


def on_disk(folder, **splits):
    """Write splits as the Hub keeps them, one parquet file each."""
    (folder / "data").mkdir(parents=True)
    for name, split in splits.items():
        split.to_parquet(str(folder / "data" / f"{name}-00000-of-00001.parquet"))
    return Hf(name=str(folder))


def test_parquet_files_are_read_exactly(tmp_path):
    source = on_disk(tmp_path / "hub", train=table(10), test=table(4, seed=1))
    data = source.dataset(0)
    np.testing.assert_array_equal(data.train.images, colors(10).transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(data.held_out.images, colors(4, seed=1).transpose(0, 3, 1, 2))
    assert data.train.labels.tolist() == [0, 1] * 5
    assert data.class_names == ("cat", "dog")
    assert data.notes == ()


def test_the_librarys_copy_of_a_folder_goes_with_its_use(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = on_disk(tmp_path / "hub", train=table(20), test=table(4, seed=1))
    assert len(source.dataset(0).train) == 20
    gc.collect()
    assert not list(tmp_path.glob("fedssl-*"))
    assert not (tmp_path / "hf_cache").exists()


def test_a_lone_split_is_divided_for_test(tmp_path):
    data = on_disk(tmp_path / "hub", train=table(20)).dataset(0)
    assert (len(data.train), len(data.held_out)) == (16, 4)
    assert np.bincount(data.held_out.labels).tolist() == [2, 2]


def test_a_folder_of_images_in_the_hubs_layout(tmp_path):
    written = save_classes(tmp_path / "own")
    data = Hf(name=str(tmp_path / "own")).dataset(0)
    assert data.class_names == ("cat", "dog")
    everything = np.concatenate([data.train.images, data.held_out.images])
    assert {image.tobytes() for image in everything} == {image.tobytes() for image in written}


@pytest.mark.parametrize("lone", [True, False])
def test_what_save_to_disk_wrote(tmp_path, lone):
    saved = table(20) if lone else datasets.DatasetDict(train=table(20), test=table(4))
    saved.save_to_disk(str(tmp_path / "saved"))
    data = Hf(name=str(tmp_path / "saved")).dataset(0)
    assert (len(data.train), len(data.held_out)) == ((16, 4) if lone else (20, 4))


@pytest.mark.parametrize(
    ("feature", "labels", "names"),
    [
        (datasets.Value("string"), ["dog", "cat"] * 5, ("cat", "dog")),
        (datasets.Value("int64"), [7, 3] * 5, ("3", "7")),
        (datasets.Value("bool"), [True, False] * 5, ("False", "True")),
    ],
    ids=["text", "numbers", "truth"],
)
def test_classes_may_be_plain_values(tmp_path, feature, labels, names):
    source = on_disk(tmp_path / "hub", train=table(10, feature, labels))
    entry = source.prepare()
    assert entry.meta["class_names"] == list(names)
    assert entry.part("train").labels.tolist() == [1, 0] * 5


def test_rows_without_class_and_a_split_without_any_are_unlabeled(tmp_path):
    text = datasets.Value("string")
    train = table(10, text, ["dog", None] + ["cat", "dog"] * 4)
    unlabeled = table(3, seed=1).remove_columns("label")
    entry = on_disk(tmp_path / "hub", train=train, unlabeled=unlabeled).prepare()
    assert entry.part("train").labels.tolist() == [1, UNKNOWN, *[0, 1] * 4, *[UNKNOWN] * 3]
    numbers = table(4, datasets.Value("int64"), [-1, 0, 1, 0])
    entry = on_disk(tmp_path / "numbers", train=numbers).prepare()
    assert entry.part("train").labels.tolist() == [UNKNOWN, 0, 1, 0]


def test_other_columns_of_text_and_numbers_are_kept(tmp_path):
    text = datasets.Value("string")
    train = table(
        4,
        writer=(text, ["w1", "w2", None, "w1"]),
        year=(datasets.Value("int32"), [1, 2, 2, 1]),
        thumbnail=(datasets.Value("binary"), [b"x"] * 4),
        sizes=(datasets.Sequence(datasets.Value("int32")), [[1, 2]] * 4),
    )
    unlabeled = table(2, seed=1).remove_columns("label")  # nor does it have the columns
    data = on_disk(tmp_path / "hub", train=train, unlabeled=unlabeled).prepare()
    assert data.meta["column_values"] == {"writer": ["w1", "w2", ""], "year": ["1", "2", ""]}
    assert data.part("train").columns["writer"].tolist() == [0, 1, 2, 0, 2, 2]


def bad_rows():
    whole = encoded(colors()[0])["bytes"]
    return [
        *[encoded(pixels) for pixels in colors(6)],
        {"bytes": whole[: len(whole) // 2], "path": None},
        {"bytes": b"", "path": None},
        None,
        encoded(np.zeros((8, 9, 3), np.uint8)),
        encoded(np.zeros((8, 8), np.uint8)),
        encoded(np.zeros((8, 8), np.uint16)),
    ]


def test_bad_rows_are_counted_named_and_refused_or_left_out(tmp_path):
    three = datasets.ClassLabel(names=["cat", "dog", "emu"])
    train = table(label=three, labels=[i % 2 for i in range(12)], rows=bad_rows())
    test = table(3, three, [0, 2, -1])
    splits = datasets.DatasetDict(train=train, test=test)
    splits.save_to_disk(str(tmp_path / "hub"))
    source = Hf(name=str(tmp_path / "hub"))
    refused(
        source,
        "3 images cannot be read (train row 6: ",
        "train row 7: none of the formats BMP, ",
        "1 image is not 8x8 as most are (data.size scales them) (train row 9)",
        "2 images have 1 channels, not 3 (data.channels = 3 converts them) (train row 10, train row 11)",
        "1 class without training images (emu)",
        "2 test images are of no class there is to learn (test row 1, test row 2)",
    )
    data = source.model_copy(update={"bad_images": "skip"}).dataset(0)
    np.testing.assert_array_equal(data.train.images, colors(6).transpose(0, 3, 1, 2))
    assert data.class_names == ("cat", "dog")
    assert len(data.held_out) == 1


def test_columns_that_are_not_clear_are_asked_for(tmp_path):
    coarse = (datasets.ClassLabel(names=["animal", "plant"]), [0, 1] * 5)
    source = on_disk(tmp_path / "hub", train=table(10, coarse=coarse))
    with pytest.raises(InputError, match=r"data.label_column: .* has 2 columns .*image, label, c"):
        source.prepare()
    named = source.model_copy(update={"label_column": "coarse"})
    assert named.prepare().meta["class_names"] == ["animal", "plant"]
    with pytest.raises(InputError, match=r"data.label_column: there is no column 'lable'.*'label'"):
        source.model_copy(update={"label_column": "lable"}).prepare()
    with pytest.raises(InputError, match=r"data.label_column: column 'image' of .* holds Image"):
        source.model_copy(update={"label_column": "image"}).prepare()


@pytest.mark.parametrize(
    ("feature", "values", "kind"),
    [
        (datasets.Value("float32"), [0.5, 1.5], "float"),
        (datasets.Sequence(datasets.Value("int64")), [[0], [1]], "List|Sequence"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, feature, values, kind):
    source = on_disk(tmp_path / "hub", train=table(10, feature, values * 5))
    with pytest.raises(InputError, match=rf"data.label_column: column 'label' .* holds ({kind})"):
        source.prepare()


def test_bytes_of_images_may_lie_in_a_plain_column(tmp_path):
    picture = (datasets.Value("binary"), [encoded(pixels)["bytes"] for pixels in colors(4, seed=2)])
    train = table(4, picture=picture).remove_columns("image")
    source = on_disk(tmp_path / "hub", train=train)
    with pytest.raises(InputError, match=r"data.image_column: .* has 0 columns that could be it"):
        source.prepare()
    named = source.model_copy(update={"image_column": "picture"})
    images = named.prepare().part("train").images
    np.testing.assert_array_equal(images, colors(4, seed=2).transpose(0, 3, 1, 2))


def test_data_that_is_not_there_is_one_clear_error(tmp_path):
    for name in (str(tmp_path / "gone"), "./gone", "a/b/c"):
        with pytest.raises(InputError, match=r"data.source: hf:.*there is no such folder"):
            Hf(name=name).prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data.source: hf:.*empty: cannot be loaded: "):
        Hf(name=str(tmp_path / "empty")).prepare()
    assert list(Hf(name="mnist").files()) == []


def test_a_data_set_without_training_images_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no split 'train'; it has \['test'\]"):
        on_disk(tmp_path / "hub", test=table(4)).prepare()


def test_without_the_library_the_remedy_is_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"needs the 'datasets' library.*pip install 'fedssl\[hf\]'"
    ):
        Hf(name=str(tmp_path)).prepare()
