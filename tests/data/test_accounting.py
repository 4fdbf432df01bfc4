"""Every file of a user's data is used, named as left out, or refused in one error; no file vanishes in silence."""

import io
import os
import re
import socket
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fedssl.core.errors import InputError
from fedssl.data import cache, decode, formats, splits
from fedssl.data import target as targets
from fedssl.data.flaws import Flaws
from fedssl.data.private import prepare_private
from fedssl.data.shard import ImageSpec
from fedssl.data.sources.folder import Folder
from fedssl.data.sources.hf import Hf
from fedssl.data.sources.npz import Npz
from fedssl.data.target import MOST_PIXELS, Reading, Target
from fedssl.data.terms import Terms
from fedssl.data.unseen import read_blocks
from tests.data.own_images import colors, refused, save, save_classes

FEW = settings(max_examples=25, deadline=None, database=None)

TERMS = Terms(ImageSpec((3, 8, 8), 2, (0.1,) * 3, (0.3,) * 3, flips=True), ("cat", "dog"))


@pytest.fixture
def root(tmp_path):
    save_classes(tmp_path / "own")
    return tmp_path / "own"


def png():
    file = io.BytesIO()
    Image.fromarray(colors()[0]).save(file, "png")
    return file.getvalue()


PNG = png()


def stack(kind):
    file = io.BytesIO()
    frames = [Image.fromarray(pixels) for pixels in colors(3)]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


FLAWED = {
    "phone.heic": PNG,
    "scan.DCM": PNG,
    "copy.png.bak": PNG,
    "copy.jpg~": PNG,
    "copy.jpg_original": PNG,
    "volume.nii.gz": b"x",
    "picture": PNG,
    "IM.0001": PNG,
    "stack.tif": stack("tiff"),
    "film.gif": stack("gif"),
    "film.png": stack("png"),
    "film.webp": stack("webp"),
    "postscript.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    "empty.jpg": b"",
}
"""Files that are refused, or said to be left out."""

HARMLESS = ("README.txt", "README", "labels.csv", "001.png.json", "photo.xmp", "x.py")
"""Files that are left out and said to be, whatever data.bad_images is."""

UNSAID = ("Thumbs.db", ".DS_Store", "desktop.ini", "._001.png")
"""Files that nobody put there."""

ENTRIES = st.lists(
    st.tuples(
        st.sampled_from(["cat", "dog", "cat/site a", "dog/deep/er", ""]),
        st.sampled_from(
            [*FLAWED, *HARMLESS, *UNSAID, "new.png", "ümlaut\x1b[1m.PNG", ".hidden.png"]
        ),
    ),
    max_size=8,
    unique=True,
)


def left_out(notes):
    return sum(int(note.split(" ")[0].replace(",", "")) for note in notes)


@FEW
@given(ENTRIES)
def test_the_files_of_a_folder_are_used_and_left_out_ones_together(entries):
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, f"{place}/cache")
        root = Path(place, "own")
        save_classes(root)
        for folder, name in entries:
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(FLAWED.get(name, PNG))
        said = [path for path in root.rglob("*") if path.is_file() and path.name not in UNSAID]
        meta = Folder(name=str(root), bad_images="skip").prepare().part("train")
        notes = Folder(name=str(root), bad_images="skip").dataset(0).notes
        assert len(meta) + left_out(notes) == len(said)
        assert all(note.isprintable() for note in notes)
        flawed = [
            n
            for f, n in entries
            if n in FLAWED or (not f and n.lower().endswith("png") and n[0] != ".")
        ]
        if flawed:
            refused(Folder(name=str(root)))
        else:
            assert len(Folder(name=str(root)).prepare().part("train")) == len(meta)


SPLIT_NAMES = sorted(
    {form(name) for name in splits.ROLES for form in (str, str.title, str.upper, "{}_set".format)}
)


@FEW
@given(
    st.lists(
        st.sampled_from([*SPLIT_NAMES, "bus", "seg_train", "seg_test", "extra"]),
        min_size=1,
        max_size=4,
        unique=True,
    )
)
def test_folders_called_as_splits_are_never_classes_nor_dropped(names):
    """Each folder holds as many images of two classes as its place in the list says."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, f"{place}/cache")
        root = Path(place, "own")
        for name in names:
            for cls in ("cat", "dog"):
                for i in range(2):
                    save(root / name / cls / f"{i}.png", colors(seed=i)[0])
        try:
            data = Folder(name=str(root), test_share=0.5).dataset(0)
        except InputError:
            return
        if not any(splits.role_of(name) in ("train", "test", "validation") for name in names):
            assert set(data.class_names) <= set(names)
            return
        assert data.class_names == ("cat", "dog")
        assert len(data.train) + len(data.held_out) + left_out(data.notes) == 4 * len(names)
        read = data.remarks[0].split("not read: ")[0]
        for name in names:
            if splits.role_of(name) == "train":
                assert f"training images: {name}/" in read


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "valid"),
        ("trn", "dev"),
        ("Train_Set", "hold-out"),
        ("train", "Eval"),
    ],
)
def test_usual_names_of_splits_are_understood_and_said(root, tmp_path, train, test):
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / train)
    for name in ("cat", "dog"):
        save(whole / test / name / "t.png", colors()[0])
    save(whole / "Unlabelled" / "u.png", colors()[0])
    data = Folder(name=str(whole)).dataset(0)
    assert (len(data.train), len(data.held_out)) == (21, 2)
    assert data.remarks == (f"training images: {train}/, test images: {test}/",)
    prepared = prepare_private(str(whole), TERMS, Reading(), skip=False)
    assert [len(prepared.part(part)) for part in ("train", "test")] == [21, 2]


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (("train/a", "bus/a"), "lie side by side"),
        (("train/a", "Train/a"), "are the same split"),
        (("train/a", "training/a"), "are both for training"),
        (("val/a", "bus/a"), "but no 'train'"),
        (("seg_train/a", "seg_test/a"), "look like splits"),
        (("imagesTr/a", "imagesTs/a"), "look like splits"),
        (("train1/a", "train2/a"), "look like splits"),
        (("bus/train", "bus/test", "car/train"), "splits below"),
    ],
)
def test_folders_that_may_be_splits_or_classes_are_refused(tmp_path, folders, said):
    for folder in folders:
        save(tmp_path / "own" / folder / "x.png", colors()[0])
    for prepare in (
        Folder(name=str(tmp_path / "own")).prepare,
        lambda: prepare_private(str(tmp_path / "own"), TERMS, Reading(), skip=False),
    ):
        with pytest.raises(InputError, match=said):
            prepare()


@pytest.mark.parametrize(
    "names", [("train station", "test tube"), ("bullet_train", "bus"), ("trainer", "tester")]
)
def test_words_for_splits_within_names_of_classes_are_fine(tmp_path, names):
    for name in names:
        save(tmp_path / "own" / name / "x.png", colors()[0])
    assert Folder(name=str(tmp_path / "own")).prepare().meta["class_names"] == sorted(names)


def test_only_regular_files_are_opened(root):
    os.mkfifo(root / "cat" / "pipe.png")
    (root / "cat" / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        where = os.open(root / "dog", os.O_RDONLY)
        server.bind(f"/proc/self/fd/{where}/s.png")
        os.close(where)
        refused(Folder(name=str(root)), "3 images cannot be read", "pipe.png: not a regular file")
    flaws = Flaws()
    target = Target((8, 8), 3, True, True, "", "")
    assert list(read_blocks([root / "cat" / "pipe.png"], ("cat", "dog"), target, flaws)) == []
    assert "not a regular file" in flaws.notes()[0]


def test_links_that_leave_the_folder_are_said(root, tmp_path):
    save(tmp_path / "other" / "x.png", colors()[0])
    (root / "cat" / "out.png").symlink_to(tmp_path / "other" / "x.png")
    (root / "dog" / "away").symlink_to(tmp_path / "other", target_is_directory=True)
    data = Folder(name=str(root)).dataset(0)
    assert len(data.train) + len(data.held_out) == 22
    assert "links that lead out of the folder are followed" in data.remarks[0]
    assert "out.png" in data.remarks[0]
    assert "away" in data.remarks[0]
    assert data.notes == ()


def put(folder, count):
    """Write so many images into a folder."""
    for number, pixels in enumerate(colors(count)):
        save(folder / f"{number}.png", pixels)


@pytest.mark.parametrize("link", ["cat/up", "cat/dogs", "cats", "cat/dog.png"])
def test_no_image_is_there_twice_by_way_of_a_link(root, link):
    """It would be there under another class too."""
    target = {"cat/up": root, "cat/dogs": root / "dog", "cats": root / "cat"}
    whole = Folder(name=str(root)).prepare()
    (root / link).symlink_to(target.get(link, next((root / "dog").glob("*.png"))))
    entry = Folder(name=str(root)).prepare()
    assert entry.part("train").labels.tolist() == whole.part("train").labels.tolist()
    assert entry.meta["class_names"] == ["cat", "dog"]
    (note,) = entry.meta["notes"]
    assert note.startswith("1 link leads to another place of the same data (")


def test_links_to_what_is_hidden_are_the_images(root):
    """As git-annex keeps them."""
    (root / ".annex").mkdir()
    for number, file in enumerate((root / "cat").glob("*.png")):
        kept = root / ".annex" / f"{number}.png"
        file.rename(kept)
        file.symlink_to(kept)
    assert np.bincount(Folder(name=str(root)).prepare().part("train").labels).tolist() == [10, 10]


def test_a_link_to_itself_is_an_image_that_cannot_be_read(root):
    (root / "cat" / "l.png").symlink_to(root / "cat" / "l.png")
    with pytest.raises(InputError, match=r"1 image cannot be read now .*Too many levels"):
        Folder(name=str(root)).prepare()
    assert len(Folder(name=str(root), bad_images="skip").prepare().part("train").labels) == 20


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["trainset1/cat", "testset1/cat"], "look like splits"),
        (["mytrain/cat", "mytest/cat"], "look like splits"),
        (["cat/train1", "cat/test1", "dog/a"], "splits below what would be a class"),
        (["train/cat", "train/dog", "train/val/cat", "train/val/dog"], "the classes once more"),
        (["train/cat", "train/dog", "train/unlabeled_train"], "have no labels"),
        (["cat", "dog", "unlabeled_extra"], "have no labels"),
        (["cat/unlabeled", "dog/a"], "have no labels"),
    ],
)
def test_splits_in_odd_places_are_refused(tmp_path, folders, said):
    for folder in folders:
        put(tmp_path / folder, 2)
    with pytest.raises(InputError, match=said):
        Folder(name=str(tmp_path)).prepare()


@pytest.mark.parametrize("folders", [["cat", "cat/unlabeled"], ["cat", "unlabeled_extra"]])
def test_no_clients_own_image_without_a_label_gets_one(tmp_path, folders):
    for folder in folders:
        put(tmp_path / folder, 2)
    with pytest.raises(InputError, match=r"have no labels"):
        prepare_private(str(tmp_path), TERMS, Reading(), skip=False)


def test_names_are_told_whatever_width_they_were_typed_in(tmp_path):
    for split in ("ｔｒａｉｎ", "ｔｅｓｔ"):
        save_classes(tmp_path / split)
    data = Folder(name=str(tmp_path)).dataset(0)
    assert data.class_names == ("cat", "dog")
    assert len(data.train) == len(data.held_out) == 20


def test_what_a_file_server_leaves_is_nobodys_class(root):
    put(root / "@eaDir", 2)
    assert Folder(name=str(root)).dataset(0).class_names == ("cat", "dog")


def test_classes_that_would_be_shown_alike_are_refused(tmp_path):
    for name in ("a\nb", "a\\nb"):
        put(tmp_path / name, 2)
    with pytest.raises(InputError, match=r"1 class has the name of another"):
        Folder(name=str(tmp_path)).prepare()


def test_classes_to_predict_are_told_by_the_names_of_the_record(tmp_path):
    put(tmp_path / "a\nb", 2)
    target = Target((8, 8), 3, scales=True, converts=True, size_hint="", channels_hint="")
    (block,) = read_blocks([tmp_path], ("a\\nb",), target, Flaws())
    assert block.labels.tolist() == [0, 0]


def test_a_home_folder_that_nobody_has_is_one_error():
    for source in (Folder, Npz, Hf):
        with pytest.raises(InputError, match=r"there is no home folder for '~'"):
            source(name="~nobody-of-this-name/x").dataset(0)


def test_an_image_that_follows_another_in_its_file_is_refused(root):
    file = io.BytesIO()
    Image.fromarray(colors()[0]).save(file, "ppm")
    (root / "cat" / "a.ppm").write_bytes(file.getvalue() + b"\n")
    assert len(Folder(name=str(root)).prepare().part("train").labels) == 21
    (root / "cat" / "a.ppm").write_bytes(file.getvalue() * 2)
    with pytest.raises(InputError, match=r"1 image is followed by another in the same file"):
        Folder(name=str(root)).prepare()


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_transparency_beside_the_channels_is_no_less_refused(root, mode):
    image = Image.fromarray(colors()[0]).convert(mode)
    transparency = bytes(256) if mode == "P" else (1, 2, 3)
    image.save(root / "cat" / "t.png", transparency=transparency)
    with pytest.raises(InputError, match=r"1 image has 4 channels"):
        Folder(name=str(root)).prepare()
    assert len(Folder(name=str(root), channels=3).prepare().part("train").labels) == 21


def test_tiffs_that_are_turned_have_the_size_that_they_are_shown_in(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.new("RGB", (20, 10), (number, 0, 0)).save(
                tmp_path / name / f"{number}.tif", exif=exif
            )
    assert Folder(name=str(tmp_path)).dataset(0).spec.shape == (3, 20, 10)


def test_no_format_starts_a_program(root, monkeypatch):
    """PostScript would be given to Ghostscript, whatever the file is called."""
    (root / "cat" / "harmless.png").write_bytes(FLAWED["postscript.png"])
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kw: pytest.fail(f"started {args}"))
    refused(Folder(name=str(root)), "harmless.png: none of the formats")
    for suffix in formats.SUFFIXES:
        assert Image.registered_extensions()[suffix] in formats.FORMATS


def test_the_reason_an_image_cannot_be_read_is_said(root, monkeypatch):
    text = Image.fromarray(colors()[0])
    info = PngInfo()
    info.add_text("comment", "x" * 2_000_000, zip=True)
    text.save(root / "cat" / "comment.png", pnginfo=info)
    save(root / "dog" / "slide.png", np.zeros((30, 30), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    refused(
        Folder(name=str(root)),
        "1 image has more than 178,956,970 pixels (scale them down before) (",
        "slide.png: 900 pixels)",
        "comment.png: Decompressed data too large",
    )


def test_the_limit_on_pixels_is_pillows():
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_too_little_memory_is_one_error_and_never_a_missing_image(root, monkeypatch):
    def short(self, image, place):
        raise MemoryError

    monkeypatch.setattr(Target, "_decode_open", short)
    with pytest.raises(InputError, match="too little memory"):
        Folder(name=str(root), bad_images="skip").prepare()


def test_large_images_are_decoded_one_at_a_time(root, monkeypatch):
    monkeypatch.setattr(targets, "LARGE", 10)
    monkeypatch.setattr(decode, "WORTH_A_THREAD", 1)
    plain, at_once = Target._decode_open, []

    def watched(self, image, place):
        assert targets._one_large.locked()
        at_once.append(1)
        assert sum(at_once) == 1
        try:
            return plain(self, image, place)
        finally:
            at_once.pop()

    monkeypatch.setattr(Target, "_decode_open", watched)
    assert len(Folder(name=str(root)).prepare().part("train")) == 20


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")]
)
def test_an_image_left_out_for_a_passing_reason_is_tried_again(root, monkeypatch, error):
    source, plain = Folder(name=str(root), bad_images="skip"), targets.open_image
    whole = cache._sha256

    def refuses(path):
        if str(path).endswith("cat/3.png"):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(targets, "open_image", lambda path: refuses(path) or plain(path))
        patch.setattr(cache, "_sha256", lambda path: refuses(path) or whole(path))
        for _ in range(2):
            entry = source.prepare()
            assert len(entry.part("train")) == 19
            assert f"cat/3.png: {error.strerror}" in entry.meta["notes"][0]
    entry = source.prepare()
    assert len(entry.part("train")) == 20
    assert entry.meta["notes"] == []


def test_a_lasting_reason_is_not_tried_again(root, monkeypatch):
    (root / "cat" / "bad.png").write_bytes(b"no image")
    source = Folder(name=str(root), bad_images="skip")
    source.prepare()
    monkeypatch.setattr(Folder, "read", lambda self: pytest.fail("read again"))
    source.prepare()


def test_a_file_that_turns_up_later_is_no_less_refused(root):
    Folder(name=str(root)).prepare()
    (root / "cat" / "late.heic").write_bytes(PNG)
    refused(Folder(name=str(root)), "late.heic")


def test_files_of_a_folder_to_predict_are_used_and_left_out_ones_together(root):
    for name in (*HARMLESS, *FLAWED, *UNSAID):
        (root / "cat" / name).write_bytes(FLAWED.get(name, PNG))
    flaws = Flaws()
    blocks = list(
        read_blocks([root], ("cat", "dog"), Target((8, 8), 3, False, False, "", ""), flaws)
    )
    assert sum(len(block.labels) for block in blocks) == 20
    assert left_out(flaws.notes()) == len(HARMLESS) + len(FLAWED)


ARRAYS = st.dictionaries(
    st.sampled_from(
        ["images", "labels", "train_images", "train_labels", "val_images", "val_labels", "test_images", "test_labels",
         "class_names", "site", "test_site", "matrix"]
    ),
    st.sampled_from(["images", "column", "row", "text", "bytes", "objects", "scalar", "huge", "floats"]),
)  # fmt: skip


def array(kind, name):
    count = 6 if "test" in name or "val" in name else 12
    return {
        "images": colors(count),
        "column": (np.arange(count) % 2)[:, None],
        "row": np.arange(count) % 2,
        "text": np.array(["cat", "dog"]),
        "bytes": np.array([b"\xff", b"dog"]),
        "objects": np.array(["cat", None], dtype=object),
        "scalar": np.array(3),
        "huge": np.full(count, 2**64 - 1, np.uint64),
        "floats": np.ones(count),
    }[kind]


@settings(FEW, max_examples=60)
@given(ARRAYS)
def test_the_arrays_of_a_file_are_used_or_named_or_refused(chosen):
    usual = {"images": "images", "labels": "row"} if len(chosen) % 2 else {}
    arrays = {name: array(kind, name) for name, kind in {**usual, **chosen}.items()}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, f"{place}/cache")
        np.savez(f"{place}/x.npz", **arrays)
        try:
            entry = Npz(name=f"{place}/x.npz").prepare()
        except InputError:
            return
        parts = [part for part in ("train", "test") if entry.part(part)]
        used = len(entry.meta["columns"]) * len(parts) + 2 * len(parts) + ("class_names" in arrays)
        assert used + left_out(entry.meta["notes"]) == len(arrays)


def test_medmnist_files_are_read(tmp_path):
    arrays = {}
    for seed, (part, count) in enumerate((("train", 20), ("val", 4), ("test", 6))):
        arrays[f"{part}_images"] = colors(count, seed=seed)
        arrays[f"{part}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    np.savez(tmp_path / "x.npz", **arrays)
    data = Npz(name=str(tmp_path / "x.npz")).dataset(0)
    np.testing.assert_array_equal(data.train.images, colors(20).transpose(0, 3, 1, 2))
    assert (len(data.train), len(data.held_out)) == (20, 6)
    assert data.remarks == ("training images: train_images, test images: test_images",)
    assert data.notes == ("2 arrays are not used (val_images, val_labels)",)
    np.savez(tmp_path / "y.npz", **{k: v for k, v in arrays.items() if "test" not in k})
    assert len(Npz(name=str(tmp_path / "y.npz")).dataset(0).held_out) == 4
    flaws = Flaws()
    (block,) = read_blocks(
        [tmp_path / "x.npz"], ("0", "1"), Target((8, 8), 3, False, False, "", ""), flaws
    )
    assert len(block.labels) == 6  # the test images are to predict
    assert flaws.remarks == ["images: test_images"]
    assert flaws.notes() == ("4 arrays are not used (train_images, train_labels, val_images, ...)",)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"labels": np.zeros((20, 14), np.uint8)},
            "train_labels has 14 labels for each image; an image must have one class",
        ),
        ({"images": np.zeros((20, 8, 8, 8), np.uint8)}, "train_images has 8 channels"),
        ({"labels": np.zeros((19, 1), np.uint8)}, r"train_labels is uint8 of shape \(19, 1\)"),
    ],
)
def test_medmnist_files_of_several_labels_and_of_volumes_are_refused_by_their_own_names(
    tmp_path, changed, said
):
    arrays = {"images": colors(20), "labels": np.zeros((20, 1), np.uint8)} | changed
    np.savez(tmp_path / "x.npz", **{f"train_{name}": array for name, array in arrays.items()})
    with pytest.raises(InputError, match=said):
        Npz(name=str(tmp_path / "x.npz")).prepare()


def claiming(shape, body=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + body


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"images": np.array(3, np.uint8)}, "images is uint8 of shape"),
        ({"images": np.zeros((0, 8, 8), np.uint8)}, "holds no images"),
        ({"images": np.zeros((1, 8, 8), np.uint8), "labels": np.array([2**62])}, "labels up to"),
        (
            {
                "images": np.zeros((1, 8, 8), np.uint8),
                "labels": np.array([2]),
                "class_names": np.array(["a", "b"]),
            },
            "but labels up to 2",
        ),
    ],
)
def test_arrays_to_predict_are_looked_at_as_those_to_train_on(tmp_path, arrays, said):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(InputError, match=said):
        Npz(name=str(tmp_path / "f.npz")).read_images(Flaws())


@pytest.mark.parametrize("kind", ["claims", "bomb", "objects"])
def test_arrays_that_claim_or_unpack_to_too_much_are_one_error(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("fedssl.data.sources.npz.BOMB_BYTES", 10**6)
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if kind == "claims":
            file.writestr("images.npy", claiming((10**9, 100, 100)))
        elif kind == "bomb":
            file.writestr("images.npy", claiming((4 * 10**6, 1, 1), bytes(4 * 10**6)))
    if kind == "objects":
        np.savez(path, images=colors(), class_names=np.array(["a"], dtype=object))
    said = {
        "claims": "claims 10,000,",
        "bomb": "unpacks from",
        "objects": r"class_names.astype\(str\)",
    }
    with pytest.raises(InputError, match=said[kind]):
        Npz(name=str(path)).prepare()


def hub_table(count, seed=0):
    rows = {
        "image": [{"bytes": PNG, "path": None}] * count,
        "label": [i % 2 for i in range(count)],
    }
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    return datasets.Dataset.from_dict(rows, features=features)


@settings(FEW, max_examples=15)
@given(st.lists(st.sampled_from([*SPLIT_NAMES, "extra"]), min_size=1, max_size=4, unique=True))
def test_splits_of_tables_are_used_or_named_or_refused(names):
    tables = {name: hub_table(4) for name in names}
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.CACHE_VARIABLE, f"{place}/cache")
        patch.setattr(Hf, "_load", lambda self: tables)
        try:
            data = Hf(name="x", test_share=0.5).dataset(0)
        except InputError:
            return
        _, _, listed = " ".join(data.remarks).partition("not read: ")
        unread = [name for name in names if name in re.split(r", |\s", listed)]
        assert len(data.train) + len(data.held_out) == 4 * (len(names) - len(unread))


def test_a_file_that_the_library_puts_into_two_splits_is_refused(tmp_path):
    """As it does with a class that is called as a split."""
    for split in ("train", "test"):
        for name in ("hen", "test"):
            put(tmp_path / split / name, 3)
    with pytest.raises(InputError, match=r"into the splits 'test' and 'train'|'train' and 'test'"):
        Hf(name=str(tmp_path)).prepare()


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/0.parquet", "heldout/0.parquet"], "heldout"),
        (["data/train-0.parquet", "more/part2.parquet"], "1 table lies in no split"),
        (["trainset1.parquet", "holdout2.parquet"], "holdout"),
    ],
)
def test_no_table_is_left_out_or_put_into_another_split(tmp_path, names, said):
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        hub_table(6, seed=number).to_parquet(str(tmp_path / name))
    with pytest.raises(InputError, match=said):
        Hf(name=str(tmp_path)).prepare()


@pytest.mark.parametrize("names", [("Train", "Test"), ("train", "bus"), ("Training", "testing")])
def test_folders_of_images_that_the_hubs_library_misunderstands_are_refused(
    tmp_path, names, monkeypatch
):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    for name in names:
        for cls in ("cat", "dog"):
            for i in range(4):
                save(tmp_path / "own" / name / cls / f"{i}.png", colors(seed=i)[0])
    with pytest.raises(InputError, match=r"name of a split|in no split|no split 'train'"):
        Hf(name=str(tmp_path / "own")).prepare()


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_nobody_else_can_read_what_is_prepared(root, tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "new" / "cache"))
    before = os.umask(0o022)
    try:
        prepare_private(str(root), TERMS, Reading(), skip=False)
    finally:
        os.umask(before)
    folder = tmp_path / "new" / "cache"
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_cache_folder_that_others_may_write_to_is_said(root, tmp_path, monkeypatch, caplog):
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    monkeypatch.setenv(cache.CACHE_VARIABLE, str(shared))
    Folder(name=str(root)).prepare()
    assert "can be written to by every user" in caplog.text


def test_a_script_in_the_cache_that_others_wrote_is_not_believed(tmp_path, monkeypatch):
    from fedssl.views.reports import vega

    def library(text):
        bundle = SimpleNamespace(javascript_bundle=lambda _: text)
        monkeypatch.setitem(sys.modules, "vl_convert", bundle)

    monkeypatch.setenv(cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    library("first\r\nline")
    text = vega.javascript.__wrapped__()
    (kept,) = (tmp_path / "cache" / "vega").glob("*.js")
    assert vega._read_own_file(kept).partition("\n")[2] == text
    library("anew")
    assert vega.javascript.__wrapped__() == text
    whole = kept.read_bytes()
    kept.chmod(0o666)
    assert vega.javascript.__wrapped__() == "anew"
    kept.write_bytes(whole[:-5])
    kept.chmod(0o600)
    assert vega.javascript.__wrapped__() == "anew"
