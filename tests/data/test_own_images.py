"""A user's folder of images is read exactly, or its flaws are counted, named and refused, or left out on request."""

import struct
import subprocess
import sys
import time
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from fedssl.core.errors import InputError
from fedssl.data import cache
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.base import SOURCES
from fedssl.data.sources.folder import Folder
from tests.data.own_images import colors, refused, save, save_classes

ORIENTATION = 0x0112


@pytest.fixture
def root(tmp_path):
    save_classes(tmp_path / "own")
    return tmp_path / "own"


def entry(root, **settings):
    return Folder(name=str(root), **settings).prepare()


def test_a_folder_of_png_files_is_read_exactly(tmp_path):
    root = tmp_path / "own"
    written = save_classes(root)
    data = Folder(name=str(root), test_share=0.2).dataset(0)
    assert data.class_names == ("cat", "dog")
    assert (len(data.train), len(data.held_out)) == (16, 4)
    train = entry(root).part("train")
    np.testing.assert_array_equal(train.images, written)
    np.testing.assert_array_equal(train.labels, [0] * 10 + [1] * 10)


def test_bare_kind_names_the_folder(root):
    source = SOURCES.build(f"folder:{root}")
    assert isinstance(source, Folder)
    assert source.name == str(root)


def images_of_every_mode():
    """Return (file's name, image, its pixels as colors); transparency is to be dropped."""
    rgb = Image.fromarray(colors()[0])
    gray = Image.fromarray(colors()[0, :, :, 0])
    indices = colors()[0, :, :, 1] % 5
    table = colors(seed=3)[0, 0, :5]
    palette = Image.fromarray(indices)
    palette.putpalette(table.tobytes())
    clear = Image.fromarray(np.dstack([colors()[0], colors()[0, :, :, 0]]))
    bits = Image.fromarray(indices > 2)
    both = Image.merge("LA", [gray, gray])
    repeated = np.repeat(np.asarray(gray)[..., None], 3, axis=2)
    return [
        ("rgb.png", rgb, colors()[0], {}),
        ("gray.png", gray, repeated, {}),
        ("palette.png", palette, table[indices], {}),
        ("palette_with_clear_color.png", palette, table[indices], {"transparency": 2}),
        ("palette_with_clear_colors.png", palette, table[indices], {"transparency": b"\0\x80\xff"}),
        ("rgba.png", clear, colors()[0], {}),
        ("gray_with_clear_parts.png", both, repeated, {}),
        ("bits.png", bits, np.repeat((indices > 2)[..., None] * np.uint8(255), 3, axis=2), {}),
        ("rgb.tif", rgb, colors()[0], {}),
        ("rgb.bmp", rgb, colors()[0], {}),
    ]


@pytest.mark.parametrize(
    ("name", "image", "expected", "options"),
    [pytest.param(*case, id=case[0]) for case in images_of_every_mode()],
)
def test_every_mode_becomes_colors(tmp_path, name, image, expected, options):
    save(tmp_path / "own" / "a" / name, image, **options)
    save(tmp_path / "own" / "b" / "plain.png", colors()[0])
    train = entry(tmp_path / "own", channels=3).part("train")
    np.testing.assert_array_equal(train.images[0], expected.transpose(2, 0, 1))


def test_gray_images_have_one_channel_and_colors_become_gray_on_request(root, tmp_path):
    gray = colors(2)[..., 0]
    for i in range(2):
        save(tmp_path / "gray" / f"class {i}" / "x.png", gray[i])
    np.testing.assert_array_equal(entry(tmp_path / "gray").part("train").images, gray[:, None])
    shape = entry(root, channels=1).meta["shape"]
    assert shape == [1, 8, 8]


def test_palettes_are_scaled_by_color_and_not_by_number(tmp_path):
    """Colors 0 and 255 alternate in a palette of which the number between them is green."""
    palette = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 2)
    palette.putpalette([0, 0, 0, 0, 255, 0, 254, 254, 254])
    for name in "ab":
        save(tmp_path / "own" / name / "x.png", palette)
    images = entry(tmp_path / "own", size=4).part("train").images.astype(int)
    assert 0 < images.min() < images.max() < 254  # mixed
    assert (images[:, 0] == images[:, 1]).all()  # and not green


def test_images_are_scaled_to_a_size_and_cut_at_the_longer_side(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200  # the middle, which is kept
    for name in "ab":
        save(tmp_path / "own" / name / "x.png", wide)
    meta = entry(tmp_path / "own", size=8)
    assert meta.meta["shape"] == [3, 8, 8]
    assert (meta.part("train").images == 200).all()
    assert entry(tmp_path / "own", size=(4, 12)).meta["shape"] == [3, 4, 12]


@pytest.mark.parametrize("kind", ["jpg", "png"])
@pytest.mark.parametrize("size", [None, (4, 8)])
def test_exif_turns_images_upright(tmp_path, kind, size):
    """The camera was held so that the top of the scene is the file's right side (orientation 6 turns by 90°)."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = np.zeros((16, 8, 3), np.uint8)
    stored[:, :4] = 250
    for name in "ab":
        save(tmp_path / "own" / name / f"x.{kind}", stored, exif=exif)
    images = entry(tmp_path / "own", size=size).part("train").images
    height, width = size or (8, 16)
    assert images.shape == (2, 3, height, width)
    assert images[:, :, : height // 2].mean() > 230
    assert images[:, :, height // 2 :].mean() < 20


def test_warnings_of_pillow_are_neither_shown_nor_flaws(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)  # so that 8x8 is a "decompression bomb"
    for name in "ab":
        save(tmp_path / "own" / name / "x.png", colors()[0])
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert len(entry(tmp_path / "own").part("train")) == 2
    assert not shown


def test_threads_decode_large_images_in_order(tmp_path):
    images = colors(12, side=64)
    for i, pixels in enumerate(images):
        save(tmp_path / "own" / f"class {i % 2}" / f"{i:02}.png", pixels)
    order = [*range(0, 12, 2), *range(1, 12, 2)]
    assert (tmp_path / "own" / "class 0" / "00.png").stat().st_size > 8192
    train = entry(tmp_path / "own").part("train")
    np.testing.assert_array_equal(train.images, images[order].transpose(0, 3, 1, 2))


def test_blocks_are_small_where_images_are_large(root, monkeypatch):
    monkeypatch.setattr("fedssl.data.decode.BLOCK_BYTES", 3 * 8 * 8 * 7)
    sizes = [len(block.labels) for block in Folder(name=str(root)).read().train]
    assert sizes == [7, 7, 6]


def test_train_and_test_folders_unlabeled_images_and_sites(tmp_path, root):
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    for cls, name in enumerate(("cat", "dog"), 20):
        save(whole / "test" / name / "x.png", colors(seed=cls)[0])
    save(whole / "train" / "unlabeled" / "u.png", colors(seed=5)[0])
    save(whole / "unlabeled" / "deep" / "v.png", colors(seed=6)[0])
    save(whole / "train" / "cat" / "clinic A" / "room 1" / "y.png", colors(seed=7)[0])
    (whole / "train" / "cat" / "notes.txt").write_text("not an image")
    (whole / "train" / ".hidden").mkdir()
    save(whole / "train" / "cat" / ".hidden.png", colors(seed=8)[0])
    data = Folder(name=str(whole)).dataset(0)
    assert data.class_names == ("cat", "dog")
    assert np.bincount(data.train.labels + 1).tolist() == [2, 11, 10]
    assert data.held_out.labels.tolist() == [0, 1]
    folders = [data.column_values["folder"][code] for code in data.train.columns["folder"]]
    assert folders.count(".") == 21
    assert sorted(set(folders)) == [".", "clinic A/room 1", "deep"]
    unlabeled = data.train.labels == UNKNOWN
    np.testing.assert_array_equal(
        data.train.images[unlabeled],
        np.stack([colors(seed=5)[0], colors(seed=6)[0]]).transpose(0, 3, 1, 2),
    )


def test_unlabeled_images_are_never_held_out(root):
    for i in range(30):
        save(root / "unlabeled" / f"{i}.png", colors(seed=100 + i)[0])
    data = Folder(name=str(root), validation=0.5).dataset(0)
    assert (data.held_out.labels >= 0).all()
    assert (data.train.labels == UNKNOWN).sum() == 30


def test_a_link_back_to_its_own_folder_is_no_endless_loop(root):
    (root / "cat" / "loop").symlink_to(root / "cat", target_is_directory=True)
    assert len(entry(root).part("train")) == 20


def test_new_changed_and_deleted_files_are_noticed(root):
    folders = [entry(root).folder]
    save(root / "cat" / "new.png", colors()[0])
    folders.append(entry(root).folder)
    (root / "cat" / "new.png").unlink()
    folders.append(entry(root).folder)
    save(root / "cat" / "0.png", colors(seed=77)[0])
    folders.append(entry(root).folder)
    assert folders[0] == folders[2]
    assert len(set(folders)) == 3


def test_prepared_images_are_there_at_once(tmp_path):
    """Warm, a run looks at names, sizes and times of the files, and compares the entry's checksums."""
    for i, pixels in enumerate(colors(3000, side=32)):
        save(tmp_path / "own" / f"class {i % 10}" / f"{i}.png", pixels)
    source = Folder(name=str(tmp_path / "own"))

    def seconds():
        cache._checksums_match.cache_clear()  # as in a process of its own
        began = time.perf_counter()
        source.prepare(verify=True)
        return time.perf_counter() - began

    cold, warm = seconds(), min(seconds() for _ in range(5))
    print(f"3,000 images: {cold:.2f} s, then {warm * 1000:.1f} ms: {cold / warm:.0f} times as fast")
    assert cold / warm >= 10


def damaged(root):
    """Spoil a folder in every way that concerns single images, and say how each is to be called."""
    whole = (root / "cat" / "0.png").read_bytes()
    (root / "cat" / "a_truncated.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "b_empty.png").write_bytes(b"")
    (root / "dog" / "c_text.jpg").write_text("no image")
    (root / "dog" / "d_nowhere.png").symlink_to(root / "gone.png")
    save(root / "dog" / "wide.png", np.zeros((8, 9, 3), np.uint8))
    save(root / "cat" / "gray.png", np.zeros((8, 8), np.uint8))
    save(root / "cat" / "clear.png", np.zeros((8, 8, 4), np.uint8))
    save(root / "dog" / "deep.png", np.zeros((8, 8), np.uint16))
    save(root / "loose.png", colors()[0])
    return (
        "3 images cannot be read (",
        "a_truncated.png: ",
        "b_empty.png: none of the formats BMP, ",
        "c_text.jpg: none of the formats BMP, ",
        "1 image cannot be read now (",
        "d_nowhere.png: No such file",
        "1 image is not 8x8 as most are (data.size scales them) (",
        "wide.png",
        "2 images have 1 channels, not 3 (data.channels = 3 converts them) (",
        "gray.png",
        "1 image has 4 channels, not 3",
        "deep.png",
        "1 image lies outside of the class folders (",
        "loose.png",
    )


def test_bad_images_of_a_folder_are_counted_named_and_refused_in_one_error(root):
    message = refused(Folder(name=str(root)), *damaged(root))
    assert message.startswith(f"data.source: folder:{root}: ")


def test_bad_images_of_a_folder_are_left_out_on_request(root, caplog):
    good = entry(root).part("train").images
    damaged(root)
    prepared = entry(root, bad_images="skip")
    np.testing.assert_array_equal(prepared.part("train").images, good)
    assert len(prepared.meta["notes"]) == 6
    assert "left out: 3 images cannot be read" in caplog.text
    assert Folder(name=str(root), bad_images="skip").dataset(0).notes == tuple(
        prepared.meta["notes"]
    )


def deep_colors():
    """Return a PNG image of colors with 16 bits a channel, written by hand; Pillow opens it as if it had 8 bits."""

    def chunk(name, data):
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + bytes(8 * 6) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return png + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_deep_colors_are_refused_though_pillow_cuts_them_down(root):
    (root / "cat" / "rgb16.png").write_bytes(deep_colors())
    source = Folder(name=str(root), size=8, channels=3)
    refused(source, "1 color image has more than 8 bits a channel (save with 8)", "rgb16.png")


def test_sizes_and_channels_are_those_of_most_images(root):
    for i in range(21):
        save(root / "cat" / f"more {i}.png", colors(seed=i, side=6)[0, :, :, 0])
    refused(
        Folder(name=str(root)),
        "20 images have 3 channels, not 1 (data.channels = 1 converts them)",
    )
    refused(Folder(name=str(root), channels=1), "20 images are not 6x6 as most are")
    assert entry(root, size=6, channels=3).meta["shape"] == [3, 6, 6]


def test_images_of_many_sizes_lead_to_the_setting_that_scales_them(tmp_path):
    """A newcomer's 1,500 images of 40 to 115 pixels: leaving out those of another size would leave hardly any."""
    for i in range(40):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", np.zeros((40 + i, 100 - i, 3), np.uint8))
    with pytest.raises(InputError) as caught:
        entry(tmp_path)
    said = str(caught.value)
    assert "39 images are not 40x100 as the largest group is" in said
    assert "there are 40 sizes, with sides of 40 to 100 pixels (data.size = 32 scales all)" in said
    assert "set data.bad_images" not in said
    assert "mend this (data.bad_images = 'skip' would leave out most of the images)" in said
    assert entry(tmp_path, size=32).meta["shape"] == [3, 32, 32]


def test_a_class_of_files_that_are_not_read_says_what_is_read(tmp_path, root):
    for name in ("scan.xyz", "scan2.xyz"):
        (root / "emu" / name).parent.mkdir(exist_ok=True)
        (root / "emu" / name).write_bytes(b"x")
    message = refused(
        Folder(name=str(root)),
        "2 files have a suffix that no image has (",
        "scan.xyz",
        "1 class without training images (emu)",
        "files are read that end in .apng, .bmp, ",
        ".dcm, .dicom",
        "pip install 'fedssl[medical]'",
    )
    assert message.count("files are read that end in") == 1
    save(root / "emu" / "now.png", colors()[0])
    assert "2 files have a suffix that no image has" in entry(root).meta["notes"][0]


def test_classes_without_images_and_unknown_test_classes(root, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    (whole / "train" / "emu").mkdir()
    (whole / "train" / "fox").mkdir()
    (whole / "train" / "fox" / "x.png").write_bytes(b"all of the class is damaged")
    for name in ("cat", "dog", "fox", "gnu"):
        save(whole / "test" / name / "t.png", colors()[0])
    refused(
        Folder(name=str(whole)),
        "2 classes without training images (emu, fox)",
        "1 test folder is of no class there is to learn (gnu)",
        "1 test image is of no class there is to learn (",
        "fox/t.png",
        "1 image cannot be read (",
    )
    data = Folder(name=str(whole), bad_images="skip").dataset(0)
    assert data.class_names == ("cat", "dog")
    assert data.held_out.labels.tolist() == [0, 1]
    assert set(data.train.labels.tolist()) == {0, 1}


def test_unlabeled_test_images_are_refused(root, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    root.rename(whole / "train")
    save(whole / "test" / "cat" / "t.png", colors()[0])
    save(whole / "test" / "unlabeled" / "u.png", colors()[0])
    refused(Folder(name=str(whole)), "1 test image is of no class there is to learn", "u.png")


def test_a_folder_of_which_too_little_is_left_is_refused_even_with_skip(root):
    for path in (root / "dog").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"training images of 1 classes.*; 10 images cannot be"):
        entry(root, bad_images="skip")


def folders_that_are_none(root):
    yield root / "gone", "there is no such folder"
    yield root / "cat" / "0.png", "is a file, not a folder"
    yield root / "cat", "there are 0 class folders in"


def test_what_is_no_folder_of_classes_is_refused(root):
    for path, said in folders_that_are_none(root):
        with pytest.raises(InputError, match=f"data.source: folder:.*: {said}"):
            entry(path)


@pytest.mark.parametrize("name", ["test", "val", "validation"])
def test_a_test_folder_without_a_train_folder_is_no_class(root, name):
    save(root / name / "x.png", colors()[0])
    with pytest.raises(InputError, match=f"there is a folder '{name}' but no 'train'"):
        entry(root)


@pytest.mark.parametrize("size", [0, [4, 0], -1])
def test_sizes_without_pixels_are_refused(size):
    with pytest.raises(InputError, match=r"a side has at least one pixel"):
        SOURCES.build({"source": "folder:x", "size": size})


def test_images_are_found_whatever_was_imported_before(tmp_path):
    """Other libraries load some of Pillow's formats, which must not be taken for all."""
    for number, kind in enumerate(("jpg", "tif", "webp")):
        save(tmp_path / "own" / "cat" / f"{number}.{kind}", colors()[0])
    code = (
        "import sys, matplotlib.colors\n"
        "from fedssl.data.sources.folder import Folder\n"
        "print(len(list(Folder(name=sys.argv[1]).files())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "own")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "3", done.stderr


def test_what_is_left_out_anyway_is_told_apart_from_what_must_be_mended(root):
    (root / "labels.csv").write_text("a,b")
    (root / "cat" / "0.png").write_bytes(b"broken")
    pages = [Image.fromarray(page) for page in colors(3)]
    pages[0].save(root / "dog" / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(InputError) as caught:
        entry(root, frames="middle")
    assert "1 image cannot be read" in caught.value.problem
    assert "labels.csv" not in caught.value.problem
    assert "frames" not in caught.value.problem
    mended, harmless = caught.value.remedy.split("left out anyway, and no fault: ")
    assert "mend this" in mended
    assert "labels.csv" in harmless
    assert "2 frames are not the middle one" in harmless
    (root / "cat" / "0.png").unlink()
    assert entry(root, frames="middle").part("train") is not None  # they were no faults
