"""Images of more than 8 bits, DICOM files and files of several frames become bytes by rules that people can check by hand."""

import sys

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, SecondaryCaptureImageStorage

from fedssl.core.errors import InputError
from fedssl.data import dicom
from fedssl.data.flaws import Flaws
from fedssl.data.private import prepare_private
from fedssl.data.sources.base import SOURCES
from fedssl.data.sources.folder import Folder
from fedssl.data.target import Reading, Target
from fedssl.data.terms import Terms
from fedssl.data.unseen import read_blocks
from tests.data.own_images import colors, refused, save, save_classes


def steps(dtype=np.uint16, low=1000, high=3000):
    """Return an image (8, 8) of all values from low to high, in 64 even steps."""
    return np.linspace(low, high, 64).reshape(8, 8).astype(dtype)


def scaled(values, low, high):
    """Return values as the bytes that they become, by arithmetic of its own."""
    return np.rint(np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255)


def read(root, **settings):
    """Return the images of a folder, (N, C, H, W), and its entry's facts."""
    entry = Folder(name=str(root), **settings).prepare()
    return entry.part("train").images, entry.meta


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_each_image_of_16_bits_is_scaled_from_its_least_to_its_greatest_value(tmp_path, suffix):
    """Values stay below 4096, as those of many cameras: as a share of 65,535, all would be nearly black."""
    save(tmp_path / "a" / f"0.{suffix}", steps())
    save(tmp_path / "b" / f"1.{suffix}", steps(high=4000))
    images, meta = read(tmp_path)
    np.testing.assert_array_equal(images[0, 0], scaled(steps(), 1000, 3000))
    np.testing.assert_array_equal(images[1, 0], scaled(steps(high=4000), 1000, 4000))
    assert images.max() == 255
    (remark,) = meta["remarks"]
    assert remark.startswith("2 images have more than 8 bits: the least to the greatest value")
    assert "data.intensities" in remark


def test_one_range_for_all_images_keeps_what_is_brighter(tmp_path):
    save(tmp_path / "a" / "0.png", steps())
    save(tmp_path / "b" / "1.png", steps(high=4000))
    images, meta = read(tmp_path, intensities=(0, 4095))
    np.testing.assert_array_equal(images[0, 0], scaled(steps(), 0, 4095))
    np.testing.assert_array_equal(images[1, 0], scaled(steps(high=4000), 0, 4095))
    assert "the range data.intensities became 0 to 255" in meta["remarks"][0]


def test_floats_whole_numbers_of_32_bits_and_white_zeros_are_scaled_too(tmp_path):
    floats = steps(np.float32, -1.0, 1.0)
    floats[0, 0] = np.nan
    save(tmp_path / "a" / "float.tif", floats)
    save(tmp_path / "b" / "int.tif", steps(np.int32, -100_000, 100_000))
    save(tmp_path / "b" / "white.tif", steps(), tiffinfo={262: 0})
    (first, second, white), _ = read(tmp_path)
    expected = scaled(floats, floats[0, 1], 1.0)
    expected[0, 0] = 0  # NaN
    np.testing.assert_array_equal(first[0], expected)
    np.testing.assert_array_equal(second[0], scaled(steps(np.int32, -100_000, 100_000), -1e5, 1e5))
    np.testing.assert_array_equal(white[0], 255 - scaled(steps(), 1000, 3000))


def test_an_image_of_one_value_is_black_and_one_without_finite_values_is_a_flaw(tmp_path):
    save(tmp_path / "a" / "0.png", np.full((8, 8), 700, np.uint16))
    save(tmp_path / "b" / "1.png", steps())
    images, _ = read(tmp_path)
    assert (images[0] == 0).all()
    save(tmp_path / "b" / "nan.tif", np.full((8, 8), np.nan, np.float32))
    refused(Folder(name=str(tmp_path)), "nan.tif: no value is a finite number")


def test_deep_images_are_turned_scaled_and_converted_as_others_are(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((16, 8), np.uint16)
    pixels[:, :4] = 5000
    for name in "ab":
        save(tmp_path / name / "x.png", Image.fromarray(pixels), exif=exif)
    images, _ = read(tmp_path, size=(4, 8), channels=3)
    assert images.shape == (2, 3, 4, 8)
    assert images[:, :, :2].mean() > 230
    assert images[:, :, 2:].mean() < 20


def test_images_of_8_bits_are_not_scaled(tmp_path):
    for name in "ab":
        save(tmp_path / name / "x.png", np.full((8, 8), 100, np.uint8))
    images, meta = read(tmp_path, intensities=(0, 4095))
    assert (images == 100).all()
    assert meta["remarks"] == []


@pytest.mark.parametrize("limits", [(5, 5), (10, 3)])
def test_a_range_that_is_none_is_refused(limits):
    with pytest.raises(InputError, match="LOW must be below HIGH"):
        SOURCES.build({"source": "folder:x", "intensities": limits})


def write_dicom(path, pixels, **facts):
    """Write pixels (H, W), (frames, H, W) or colors (H, W, 3) as a DICOM file; facts are laid over usual ones."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    is_color = pixels.shape[-1] == 3
    data.Rows, data.Columns = pixels.shape[:2] if is_color else pixels.shape[-2:]
    data.SamplesPerPixel = 3 if is_color else 1
    if is_color:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = "RGB" if is_color else "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 * pixels.dtype.itemsize
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    if pixels.ndim == 3 and not is_color:
        data.NumberOfFrames = len(pixels)
    data.PixelData = pixels.tobytes()
    for name, value in facts.items():
        setattr(data, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, data, enforce_file_format=True)


@pytest.fixture
def scans(tmp_path):
    """Two folders with a CT scan each: air is -1000 HU, and slope and intercept turn values into HU."""
    for number, name in enumerate("ab"):
        write_dicom(
            tmp_path / name / f"{number}.dcm",
            steps(np.int16, 0, 2000),
            RescaleSlope=2,
            RescaleIntercept=-1000,
            WindowCenter=[40, 500],
            WindowWidth=[400, 1500],
        )
    return tmp_path


def test_dicom_values_are_rescaled_and_the_first_window_is_taken(scans):
    """C.11.2.1.2 of the standard: a window of center 40 and width 400 goes from -160 to 239."""
    images, meta = read(scans)
    units = steps(np.int16, 0, 2000) * 2 - 1000
    np.testing.assert_array_equal(
        images[0, 0], scaled(units, 40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2)
    )
    assert meta["shape"] == [1, 8, 8]
    assert "2 images have more than 8 bits: each image's own window" in meta["remarks"][0]


def test_a_range_for_all_goes_before_windows(scans):
    images, _ = read(scans, intensities=(-1000, 3000))
    units = steps(np.int16, 0, 2000) * 2 - 1000
    np.testing.assert_array_equal(images[0, 0], scaled(units, -1000, 3000))


def test_dicom_without_a_window_is_scaled_without_its_padding_and_monochrome1_is_inverted(tmp_path):
    pixels = steps()
    pixels[0] = 0
    write_dicom(tmp_path / "a" / "0.dcm", pixels, PixelPaddingValue=0)
    write_dicom(tmp_path / "b" / "1.DCM", steps(), PhotometricInterpretation="MONOCHROME1")
    exact = {"WindowCenter": 2000, "WindowWidth": 1000, "VOILUTFunction": "LINEAR_EXACT"}
    write_dicom(tmp_path / "b" / "2.dicom", steps(), **exact)
    (padded, inverted, windowed), _ = read(tmp_path)
    np.testing.assert_array_equal(padded[0], scaled(pixels, pixels[1:].min(), 3000))
    np.testing.assert_array_equal(inverted[0], 255 - scaled(steps(), 1000, 3000))
    np.testing.assert_array_equal(windowed[0], scaled(steps(), 1500, 2500))


def test_dicom_of_8_bits_is_read_as_it_is_and_colors_too(tmp_path):
    gray = colors()[0, :, :, 0]
    for name in "ab":
        write_dicom(tmp_path / "gray" / name / "0.dcm", gray, RescaleSlope=1, RescaleIntercept=0)
        write_dicom(tmp_path / "color" / name / "0.dcm", colors()[0])
    images, meta = read(tmp_path / "gray")
    np.testing.assert_array_equal(images[0, 0], gray)
    assert meta["remarks"] == []
    images, _ = read(tmp_path / "color")
    np.testing.assert_array_equal(images[0], colors()[0].transpose(2, 0, 1))


def test_a_palette_of_a_dicom_file_becomes_colors(tmp_path):
    """Its tables have 16 bits, of which the upper 8 are kept."""
    numbers = colors()[0, :, :, 0]
    tables = np.random.default_rng(1).integers(0, 2**16, (3, 256)).astype(np.uint16)
    facts = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        facts[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        facts[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    for name in "ab":
        write_dicom(tmp_path / name / "0.dcm", numbers, **facts)
    images, _ = read(tmp_path)
    np.testing.assert_array_equal(images[0], (tables // 256)[:, numbers])


def test_a_compressed_dicom_file_is_read(tmp_path):
    for name in "ab":
        write_dicom(tmp_path / name / "0.dcm", steps())
        data = pydicom.dcmread(tmp_path / name / "0.dcm")
        data.compress(RLELossless, generate_instance_uid=False)
        data.save_as(tmp_path / name / "0.dcm")
    images, _ = read(tmp_path)
    np.testing.assert_array_equal(images[0, 0], scaled(steps(), 1000, 3000))


def test_facts_of_a_frame_are_found_in_the_groups_of_newer_files(tmp_path):
    def group(center):
        rescale, window, result = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, 100, "HU"
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = (
            center,
            1000,
            "LINEAR_EXACT",
        )
        result.PixelValueTransformationSequence = Sequence([rescale])
        result.FrameVOILUTSequence = Sequence([window])
        return result

    groups = Sequence([group(1000), group(2000)])
    for name in "ab":
        frames = np.stack([steps(), steps()])
        write_dicom(tmp_path / name / "0.dcm", frames, PerFrameFunctionalGroupsSequence=groups)
    images, _ = read(tmp_path, frames="all")
    np.testing.assert_array_equal(images[0, 0], scaled(steps() + 100, 500, 1500))
    np.testing.assert_array_equal(images[1, 0], scaled(steps() + 100, 1500, 2500))


def test_dicom_files_that_hold_no_picture_are_named_with_their_reason(scans):
    (scans / "a" / "text.dcm").write_text("no DICOM file")
    write_dicom(scans / "a" / "deep.dcm", steps().repeat(3).reshape(8, 8, 3))
    write_dicom(scans / "b" / "report.dcm", steps())
    report = pydicom.dcmread(scans / "b" / "report.dcm")
    for name in ("Rows", "Columns", "PixelData"):
        del report[name]
    report.save_as(scans / "b" / "report.dcm")
    refused(
        Folder(name=str(scans), channels=1),
        "text.dcm: it does not begin as a DICOM file does",
        "deep.dcm: colors have more than 8 bits a channel",
        "report.dcm: it holds no image",
    )


def test_too_many_pixels_of_a_dicom_file_are_not_decoded(scans, monkeypatch):
    monkeypatch.setattr("fedssl.data.target.MOST_PIXELS", 63)
    with pytest.raises(InputError, match=r"2 images have more than .* pixels .*: 64 pixels"):
        read(scans)


def test_without_pydicom_the_message_says_how_to_install_it(scans, monkeypatch):
    monkeypatch.setattr(dicom, "is_installed", lambda module: False)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError) as caught:
        read(scans)
    said = str(caught.value)
    assert "2 images are DICOM files and need pydicom, which is not installed" in said
    assert "pip install 'fedssl[medical]'" in said


@pytest.fixture
def stacks(tmp_path):
    """A folder of two classes with one stack of five pages each; page i of the first stack has the value 10 i."""
    for number, name in enumerate("ab"):
        pages = [Image.fromarray(np.full((8, 8), 10 * i + number, np.uint8)) for i in range(5)]
        path = tmp_path / name / "stack.tif"
        path.parent.mkdir()
        pages[0].save(path, save_all=True, append_images=pages[1:])
    return tmp_path


def test_files_of_several_frames_are_refused_with_their_number_and_the_setting(stacks):
    with pytest.raises(
        InputError, match=r"2 images have several frames \(data.frames .*: 5 frames"
    ):
        read(stacks)


@pytest.mark.parametrize(("frames", "number"), [("first", 0), ("middle", 2)])
def test_one_frame_is_read_and_the_others_are_counted(stacks, frames, number):
    images, meta = read(stacks, frames=frames)
    assert images[:, 0, 0, 0].tolist() == [10 * number, 10 * number + 1]
    (note,) = meta["notes"]
    assert note.startswith("8 frames are not the ")
    named = [n for n in range(5) if n != number][:3]
    assert all(f"a/stack.tif: frame {n + 1}" in note for n in named)
    assert f"a/stack.tif: frame {number + 1}" not in note


def test_all_frames_are_images_of_their_files_class(stacks):
    entry = Folder(name=str(stacks), frames="all").prepare()
    train = entry.part("train")
    assert train.images[:, 0, 0, 0].tolist() == [0, 10, 20, 30, 40, 1, 11, 21, 31, 41]
    assert train.labels.tolist() == [0] * 5 + [1] * 5
    assert "frames of one file may be both training and test images" in entry.meta["remarks"][0]


def test_frames_of_animations_and_dicom_files_are_read_by_number(tmp_path):
    pictures = [Image.fromarray(np.full((8, 8, 3), 60 * i, np.uint8)) for i in range(3)]
    (tmp_path / "a").mkdir()
    pictures[0].save(tmp_path / "a" / "film.gif", save_all=True, append_images=pictures[1:])
    write_dicom(
        tmp_path / "b" / "0.dcm", np.stack([np.full((8, 8), i, np.uint8) for i in range(3)])
    )
    images, _ = read(tmp_path, frames="all", channels=3)
    assert images[:, 0, 0, 0].tolist() == [0, 60, 120, 0, 1, 2]
    images, _ = read(tmp_path, frames="middle", channels=3)
    assert images[:, 0, 0, 0].tolist() == [60, 1]


def test_a_client_reads_its_own_images_as_the_federation_does(tmp_path):
    save_classes(tmp_path / "server")
    data = Folder(name=str(tmp_path / "server")).dataset(0)
    save(tmp_path / "own" / "cat" / "0.png", steps())
    reading = Reading(intensities=(0, 4095))
    prepared = prepare_private(str(tmp_path / "own"), Terms.of(data), reading, skip=False)
    expected = scaled(steps(), 0, 4095)
    np.testing.assert_array_equal(prepared.part("train").images[0], np.stack([expected] * 3))


def test_images_to_predict_are_read_in_the_same_way(stacks):
    target = Target((8, 8), 1, False, False, "", "", Reading(frames="middle"))
    blocks = list(read_blocks([stacks], ("a", "b"), target, Flaws()))
    assert [block.images[:, 0, 0, 0].tolist() for block in blocks] == [[20, 21]]
