"""Texts of users and clients: harmless on terminals and in spreadsheets, and otherwise unchanged where possible."""

import ast
import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.panel import Panel
from rich.table import Table as RichTable
from rich.text import Text

from fedssl.core.console import Console, folded
from fedssl.core.text import SIGNS, as_cell, encodable, from_cell, one_line, printable
from fedssl.record.lines import Table, read_rows
from fedssl.record.rows import ClientRow
from tests.docs.pages import ROOT

ANY = st.text(st.characters(exclude_categories=()), max_size=40)
"""Any text, with surrogates such as Python makes of file names that are no UTF-8."""


@given(ANY)
def test_no_character_of_a_printable_text_controls_a_terminal(text):
    for character in printable(text):
        assert character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cs")
        assert unicodedata.bidirectional(character) not in (
            "RLO",
            "LRO",
            "RLE",
            "LRE",
            "PDF",
            "RLI",
            "LRI",
            "FSI",
            "PDI",
        )
    printable(text).encode()


@given(ANY)
def test_a_printable_text_stays_as_it_is(text):
    assert printable(printable(text)) == printable(text)
    assert len(one_line(text).splitlines()) <= 1 + sum(c in "\u2028\u2029" for c in text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("bell\x07", "bell\\x07"),
        ("Fl\udcfcgel", "Fl\\xfcgel"),
        ("a\u202eb", "a\\u202eb"),
        ("Küche, 猫 🐈", "Küche, 猫 🐈"),
        ("[red]:smile: $x$", "[red]:smile: $x$"),
    ],
)
def test_what_is_written_for_what(text, shown):
    assert printable(text) == shown


@given(ANY)
def test_a_cell_is_no_formula_and_is_read_back(text):
    cell = as_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    assert from_cell(cell) == printable(text)
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell])
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == [cell]


@pytest.mark.parametrize("name", ["[red]hen[/red]", ":smile:", "[/]", "a\x1b[31mb", "[link=x]y"])
def test_a_console_shows_names_as_they_are(name):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=False)
    table = RichTable(title=name, caption=name)
    table.add_column(name)
    table.add_row(name)
    console.print(name)
    console.print(table)
    console.print(Panel(table))
    assert file.getvalue().count(printable(name)) == 9


@given(ANY, st.sampled_from(["ascii", "latin-1", "cp1252", "utf-8"]))
def test_a_text_for_an_encoding_can_be_written_and_keeps_what_the_encoding_has(text, encoding):
    text = printable(text)
    shown = encodable(text, encoding)
    shown.encode(encoding)
    assert encodable(shown, encoding) == shown
    kept = [character for character in text if encodable(character, encoding) == character]
    assert [c for c in shown if c not in "?+-<>=~_.:*#"] == [
        c for c in kept if c not in "?+-<>=~_.:*#"
    ]


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "95.0 +- 0.5, - >= 0 <= 1 _.# gr?n"),
        ("latin-1", "95.0 ± 0.5, · >= 0 <= 1 _.# grün"),
        ("utf-8", "95.0 ± 0.5, · ≥ 0 ≤ 1 ▁▂█ grün"),
    ],
)
def test_signs_that_an_encoding_lacks_have_ascii_forms(encoding, shown):
    assert encodable("95.0 ± 0.5, · ≥ 0 ≤ 1 ▁▂█ grün", encoding) == shown


def test_every_sign_that_the_code_prints_has_an_ascii_form():
    """Pages are UTF-8, so their signs need none."""
    found = set()
    for file in (ROOT / "fedssl").rglob("*.py"):
        if "reports" not in file.parts and file.name != "latex.py":
            texts = (
                node.value
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
            )
            found |= {c for text in texts for c in text if not c.isascii() and c.isprintable()}
    assert found >= {"±", "≥", "█"}
    assert found <= set(SIGNS)


@pytest.mark.parametrize(("encoding", "sign"), [("ascii", "+-"), ("latin-1", "±")])
def test_a_table_is_laid_out_with_the_signs_that_are_written(encoding, sign):
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    table = RichTable("± of a", "x", title="±")
    table.add_row("1 ± 2", "y")
    Console(file=file, width=40).print(Panel(table, title=Text("± b")))
    file.seek(0)
    lines = file.read().splitlines()
    assert f" {sign} b " in lines.pop(0)
    assert {len(line) for line in lines} == {40}
    assert any(f"1 {sign} 2 " in line for line in lines)
    assert any(f"{sign} of a" in line for line in lines)


def test_a_sign_of_richs_own_has_an_ascii_form_too():
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    Console(file=file, width=6).print("too long", overflow="ellipsis", no_wrap=True)
    file.seek(0)
    assert file.read() == "too l~\n"


def test_a_reason_of_a_client_is_no_formula_in_its_table(tmp_path):
    row = ClientRow(1, 2, "failed", "=HYPERLINK(\x1b[2J)")
    Table(tmp_path / "clients.csv", ClientRow).add([row])
    assert "'=HYPERLINK(\\x1b[2J)" in (tmp_path / "clients.csv").read_text()
    (read,) = read_rows(tmp_path / "clients.csv", ClientRow)
    assert read.reason == "=HYPERLINK(\\x1b[2J)"


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("short-name", 10, ["short-name"]),
        ("runs/digits-fixmatch/seed0", 12, ["runs/", "digits-", "fixmatch/", "seed0"]),
        ("a/b-c/d", 6, ["a/b-c/", "d"]),
        ("abcdefg", 3, ["abc", "def", "g"]),
    ],
)
def test_a_long_name_is_folded_behind_its_marks(text, width, lines):
    assert folded(text, width).split("\n") == lines


@given(ANY.map(one_line), st.integers(2, 30))
def test_a_folded_name_fits_and_loses_nothing(text, width):
    lines = folded(text, width).split("\n")
    assert "".join(lines) == text
    assert max(map(cell_len, lines)) <= width
