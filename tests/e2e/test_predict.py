"""`fedssl predict`: files, folders and arrays are decoded as in the run, and predictions agree with its evaluation."""

import csv
import shutil

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from fedssl import Run, run
from tests.helpers import fedssl, refused, small_experiment


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Run:
    experiment = small_experiment(rounds=4, train={"local_steps": 10, "lr": 0.1})
    return run(experiment, out=tmp_path_factory.mktemp("p") / "run", progress=False)


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """Write the held-out digits as files, a folder a class, some deeper down."""
    root = tmp_path_factory.mktemp("digits")
    held_out = finished.federation.held_out
    for row, (image, label) in enumerate(zip(held_out.images, held_out.labels, strict=True)):
        path = root / str(label) / ("deep" if row % 3 else "") / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return root


def rows_of(file) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize(
    ("weights", "column"), [("ema", "ema_accuracy"), ("global", "server_accuracy")]
)
def test_the_test_set_as_files_is_predicted_as_it_was_evaluated(
    weights, column, finished, folder, tmp_path
):
    out = tmp_path / "p.csv"
    result = fedssl("predict", finished.path, folder, "--out", out, "--model", weights)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    assert len(rows) == len(finished.federation.held_out)
    right = sum(row["class"] == row["label"] for row in rows)
    assert right / len(rows) == finished.rounds[column].iloc[-1]
    assert f"{right:,} of {len(rows):,} images" in result.output
    probs = finished.predict(finished.federation.held_out.images, average=weights == "ema")
    for row in rows:
        number = int(row["path"].rpartition("/")[2].removesuffix(".png"))
        assert row["class"] == str(probs[number].argmax())
        assert float(row["confidence"]) == pytest.approx(probs[number].max(), abs=1e-5)


def test_arrays_are_predicted_like_files(finished, tmp_path):
    held_out = finished.federation.held_out
    file, out = tmp_path / "d.npz", tmp_path / "p.csv"
    np.savez(file, images=held_out.images[:, 0], labels=held_out.labels)
    result = fedssl("predict", finished.path, file, "--out", out)
    assert result.exit_code == 0, result.output
    probs = finished.predict(held_out.images)
    assert [row["class"] for row in rows_of(out)] == [str(cls) for cls in probs.argmax(1)]
    assert rows_of(out)[3]["path"] == f"{file}[3]"
    assert f"of {len(held_out):,} images whose class is known" in result.output


@pytest.mark.parametrize("name", ["IMG [edited].png", "a [/b].png", "[red]d.png"])
def test_names_of_files_are_shown_as_they_are(name, finished, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    shutil.copy(next(folder.glob("3/*.png")), name)
    result = fedssl("predict", finished.path, name)
    assert result.exit_code == 0, result.output
    assert f" {name} " in result.output


def test_labels_of_arrays_go_by_the_names_of_their_classes(finished, tmp_path):
    held_out = finished.federation.held_out
    reversed_names = [str(9 - number) for number in range(10)]
    backwards = 9 - held_out.labels
    file, out = tmp_path / "d.npz", tmp_path / "p.csv"
    np.savez(file, images=held_out.images[:, 0], labels=backwards, class_names=reversed_names)
    assert fedssl("predict", finished.path, file, "--out", out).exit_code == 0
    assert [int(row["label"]) for row in rows_of(out)] == held_out.labels.tolist()


def test_without_labels_there_is_no_accuracy(finished, folder, tmp_path):
    file = tmp_path / "d.npz"
    np.savez(file, images=finished.federation.held_out.images[:3, 0])
    one = next(folder.glob("3/*.png"))
    result = fedssl("predict", finished.path, one, file)
    assert result.exit_code == 0, result.output
    assert one.stem in result.output
    assert "accuracy" not in result.output


def test_a_folder_that_is_named_as_a_class_says_the_class(finished, folder, monkeypatch):
    images = list((folder / "3").rglob("*.png"))
    said = f"of {len(images)} images whose class is known"
    result = fedssl("predict", finished.path, folder / "3")
    assert result.exit_code == 0, result.output
    assert said in result.output
    assert "macro F1" not in result.output  # images of one class
    monkeypatch.chdir(folder / "3")
    assert said in fedssl("predict", finished.path, ".").output
    assert "accuracy" not in fedssl("predict", finished.path, "deep").output


def test_images_without_a_class_are_not_said_to_be_of_another_one(finished, folder, tmp_path):
    images = sorted((folder / "3").rglob("*.png"))
    for name, image in (("3", images[0]), ("unlabeled", images[1]), ("unlabeled", images[2])):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(image, tmp_path / name)
    result = fedssl("predict", finished.path, tmp_path)
    assert "of 1 images whose class is known" in result.output
    assert "images whose class is not known or none of the run's: 2" in result.output


def test_measures_are_scikit_learns(finished, folder):
    held_out = finished.federation.held_out
    probs = finished.predict(held_out.images)
    truth, guess = held_out.labels, probs.argmax(1)
    auroc = np.mean([roc_auc_score(truth == cls, probs[:, cls]) for cls in range(10)])
    result = fedssl("predict", finished.path, folder)
    expected = (
        f"macro F1 {f1_score(truth, guess, average='macro') * 100:.1f} %, "
        f"balanced accuracy {balanced_accuracy_score(truth, guess) * 100:.1f} %, AUROC {auroc * 100:.1f} %"
    )
    assert expected in result.output
    assert "training images" not in result.output


def test_more_probabilities_than_memory_may_take_leave_the_accuracy(finished, folder, monkeypatch):
    monkeypatch.setattr("fedssl.views.predictions.MOST_PROBS", 1000)
    result = fedssl("predict", finished.path, folder)
    assert "of 360 images whose class is known" in result.output
    assert "macro F1" not in result.output


def test_training_images_among_the_images_are_counted_and_left_out(finished, tmp_path):
    """With 30 images of the training set and all held-out ones, with 30 of the training set alone, and without them."""
    federation = finished.federation
    train, held_out = federation.data.train, federation.held_out
    rows = np.arange(30)
    images = np.concatenate([train.read(rows), held_out.images])[:, 0]
    labels = np.concatenate([train.labels[rows], held_out.labels])
    np.savez(tmp_path / "both.npz", images=images, labels=labels)
    np.savez(tmp_path / "train.npz", images=images[:30], labels=labels[:30])
    np.savez(tmp_path / "unknown.npz", images=images[:30])
    right = int((finished.predict(held_out.images).argmax(1) == held_out.labels).sum())
    result = fedssl("predict", finished.path, tmp_path / "both.npz")
    assert "30 of these were training images of the run; without them: accuracy " in result.output
    assert f"{right / 360 * 100:.1f} %: {right} of 360; macro F1 " in result.output
    result = fedssl("predict", finished.path, tmp_path / "train.npz")
    assert "all of these were training images of the run" in result.output
    assert (
        "training images" not in fedssl("predict", finished.path, tmp_path / "unknown.npz").output
    )


def test_a_run_whose_images_are_gone_says_that_it_does_not_know_them(finished, folder, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished.path, copy)
    facts = (
        (copy / "data.json").read_text().replace('"held_out_sha256": "', '"held_out_sha256": "0')
    )
    (copy / "data.json").write_text(facts)
    result = fedssl("predict", copy, folder)
    assert result.exit_code == 0, result.output
    assert "which of the images were training images is not known" in result.output
    assert "of 360 images whose class is known" in result.output


def test_images_of_another_size_are_refused_all_at_once_or_resized(finished, folder, tmp_path):
    digit = Image.open(next(folder.glob("3/*.png")))
    digit.resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    digit.convert("RGB").save(tmp_path / "colored.png")
    out = tmp_path / "p.csv"
    result = fedssl("predict", finished.path, tmp_path, "--out", out)
    refused(
        result, "IMAGES", "large.png", "8x8", "colored.png", "3 channels, not 1", "--resize scales"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["colored.png", "large.png"]
    result = fedssl("predict", finished.path, tmp_path, "--out", out, "--resize")
    assert result.exit_code == 0, result.output
    (plain,) = finished.predict(np.asarray(digit)[None, None])
    for row in rows_of(out):
        assert row["class"] == str(plain.argmax())


def test_what_is_no_image_is_refused(finished, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    for options in ([], ["--resize"]):
        result = fedssl("predict", finished.path, tmp_path / "broken.png", *options)
        refused(result, "1 image cannot be read", "broken.png")
    (tmp_path / "empty").mkdir()
    refused(fedssl("predict", finished.path, tmp_path / "empty"), "no images in")
    refused(
        fedssl("predict", finished.path, tmp_path / "nowhere"),
        f"there is no file or folder '{tmp_path / 'nowhere'}'",
    )
    np.savez(tmp_path / "small.npz", images=np.zeros((2, 4, 4), np.uint8))
    refused(fedssl("predict", finished.path, tmp_path / "small.npz"), "small.npz", "4x4")
    np.savez(tmp_path / "other.npz", pictures=np.zeros(2))
    refused(fedssl("predict", finished.path, tmp_path / "other.npz"), "has no array 'images'")


def test_files_that_are_no_images_are_named_or_refused(finished, folder, tmp_path):
    shutil.copy(next(folder.glob("3/*.png")), tmp_path / "one.png")
    (tmp_path / "notes.txt").write_text("no image")
    result = fedssl("predict", finished.path, tmp_path)
    assert result.exit_code == 0, result.output
    assert "left out: 1 file has a suffix that no image has (" in result.output
    (tmp_path / "phone.heic").write_bytes(b"x")
    refused(fedssl("predict", finished.path, tmp_path), "phone.heic", "format that is not read")


def test_a_file_that_cannot_be_written_is_said_so(finished, folder, tmp_path):
    out = tmp_path / "no" / "p.csv"
    refused(fedssl("predict", finished.path, folder, "--out", out), "--out", "cannot write")


def test_a_run_that_scaled_its_own_images_scales_these(tmp_path):
    """As its source was told to; without being asked again."""
    rng = np.random.default_rng(0)
    for cls, level in (("dark", 60), ("light", 200)):
        for number in range(12):
            pixels = rng.integers(level - 40, level + 40, (10, 14, 3)).astype(np.uint8)
            path = tmp_path / "photos" / cls / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    experiment = {
        **small_experiment(rounds=2).to_dict(),
        "data": {"source": f"folder:{tmp_path / 'photos'}", "size": 8, "channels": 1},
        "federation": {"clients": 2, "sample": 2, "partition": "iid", "labels": {"per_class": 2}},
    }
    found = run(experiment, out=tmp_path / "run", progress=False)
    result = fedssl("predict", found.path, tmp_path / "photos" / "dark" / "1.png")
    assert result.exit_code == 0, result.output


def test_memory_does_not_grow_with_a_folder(finished, folder, monkeypatch):
    """A block at a time: nothing is decoded before what came before it is predicted."""
    from fedssl.data import decode
    from fedssl.data.target import Target
    from fedssl.views import predictions

    decoded, seen = [], []
    true_decode, true_probs = Target.decode, predictions.predict_probs

    def watched(target, item):
        decoded.append(item.name)
        return true_decode(target, item)

    def probs(network, images, spec):
        seen.append((len(decoded), len(images)))
        return true_probs(network, images, spec)

    monkeypatch.setattr(decode, "BLOCK_SIZE", 50)
    monkeypatch.setattr(Target, "decode", watched)
    monkeypatch.setattr(predictions, "predict_probs", probs)
    assert fedssl("predict", finished.path, folder).exit_code == 0
    assert seen[:3] == [(50, 50), (100, 50), (150, 50)]
