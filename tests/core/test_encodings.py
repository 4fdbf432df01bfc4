"""A file that is no text in UTF-8 is refused in words that say what it is, and not in those of a codec."""

from pathlib import Path

import pytest

from fedssl.core.encodings import decode_text
from fedssl.core.errors import InputError
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.system.csv_file import read_columns

TEXT = '# Versuch für die Klinik\nname = "klinik"\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0", "is a picture (PNG) and no text; check the path"),
        (b"PK\x03\x04rest", "is a ZIP archive or an .npz file and no text"),
        (b"name\0\0\1\2\3\4", "is no text; check the path"),
        (TEXT.encode("utf-16"), "is saved as UTF-16; save it as UTF-8"),
        (TEXT.encode("utf-16-le"), "is saved as UTF-16; save it as UTF-8"),
        (TEXT.encode("utf-16-be"), "is saved as UTF-16; save it as UTF-8"),
        (TEXT.encode("latin-1"), "is not saved as UTF-8: line 1, which may read '# Versuch für die Klinik'; save it as UTF-8"),
        (b"a = 1\r\nb = '\x81'", "line 2, which may read"),
    ],
)  # fmt: skip
def test_what_the_file_is_and_how_to_save_it(tmp_path, content, said):
    file = tmp_path / "e.toml"
    file.write_bytes(content)
    for read in (Experiment.load, lambda path: read_columns(path, ("seconds",))):
        with pytest.raises(InputError) as error:
            read(file)
        assert str(error.value).startswith(f"{file}: ")
        assert said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"a", TEXT.encode(), b"\xef\xbb\xbf" + TEXT.encode()])
def test_text_in_utf_8_is_read(content):
    assert decode_text(Path("e.toml"), content) in ("", "a", TEXT)
