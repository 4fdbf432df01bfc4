"""The image formats that are read: a closed list, for which Pillow has its own readers that start no other program.

Without this list, Pillow would choose among some forty readers by a file's content, whatever the file's name says, and
would hand PostScript to Ghostscript.
"""

import io
import os
import stat

# Each import registers its readers with Pillow. Pillow does not load readers itself if `formats` names them.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    Jpeg2KImagePlugin,  # noqa: F401
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from fedssl.core.extras import install_command

FORMATS = ("BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow's names of the formats that are read."""

SUFFIXES = frozenset((
    ".bmp", ".dib", ".gif", ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".png",
    ".apng", ".pbm", ".pgm", ".ppm", ".pnm", ".pfm", ".tif", ".tiff", ".webp",
))  # fmt: skip
"""Suffixes of files in the formats of `FORMATS`, in lower case."""

DICOM_SUFFIXES = frozenset((".dcm", ".dicom"))
"""Suffixes of DICOM files, in lower case; the library pydicom reads them (`fedssl.data.dicom`)."""

EXTRA = "medical"
"""The extra of fedssl that installs pydicom."""

READ = (
    f"files are read that end in {', '.join(sorted(SUFFIXES))}, and, with pydicom ({install_command(EXTRA)}), "
    f"in {', '.join(sorted(DICOM_SUFFIXES))}"
)
"""What can be read, for people who have other files."""

OTHER_IMAGES = frozenset((
    ".heic", ".heif", ".hif", ".avif", ".avifs", ".jxl", ".jxr", ".hdp", ".wdp", ".flif", ".bpg", ".mpo", ".qoi",
    ".svg", ".svgz", ".ico", ".icns", ".cur", ".raw", ".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf",
    ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw", ".rwl", ".iiq", ".3fr", ".x3f", ".erf", ".kdc", ".mrw", ".dic",
    ".ima", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".svs", ".ndpi", ".mrxs", ".scn",
    ".vms", ".bif", ".czi", ".lif", ".lsm", ".nd2", ".vsi", ".oib", ".oif", ".stk", ".fits", ".fit", ".fts", ".sid",
    ".ecw", ".psd", ".psb", ".xcf", ".kra", ".ai", ".eps", ".ps", ".pdf", ".djvu", ".tga", ".pcx", ".dcx", ".dds",
    ".exr", ".hdr", ".sgi", ".rgb", ".rgba", ".bw", ".ras", ".sun", ".xbm", ".xpm", ".wmf", ".emf", ".fli", ".flc",
    ".iff", ".pict", ".pct", ".mp4", ".m4v", ".avi", ".mov", ".mpg", ".mpeg", ".mkv", ".webm", ".wmv", ".flv",
    ".mjpeg",
))  # fmt: skip
"""Suffixes of images and films that are not read, in lower case."""

SIDECARS = frozenset((
    ".json", ".xml", ".xmp", ".txt", ".csv", ".tsv", ".yaml", ".yml", ".toml", ".md", ".html", ".htm", ".md5",
    ".sha1", ".sha256", ".sha512", ".aux", ".wld", ".tfw", ".url", ".lnk", ".license", ".py", ".log",
))  # fmt: skip
"""Suffixes of files about an image, which may follow the image's own suffix, as in ``IMAGE.png.json``."""

TEXTS = frozenset((
    "readme", "license", "licence", "copying", "notice", "authors", "contributors", "changelog", "changes",
    "history", "version", "citation", "manifest", "makefile", "dockerfile", "sha256sums", "sha1sums", "md5sums",
    "checksums", "todo", "index", "labels", "classes", "metadata",
))  # fmt: skip
"""Names of files without a suffix that are known to be texts, in lower case."""

SYSTEM_FILES = frozenset((
    "thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store", "__macosx", "@eadir", "#recycle", "$recycle.bin",
    "lost+found", "system volume information",
))  # fmt: skip
"""Names of files and folders that operating systems leave everywhere, in lower case; messages never mention them."""

SEVERAL_FRAMES = ("GIF", "PNG", "TIFF", "WEBP")
"""Formats whose further frames are images of their own; in a JPEG of a phone, they are smaller copies of the first."""

NO_SUFFIX = "files have no suffix and may be images (DICOM files are read if they end in .dcm)"
COPIES = "files have another suffix behind that of an image"
NOT_READ = "files have the suffix of a format that is not read"
NO_IMAGES = "files have a suffix that no image has"


def suffix_of(path: str) -> str:
    """Return the suffix of a file's name in lower case, with its dot."""
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - millions of paths, and a Path each doubles the time


def is_image(path: str) -> bool:
    """Say whether a file has the suffix of an image; only decoding shows whether the file holds one."""
    return suffix_of(path) in SUFFIXES or is_dicom(path)


def is_dicom(content: str | bytes) -> bool:
    """Say whether a file has the suffix of DICOM files, or whether bytes begin as a DICOM file does."""
    if isinstance(content, bytes):
        return content[128:132] == b"DICM"
    return suffix_of(content) in DICOM_SUFFIXES


def may_be_image(path: str) -> str:
    """Return why a file without the suffix of an image may hold an image, as a flaw; empty if it does not."""
    name = os.path.basename(path).lower()  # noqa: PTH119
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    inner = suffix_of(stem)
    if suffix in OTHER_IMAGES or (suffix == ".gz" and inner in OTHER_IMAGES | DICOM_SUFFIXES):
        return NOT_READ
    if not suffix or (suffix[1:].isdigit() and not is_image(stem)):
        # "IM.0001" is how scanners number their images.
        return "" if name in TEXTS else NO_SUFFIX
    is_copy = is_image(stem) or inner in OTHER_IMAGES
    grown = any(suffix.startswith(known) and not suffix[len(known)].isalnum() for known in SUFFIXES)
    return COPIES if (is_copy and suffix not in SIDECARS) or grown else ""


def open_image(content: str | bytes) -> ImageFile.ImageFile:
    """Open an image without decoding it.

    Args:
        content: Path of a regular file, or the bytes of an encoded image.

    Raises:
        NotRegularError: The path names a pipe, a device, a socket or a folder.
        OSError, Exception: Pillow's readers raise many types of errors about a damaged file.
    """
    check_regular(content)
    return Image.open(
        io.BytesIO(content) if isinstance(content, bytes) else content, formats=FORMATS
    )


def check_regular(content: str | bytes) -> None:
    """Raise `NotRegularError` if a path names a pipe, a device, a socket or a folder."""
    if isinstance(content, str) and not stat.S_ISREG(os.stat(content).st_mode):  # noqa: PTH116
        raise NotRegularError


class NotRegularError(Exception):
    """A path does not name a regular file; opening a pipe, for example, would wait for ever."""


def num_frames(image: ImageFile.ImageFile) -> int:
    """Return the number of images in a file, such as the pages of a TIFF file or the frames of an animation."""
    return int(getattr(image, "n_frames", 1)) if image.format in SEVERAL_FRAMES else 1


def is_followed(image: ImageFile.ImageFile) -> bool:
    """Say whether another image follows the first image of a binary PPM file, which Pillow neither tells nor reads."""
    if image.format != "PPM" or not image.tile or image.tile[0][0] != "raw" or image.fp is None:
        return False
    width, height = image.size
    row = (width + 7) // 8 if image.mode == "1" else width * len(image.getbands())
    place = image.fp.tell()
    image.fp.seek(image.tile[0][2] + row * height)
    rest = image.fp.read(16).lstrip()
    image.fp.seek(place)
    return rest[:1] == b"P"
