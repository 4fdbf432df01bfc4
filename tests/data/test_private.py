"""A client's own files: converted to the federation's form, cached, matched by name, or refused in one error."""

import numpy as np
import pytest
from PIL import Image

from fedssl.core.errors import InputError
from fedssl.data.private import prepare_private
from fedssl.data.shard import ImageSpec
from fedssl.data.sources.folder import Folder
from fedssl.data.target import Reading
from fedssl.data.terms import Terms
from tests.data.own_images import colors, save

COLOR = Terms(
    ImageSpec((3, 8, 8), 3, (0.1, 0.2, 1 / 3), (0.3, 0.2, 0.1), flips=False), ("cat", "cow", "dog")
)
GRAY = Terms(ImageSpec((1, 8, 8), 3, (0.1,), (0.3,), flips=True), ("cat", "cow", "dog"))


def parts(path, terms=COLOR, skip=False):
    """Return (images, labels) of the parts for training and test."""
    prepared = prepare_private(str(path), terms, Reading(), skip=skip)
    found = [prepared.part(name) for name in ("train", "test")]
    return [None if part is None else (part.images, part.labels) for part in found]


def refused(path, *said, terms=COLOR):
    with pytest.raises(InputError) as caught:
        prepare_private(str(path), terms, Reading(), skip=False)
    assert caught.value.field == "data-path"
    for text in (str(path), *said):
        assert text in str(caught.value)


def test_terms_travel_as_text_and_come_back_the_same():
    assert Terms.from_json(COLOR.to_json()) == COLOR


def test_labels_are_the_federations_whatever_classes_a_client_has(tmp_path):
    save(tmp_path / "dog" / "site" / "1.png", colors(seed=1)[0])
    save(tmp_path / "cat" / "2.png", colors(seed=2)[0])
    save(tmp_path / "unlabeled" / "3.png", colors(seed=3)[0])
    save(tmp_path / "4.png", colors(seed=4)[0])
    (images, labels), test = parts(tmp_path)
    assert labels.tolist() == [0, 2, -1, -1]
    expected = np.concatenate([colors(seed=seed) for seed in (2, 1, 3, 4)])
    assert (images == expected.transpose(0, 3, 1, 2)).all()
    assert test is None


def test_a_client_without_any_label_and_one_of_a_single_class(tmp_path):
    save(tmp_path / "loose" / "1.png", colors()[0])
    save(tmp_path / "b" / "cow" / "1.png", colors()[0])
    assert parts(tmp_path / "loose")[0][1].tolist() == [-1]
    assert parts(tmp_path / "b")[0][1].tolist() == [1]


def test_a_part_for_test_is_the_clients_to_evaluate_on(tmp_path):
    for i, name in enumerate(("train/cat", "train/unlabeled", "test/dog")):
        save(tmp_path / name / "1.png", colors(seed=i)[0])
    (_, labels), (images, test_labels) = parts(tmp_path)
    assert labels.tolist() == [0, -1]
    assert test_labels.tolist() == [2]
    assert (images[0] == colors(seed=2)[0].transpose(2, 0, 1)).all()


@pytest.mark.parametrize("terms", [COLOR, GRAY], ids=["colors", "gray"])
def test_size_and_colors_are_converted_as_by_the_source_for_folders(tmp_path, terms):
    save(tmp_path / "cat" / "1.png", colors(side=19)[0])
    save(tmp_path / "dog" / "2.png", Image.fromarray(colors(side=12)[0]).convert("L"))
    save(tmp_path / "dog" / "3.png", Image.fromarray(colors(side=12)[0, :7]))
    source = Folder(name=str(tmp_path), size=8, channels=terms.spec.shape[0])
    expected = source.prepare().part("train")
    (images, labels), _ = parts(tmp_path, terms)
    assert images.shape[1:] == terms.spec.shape
    assert (images == expected.images).all()
    assert labels.tolist() == [0, 2, 2]


def test_a_file_that_changes_is_read_anew(tmp_path):
    save(tmp_path / "cat" / "1.png", colors()[0])
    assert len(parts(tmp_path)[0][1]) == 1
    save(tmp_path / "cat" / "2.png", colors()[0])
    assert len(parts(tmp_path)[0][1]) == 2


@pytest.mark.parametrize("name", ["cats", "bird"])
def test_an_unknown_class_folder_is_named_with_those_that_are_known(tmp_path, name):
    save(tmp_path / "cat" / "1.png", colors()[0])
    save(tmp_path / name / "1.png", colors()[0])
    refused(
        tmp_path, f"class folder '{name}' is no class of the federation", "it has: cat, cow, dog"
    )


def test_an_unknown_class_among_those_to_evaluate_on(tmp_path):
    save(tmp_path / "train" / "cat" / "1.png", colors()[0])
    save(tmp_path / "test" / "bird" / "1.png", colors()[0])
    refused(tmp_path, "class folder 'bird' is no class")


def test_names_that_the_server_sends_are_never_paths(tmp_path):
    """Only folders that lie in the client's own are read, whatever a class is called."""
    save(tmp_path / "secret" / "1.png", colors()[0])
    save(tmp_path / "mine" / "1.png", colors()[0])
    spec = ImageSpec((3, 8, 8), 2, COLOR.spec.mean, COLOR.spec.std, flips=False)
    (_, labels), _ = parts(tmp_path / "mine", Terms(spec, ("../secret", "dog")))
    assert labels.tolist() == [-1]


def test_bad_paths_and_empty_folders(tmp_path):
    refused(tmp_path / "nowhere", "there is no such folder")
    refused(tmp_path / "nowhere.npz", "there is no such file")
    (tmp_path / "file").write_text("no folder")
    refused(tmp_path / "file", "is a file, not a folder")
    empty = tmp_path / "empty" / "cat"
    empty.mkdir(parents=True)
    refused(empty.parent, "there are no training images")


def test_images_that_cannot_be_read_are_refused_or_skipped_as_the_node_says(tmp_path):
    save(tmp_path / "cat" / "1.png", colors()[0])
    (tmp_path / "cat" / "2.png").write_bytes(b"no image")
    refused(tmp_path, "1 image cannot be read", "fedssl deploy init and join: --bad-images skip")
    assert parts(tmp_path, skip=True)[0][1].tolist() == [0]


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_an_npz_file_with_numbers_for_classes(tmp_path):
    path = npz(
        tmp_path / "a.npz",
        images=colors(4),
        labels=np.array([2, -1, 0, 2]),
        test_images=colors(2, seed=1),
        test_labels=np.array([1, 1]),
    )
    (images, labels), (test_images, test_labels) = parts(path)
    assert (images == colors(4).transpose(0, 3, 1, 2)).all()
    assert labels.tolist() == [2, -1, 0, 2]
    assert (len(test_images), test_labels.tolist()) == (2, [1, 1])


def test_an_npz_file_with_names_for_classes_or_without_labels(tmp_path):
    names = np.array(["dog", "cat", "bird"])
    labels = np.array([0, 1, -1])
    path = npz(tmp_path / "a.npz", images=colors(3), labels=labels, class_names=names)
    assert parts(path)[0][1].tolist() == [2, 0, -1]
    assert parts(npz(tmp_path / "b.npz", images=colors(2)))[0][1].tolist() == [-1, -1]
    path = npz(tmp_path / "c.npz", images=colors(1), labels=np.array([2]), class_names=names)
    refused(path, "class 'bird' is no class of the federation", "it has: cat, cow, dog")


def test_numbers_without_names_are_said_to_be_the_federations(tmp_path):
    """A file may number its classes otherwise, and nobody would see it: so its owner reads what each number means here."""
    labels, names = np.array([0, 1]), np.array(["dog", "cat"])
    numbered = npz(tmp_path / "a.npz", images=colors(2), labels=labels)
    named = npz(tmp_path / "b.npz", images=colors(2), labels=labels, class_names=names)
    unlabeled = npz(tmp_path / "c.npz", images=colors(2))
    said = [
        [
            text
            for text in prepare_private(str(path), COLOR, Reading(), skip=False).meta["remarks"]
            if "numbers" in text
        ]
        for path in (numbered, named, unlabeled)
    ]
    assert said == [
        [
            "labels are the federation's numbers, for there is no class_names: 0 is cat, 1 is cow, 2 is dog"
        ],
        [],
        [],
    ]


def test_npz_files_that_do_not_fit(tmp_path):
    labels = np.array([0, 1])
    path = npz(tmp_path / "large.npz", images=colors(2), labels=labels + 2)
    refused(path, "labels run up to 3, but the federation has 3 classes")
    path = npz(tmp_path / "size.npz", images=colors(2, side=9), labels=labels)
    refused(path, "images are 3 x 9 x 9, but the federation's are 3 x 8 x 8")
    path = npz(tmp_path / "gray.npz", images=colors(2)[..., 0], labels=labels)
    refused(path, "images are 1 x 8 x 8, but the federation's are 3 x 8 x 8")
    path = npz(tmp_path / "none.npz", images=colors(2)[:0], labels=labels[:0])
    refused(path, "there are no training images")
    path = npz(tmp_path / "names.npz", labels=labels)
    refused(path, "has no array 'images'")
