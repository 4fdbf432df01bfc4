"""A table of a comparison as LaTeX, for a paper."""

import re

import pandas as pd

from fedssl.views.text_table import TextTable


def latex_of(table: TextTable) -> str:
    """Return a table as LaTeX that needs the package booktabs; the table's title and note are comments above it.

    Args:
        table: The table. Its texts are escaped, and its signs become those of formulas.
    """
    frame = pd.DataFrame([list(row) for row in table.rows], columns=list(table.columns))
    numbers = "r" * (len(table.columns) - 1)
    text = frame.to_latex(index=False, escape=True, column_format=f"l{numbers}")
    text = re.sub(r"(?<=& )-(?=\d)", "$-$", text.replace("±", r"$\pm$"))
    comments = ["Needs \\usepackage{booktabs}.", table.title, *table.note.split("; ")]
    return "".join(f"% {line}\n" for line in comments) + text
