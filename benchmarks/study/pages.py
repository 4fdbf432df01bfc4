"""Renew the tables of README and docs/results.md, and the evidence of ``fedssl advise``: ``python -m benchmarks.study.pages``.

A table of a page stands between the comments ``<!-- table NAME -->`` and ``<!-- end NAME -->``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.study import orderings
from benchmarks.study.evidence import FILE, make_evidence
from benchmarks.study.plan import DATA, HERE, ORDERINGS, RESULTS
from benchmarks.study.tables import OVERVIEW, overview, tables

ROOT = HERE.parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
TABLE = re.compile(r"<!-- table (\S+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def all_tables() -> dict[str, str]:
    """Return the tables of everything that has results, by their names, such as ``fashion-A-iid``."""
    measured = [data for data in DATA if (RESULTS / f"{data}_lines.csv").exists()]
    made = {name: text for data in measured for name, text in tables(data).items()}
    made[OVERVIEW] = overview()
    return made | ({ORDERINGS: orderings.table()} if orderings.FILE.exists() else {})


def renewed(page: Path, made: Mapping[str, str]) -> str:
    """Return the text of a page with its tables as they should be."""

    def table(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- table {name} -->\n\n{made[name]}\n\n<!-- end {name} -->"

    return TABLE.sub(table, page.read_text(encoding="utf-8"))


def main() -> None:
    """Write the pages and the evidence."""
    made = all_tables()
    for page in PAGES:
        page.write_text(renewed(page, made), encoding="utf-8")
    make_evidence().to_csv(FILE, index=False)


if __name__ == "__main__":
    main()
