"""The cache: written once, complete or absent, checked, memory-mapped and never copied."""

import errno
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedssl.core.errors import InputError
from fedssl.data.blocks import Block
from fedssl.data.cache import CACHE_VARIABLE, Raw, cache_folder, prepare
from fedssl.data.flaws import Flaws
from fedssl.data.images import UNKNOWN
from fedssl.data.sources.npz import Npz

LABELS = np.array([0, 1, 0, 1])


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))


def pixels(count=4):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 2, 2), np.uint8)


def raw(train=None, test=None, names=("a", "b"), **known):
    return Raw(names, train or [Block(pixels(), LABELS)], test, flips=True, **known)


def prepared(read, kind="mine", skip=False, verify=False, **identity):
    return prepare(kind, identity, read, skip=skip, verify=verify)


def never():
    pytest.fail("read again")


def entries():
    """Return what lies in the cache folder, beside locks."""
    return sorted(p.name for p in cache_folder().iterdir() if p.suffix != ".lock")


def test_a_data_set_is_read_once():
    first = prepared(raw)
    second = prepared(never)
    np.testing.assert_array_equal(second.part("train").images, pixels())
    np.testing.assert_array_equal(second.part("train").labels, LABELS)
    assert second == first
    assert second.part("test") is None
    assert entries() == [first.folder.name]


def test_another_identity_is_another_entry():
    kinds = [("mine", 1), ("mine", 2), ("other", 1)]
    folders = {prepared(raw, kind, seed=seed).folder for kind, seed in kinds}
    assert len(folders) == 3
    assert prepared(raw, skip=True, seed=1).folder not in folders


def test_the_folder_is_the_users_unless_the_variable_moves_it(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert "fedssl" in cache_folder().parts


def write_npz(path, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (20, 2, 2), np.uint8)
    np.savez(path, images=images, labels=np.arange(20) % 2)
    return images


def test_files_that_changed_are_read_anew(tmp_path):
    path = tmp_path / "mine.npz"
    write_npz(path, seed=0)
    first = Npz(name=str(path)).prepare()
    images = write_npz(path, seed=1)
    os.utime(path, ns=(1, 1))  # the same size within the clock's tick
    second = Npz(name=str(path)).prepare()
    assert second.folder != first.folder
    np.testing.assert_array_equal(second.part("train").images[:, 0], images)


def test_settings_that_only_cut_share_an_entry(tmp_path):
    write_npz(tmp_path / "mine.npz")
    source = Npz(name=str(tmp_path / "mine.npz"))
    cut = source.model_copy(update={"train_size": 3, "validation": 0.5, "test_share": 0.3})
    changed = source.model_copy(update={"flips": False})
    assert cut.prepare().folder == source.prepare().folder != changed.prepare().folder


def test_one_file_is_one_entry_from_every_current_folder(tmp_path, monkeypatch):
    write_npz(tmp_path / "mine.npz")
    monkeypatch.chdir(tmp_path)
    folders = {Npz(name=name).prepare().folder for name in ("mine.npz", str(tmp_path / "mine.npz"))}
    assert len(folders) == 1


def damages():
    """Return ways to damage an entry, by name."""

    def truncate(folder):
        images = folder / "train_images.npy"
        images.write_bytes(images.read_bytes()[:-1])

    def drop(folder):
        (folder / "train_labels.npy").unlink()

    def garble(folder):
        (folder / "meta.json").write_text("{")

    def other_json(folder):
        (folder / "meta.json").write_text("[]")

    def another_setting(folder):
        text = (folder / "meta.json").read_text()
        assert '"flips": true' in text
        (folder / "meta.json").write_text(text.replace('"flips": true', '"flips": false'))

    def no_files(folder):
        (folder / "meta.json").write_text('{"sha256": "", "meta": {"files": {}}}')

    return [truncate, drop, garble, other_json, another_setting, no_files]


@pytest.mark.parametrize("damage", damages(), ids=lambda damage: damage.__name__)
def test_a_damaged_entry_is_prepared_anew(damage, caplog):
    damage(prepared(raw).folder)
    again = prepared(raw)
    np.testing.assert_array_equal(again.part("train").images, pixels())
    assert "is damaged; preparing it anew" in caplog.text
    assert prepared(never) == again


def test_a_flipped_bit_is_found_where_checksums_are_compared(caplog):
    images = prepared(raw).folder / "train_images.npy"
    content = bytearray(images.read_bytes())
    content[-1] ^= 1
    images.write_bytes(content)
    prepared(never)  # its size is right
    again = prepared(raw, verify=True)
    np.testing.assert_array_equal(again.part("train").images, pixels())
    assert "is damaged" in caplog.text
    assert prepared(never, verify=True) == again


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"FEDSSL_CACHE: cannot prepare mine in .*file.*may write"):
        prepared(raw)


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fedssl.data.cache._sync", full)
    with pytest.raises(InputError, match=r"FEDSSL_CACHE: .*No space left on device; make room"):
        prepared(raw)
    assert entries() == []


def test_a_source_that_cannot_be_read_is_not_blamed_on_the_cache():
    def denied():
        raise PermissionError(errno.EACCES, "Permission denied", "mine.npz")

    def denied_midway():
        yield Block(pixels(), LABELS)
        denied()

    for read in (denied, lambda: raw(denied_midway())):
        with pytest.raises(InputError, match=r"data.source: mine: cannot be read: .*mine.npz"):
            prepared(read)
    assert entries() == []


def test_a_prepared_data_set_needs_no_folder_that_can_be_written(monkeypatch):
    folder = prepared(raw).folder
    monkeypatch.setattr("fedssl.data.cache._locked", never)
    assert prepared(never).folder == folder


PRELUDE = """
import sys, time
from pathlib import Path
import numpy as np
from fedssl.data.blocks import Block
from fedssl.data.cache import Raw, prepare

def block(count, side):
    labels = np.arange(count) % 2
    return Block(np.full((count, 1, side, side), 7, np.uint8), labels)

def prepared(read):
    return prepare("mine", {}, read, skip=False, verify=False)

def meet(word):
    print(word, flush=True)
    sys.stdin.readline()
"""


class Child:
    """A process that runs a script after the prelude, and goes on only when told to."""

    def __init__(self, script, *args):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + script, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._process.kill()
        self._process.communicate()

    def hear(self):
        line = self._process.stdout.readline().strip()
        assert line, f"the process ended with {self._process.wait()}"
        return line

    def go_on(self):
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def children():
    """Start processes that end with the test."""
    started = []

    def start(script, *args):
        started.append(Child(script, *args))
        return started[-1]

    yield start
    for child in started:
        child.__exit__()


STUCK = """
def blocks():
    yield block(100_000, 8)
    meet("in the middle")

prepared(lambda: Raw(("a", "b"), blocks(), None, flips=True))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_what_a_killed_process_left_is_cleared_away(children):
    child = children(STUCK)
    assert child.hear() == "in the middle"
    child.kill()
    (left,) = entries()
    assert left.endswith(".partial")
    again = prepared(raw)
    np.testing.assert_array_equal(again.part("train").images, pixels())
    assert entries() == [again.folder.name] == [left.removesuffix(".partial")]


TOGETHER = """
def read():
    with Path(sys.argv[1]).open("a") as log:
        log.write("read\\n")
    time.sleep(1)
    return Raw(("a", "b"), [block(10, 2)], None, flips=True)

meet("ready")
print(prepared(read).part("train").images.sum(), flush=True)
"""


def test_two_processes_at_once_prepare_once(children, tmp_path):
    both = [children(TOGETHER, tmp_path / "log") for _ in range(2)]
    assert [child.hear() for child in both] == ["ready"] * 2
    for child in both:
        child.go_on()
    assert [child.hear() for child in both] == [str(7 * 10 * 4)] * 2
    assert (tmp_path / "log").read_text().splitlines() == ["read"]
    assert len(entries()) == 1


def test_waiting_for_another_process_is_told(children, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("fedssl.data.cache.PATIENCE", 0.1)
    child = children(STUCK)
    assert child.hear() == "in the middle"
    monkeypatch.setattr("fedssl.data.cache.log.info", lambda text, *rest: child.go_on())
    assert len(prepared(never).part("train")) == 100_000  # the log's line lets the other go on


MAPPED = """
def pss():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))

meet("ready")
before = pss()
train = prepared(None).part("train")
total = int(train.images.sum(dtype=np.int64))
meet(total)
print(pss() - before, flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="only Linux says what is shared"
)
def test_processes_share_one_copy_in_memory(children):
    count, side = 25_600, 64
    kilobytes = count * side * side // 1024
    labels = np.arange(count) % 2
    blocks = (Block(np.full((800, 1, side, side), 7, np.uint8), labels[:800]) for _ in range(32))
    prepared(lambda: raw(blocks))
    three = [children(MAPPED) for _ in range(3)]
    for word in ("ready", str(7 * kilobytes * 1024)):
        assert [child.hear() for child in three] == [word] * 3
        for child in three:
            child.go_on()
    more = [int(child.hear()) for child in three]
    print(f"three processes that read {kilobytes / 1024:.0f} MB: {[kb // 1024 for kb in more]} MB")
    assert sum(more) < 1.3 * kilobytes  # three copies would be 3


def test_arrays_are_mapped():
    images = prepared(raw).part("train").pool
    assert isinstance(images.base, np.memmap)
    assert images.flags.writeable  # as torch wants
    images[:] = 0
    np.testing.assert_array_equal(prepared(never).part("train").images, pixels())


SHAPES = st.tuples(
    st.integers(2, 40), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)
)
RUNS = itertools.count()


@settings(max_examples=40, deadline=None)
@given(
    images=SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)),
    cuts=st.lists(st.integers(0, 40), max_size=6),
    at_once=st.sampled_from([1, 50, 2**23]),
    transposed=st.booleans(),
)
def test_mean_and_deviation_do_not_depend_on_how_images_are_cut_into_blocks(
    images, cuts, at_once, transposed
):
    labels = np.arange(len(images)) % 2
    given = images.transpose(0, 1, 3, 2) if transposed else images
    parts = zip(np.split(given, sorted(cuts)), np.split(labels, sorted(cuts)), strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedssl.data.blocks.BYTES_AT_ONCE", at_once)
        entry = prepared(lambda: raw([Block(*part) for part in parts]), run=next(RUNS))
    np.testing.assert_array_equal(entry.part("train").images, given)
    levels = images / 255
    np.testing.assert_allclose(entry.meta["mean"], levels.mean((0, 2, 3)), atol=5.1e-5)
    expected = np.maximum(levels.std((0, 2, 3)), 1e-4)
    np.testing.assert_allclose(entry.meta["std"], expected, atol=5.1e-5)


def test_published_mean_and_deviation_are_kept():
    meta = prepared(lambda: raw(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))).meta
    assert (meta["mean"], meta["std"]) == ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0])


def test_the_measured_mean_is_of_the_training_images():
    test = [Block(np.zeros((4, 3, 2, 2), np.uint8), LABELS)]
    mean = prepared(lambda: raw(test=test)).meta["mean"]
    np.testing.assert_allclose(mean, pixels().mean((0, 2, 3)) / 255, atol=5.1e-5)


def test_columns_are_codes_that_training_and_test_images_share():
    train = [
        Block(pixels(2), LABELS[:2], columns={"site": ["x", "y"]}),
        Block(pixels(2), LABELS[:2], columns={"year": [1999, None]}),
    ]
    test = [Block(pixels(2), LABELS[:2], columns={"site": ["z", "y"]})]
    entry = prepared(lambda: raw(train, test))
    values = entry.meta["column_values"]

    def texts(part, column):
        return [values[column][code] for code in entry.part(part).columns[column]]

    assert entry.meta["columns"] == ["site", "year"]
    assert texts("train", "site") == ["x", "y", "", ""]
    assert texts("train", "year") == ["", "", "1999", ""]
    assert texts("test", "site") == ["z", "y"]
    assert texts("test", "year") == ["", ""]


def test_images_of_unknown_class_cannot_be_labeled():
    blocks = [Block(pixels(), np.array([0, 1, -1, -1]), np.array([True, False, True, False]))]
    train = prepared(lambda: raw(blocks)).part("train")
    assert train.labelable.tolist() == [True, False, False, False]


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [0, -2, 1, 1]])
def test_labels_beyond_the_classes_are_refused(labels):
    with pytest.raises(InputError, match=r"labels run from .* but there are 2 classes"):
        prepared(lambda: raw([Block(pixels(), np.array(labels))]))


def test_blocks_of_other_shapes_are_refused():
    wide = Block(np.zeros((4, 3, 2, 5), np.uint8), LABELS)
    for read in (lambda: raw([Block(pixels(), LABELS), wide]), lambda: raw(test=[wide])):
        with pytest.raises(InputError, match=r"\(3, 2, 2\).*\(3, 2, 5\)"):
            prepared(read)


@pytest.mark.parametrize(
    ("train", "test", "missing"),
    [
        ([], None, "no training images"),
        ([0, 0], None, "training images of 1 classes, fewer than two"),
        ([0, 1], [], "no test images"),
        ([0, 1], [UNKNOWN], "no test images"),
    ],
)
def test_too_few_images_are_refused_even_if_flawed_ones_are_skipped(train, test, missing):
    def block(labels):
        return [Block(pixels(len(labels)), np.array(labels, dtype=np.int64))]

    with pytest.raises(InputError, match=f"data.source: mine: there are {missing}"):
        prepared(lambda: raw(block(train), None if test is None else block(test)), skip=True)
    assert entries() == []


def flawed():
    """Three classes of which one has no training image, and one image that could not be read."""
    flaws = Flaws()
    flaws.add("images cannot be read", ["x.png"])
    test = [Block(pixels(3), np.array([0, 2, 2])), Block(pixels(2), np.array([1, UNKNOWN]))]
    return Raw(("a", "b", "c"), [Block(pixels(), LABELS * 2)], test, flips=True, flaws=flaws)


def test_every_flaw_is_named_in_one_error():
    with pytest.raises(InputError) as caught:
        prepared(flawed)
    assert str(caught.value) == (
        "data.source: mine: 1 image cannot be read (x.png); "
        "1 class without training images (b); "
        "2 test images are of no class there is to learn (test row 3, test row 4); "
        "mend this, or set data.bad_images = 'skip' to go on without them"
    )
    assert entries() == []


def test_what_is_left_out_is_noted_and_classes_are_numbered_anew(caplog):
    entry = prepared(flawed, skip=True)
    assert entry.meta["class_names"] == ["a", "c"]
    assert entry.part("train").labels.tolist() == [0, 1, 0, 1]
    assert entry.part("test").labels.tolist() == [0, 1, 1]
    assert len(entry.meta["notes"]) == 3
    assert len(re.findall("mine: left out", caplog.text)) == 3
    assert prepared(never, skip=True).meta["notes"] == entry.meta["notes"]


def test_progress_is_told(caplog, monkeypatch):
    clock = itertools.count(step=6.0)
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO):
        meta = json.loads((prepared(raw).folder / "meta.json").read_text())["meta"]
    assert "mine: 4 images so far" in caplog.text
    assert set(meta["files"]) == {f"train_{a}.npy" for a in ("images", "labels", "labelable")}
