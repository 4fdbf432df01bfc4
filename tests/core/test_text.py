"""Texts of users and clients: harmless on terminals and in spreadsheets, and otherwise unchanged where possible."""

import csv
import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.panel import Panel
from rich.table import Table as RichTable

from fedssl.core.console import Console
from fedssl.core.text import as_cell, from_cell, one_line, printable
from fedssl.record.lines import Table, read_rows
from fedssl.record.rows import ClientRow

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


def test_a_reason_of_a_client_is_no_formula_in_its_table(tmp_path):
    row = ClientRow(1, 2, "failed", "=HYPERLINK(\x1b[2J)")
    Table(tmp_path / "clients.csv", ClientRow).add([row])
    assert "'=HYPERLINK(\\x1b[2J)" in (tmp_path / "clients.csv").read_text()
    (read,) = read_rows(tmp_path / "clients.csv", ClientRow)
    assert read.reason == "=HYPERLINK(\\x1b[2J)"
