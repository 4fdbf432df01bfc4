"""The tables of README and docs/results.md, and the evidence of `fedssl advise`, are those of the recorded files of results."""

import pandas as pd
import pytest

from benchmarks.study.evidence import FILE, make_evidence
from benchmarks.study.pages import PAGES, TABLE, all_tables, renewed
from benchmarks.study.plan import BASELINE, BOUND, DATA, RESULTS, cells, lines_of, units

MEASURED = [data for data in DATA if (RESULTS / f"{data}_lines.csv").exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_of_the_files(page):
    assert renewed(page, all_tables()) == page.read_text(encoding="utf-8"), (
        "python -m benchmarks.study.pages renews the tables"
    )


def test_every_table_is_on_a_page():
    shown = {match[1] for page in PAGES for match in TABLE.finditer(page.read_text("utf-8"))}
    assert shown == set(all_tables())


def test_the_evidence_is_that_of_the_files():
    assert make_evidence().to_csv(index=False) == FILE.read_text(encoding="utf-8")


@pytest.mark.parametrize("data", MEASURED)
def test_the_lines_are_means_of_the_runs(data):
    lines, runs = (pd.read_csv(RESULTS / f"{data}_{name}.csv") for name in ("lines", "runs"))
    keys = ["protocol", "skew", "line"]
    means = runs.groupby(keys)["ema_accuracy"].agg(["mean", "size"])
    found = lines.set_index(keys).sort_index()
    assert (found["ema_accuracy"] - means["mean"]).abs().max() < 1e-5
    assert (found["seeds"] == means["size"]).all()
    baseline = found.xs(BASELINE, level="line")["ema_accuracy"]
    bound = found.xs(BOUND, level="line")["ema_accuracy"]
    closed = (found["ema_accuracy"] - baseline) / (bound - baseline)
    assert (found["gap_closed"] - closed).abs().max() < 1e-3


@pytest.mark.parametrize("data", DATA)
def test_every_run_of_the_plan_has_a_name_and_settings_of_its_own(data):
    planned = list(units(data, 2))
    assert len({unit.name for unit in planned}) == len(planned)
    assert len({(unit.file, *unit.settings) for unit in planned}) == len(planned)
    for protocol, _ in cells(data):
        assert lines_of(data, protocol)[-1] == BOUND
        assert BASELINE in lines_of(data, protocol)
