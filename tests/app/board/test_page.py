"""The board's page in a browser: it shows runs as they are, asks this machine only, and takes no name for markup."""

import json
import shutil

import filelock
import pytest

from tests.app.board.serving import served
from tests.views.comparison.records import record
from tests.views.reports.browser import DARK, LIGHT, PHONE, is_as_wide_as_the_screen, visited

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def runs(tmp_path):
    """Return a folder with a finished, a killed and a strange run."""
    folder = tmp_path / "runs"
    record(folder / "good", [0.5, 0.9], seed=1, ended="2026-01-03T00:00:00+00:00")
    record(folder / "better", [0.5, 0.95], seed=1, method={"threshold": 0.9})
    path = record(folder / EVIL, [0.3, 0.4], seed=2)
    summary = json.loads((path / "summary.json").read_text())
    (path / "summary.json").write_text(json.dumps({**summary, "name": EVIL, "remark": EVIL}))
    (path / "tags.json").write_text(json.dumps([EVIL]))
    path = record(folder / "dead", [0.2, 0.3, 0.4], finished=False)
    (path / "events.jsonl").write_text('{"time": "2026-01-01T00:00:00+00:00", "event": "began"}\n')
    return folder


def check(said, board):
    """Assert that the console said nothing and that only this machine was asked."""
    own = f"asked for {board.url.removesuffix(board.key + '/')}"
    assert [line for line in said if not line.startswith((own, "asked for data:,"))] == []


def row(page, place):
    return page.locator("#runs tbody tr", has=page.get_by_role("link", name=place, exact=True))


def test_it_shows_runs_as_they_are(runs):
    with served(runs) as board:
        with visited(board.url, LIGHT) as (page, said):
            assert page.locator("#runs tbody tr").count() == 4
            assert page.locator("#count").inner_text() == "4 runs: 3 finished, 1 killed"
            cells = [text.strip() for text in row(page, "dead").locator("td").all_inner_texts()]
            assert cells[2:6] == ["killed", "3", "40.0", "3 s"]
            assert "threshold=0.9" in row(page, "better").inner_text()
            # A name is a text, wherever it stands.
            assert row(page, EVIL).inner_text().count(EVIL) == 4  # place, name, remark and tag
            assert page.locator("img").count() == 0
            assert page.locator("#chart polyline").count() == 4
            light = page.evaluate("getComputedStyle(document.body).backgroundColor")
        check(said, board)
        with visited(board.url, DARK) as (page, said):
            assert page.evaluate("getComputedStyle(document.body).backgroundColor") != light
        check(said, board)
        with visited(board.url, PHONE) as (page, said):
            assert is_as_wide_as_the_screen(page)
        check(said, board)


def test_a_long_remark_is_clamped_and_opens(runs):
    """The clamped remark ends in an ellipsis and opens by the mouse or the keyboard; a refresh leaves it open."""
    path = runs / "good" / "summary.json"
    remark = "The clients pull apart: " + "try a larger federation.sample, " * 9
    path.write_text(json.dumps({**json.loads(path.read_text()), "remark": remark}))
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        note = row(page, "good").locator("details.note summary")
        clipped = "summary => summary.scrollHeight > summary.clientHeight + 1"
        assert note.evaluate(clipped)
        note.focus()
        page.keyboard.press("Enter")
        assert not note.evaluate(clipped)
        assert note.inner_text().endswith(remark.strip())
        with page.expect_response("**/runs"):
            pass
        assert not note.evaluate(clipped)
    check(said, board)


LONGER = {
    "method": {"threshold": 0.9},
    "train": {"lr": 0.07, "batch_size": 8, "local_steps": 3},
    "federation": {"sample": 2},
    "strategy": {"kind": "fedprox"},
}
"""Settings in which a run differs from others, more than a cell of the list shows."""


@pytest.mark.parametrize("screen", [LIGHT, PHONE], ids=["screen", "phone"])
def test_settings_beyond_the_first_are_counted_and_open(runs, screen):
    record(runs / "other", [0.5, 0.6], seed=1, **LONGER)
    with served(runs) as board, visited(board.url, screen) as (page, said):
        cell = row(page, "other").locator("td").nth(7)
        more = cell.get_by_role("button")
        shown = cell.locator(".chip:visible")
        hidden = int(more.inner_text().removeprefix("and ").removesuffix(" more"))
        assert (shown.count(), hidden) == (4, cell.locator(".chip").count() - 4)
        more.focus()
        page.keyboard.press("Enter")
        assert shown.count() == 4 + hidden
        with page.expect_response("**/runs"):
            pass
        assert shown.count() == 4 + hidden
        assert more.inner_text() == "show fewer"
        more.click()
        assert shown.count() == 4
    check(said, board)


def test_the_legend_names_the_folders_of_runs_of_one_name(runs):
    """Two runs of one file and seed had the same words, and nobody knew whose curve was whose."""
    for place in ("lab/first", "lab/second"):
        record(runs / place, [0.5, 0.6], name="mine", seed=7)
    record(runs / "alone", [0.5, 0.7], name="alone", seed=7)
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        for place in ("lab/first", "lab/second", "alone"):
            row(page, place).locator("input").check()
        entries = [text.partition(": ")[2] for text in page.locator("#legend li").all_inner_texts()]
        assert entries == ["mine seed 7 in lab/first", "mine seed 7 in lab/second", "alone seed 7"]
    check(said, board)


def test_a_run_that_is_always_right_has_a_curve(runs):
    """Its axis has a length all the same; a length of 0 would be told on the console."""
    record(runs / "perfect", [1.0, 1.0], seed=5)
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        row(page, "perfect").locator("input").check()
        assert "NaN" not in page.locator("#chart").inner_html()
        assert page.locator("#chart polyline").count() == 1
    check(said, board)


def test_compare_says_that_it_needs_two_runs(runs):
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        ticked, compare = page.locator("#ticked"), page.locator("#compare")
        wanted = [("good", "1 ticked; tick two or more to", False), ("better", "2 ticked", True)]
        assert ticked.inner_text() == "tick runs to"
        for place, text, can in wanted:
            row(page, place).locator("input").check()
            assert ticked.inner_text() == text
            assert (compare.get_attribute("href") is not None) == can
    check(said, board)


def test_it_follows_a_run_without_being_reloaded(runs):
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        with filelock.FileLock(runs / "dead" / ".lock"):
            row(page, "dead").get_by_text("running").wait_for(timeout=20_000)
        row(page, "dead").get_by_text("killed").wait_for(timeout=20_000)
        shutil.rmtree(runs / "good")
        row(page, "good").wait_for(state="detached", timeout=20_000)
    check(said, board)


def test_runs_are_found_ordered_tagged_and_deleted(runs):
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        shown = page.locator("#runs tbody tr a")
        page.get_by_role("button", name="EMA %").click()
        assert shown.all_inner_texts() == ["better", "good", EVIL, "dead"]
        page.locator("#words").fill("threshold=0.9")
        assert shown.all_inner_texts() == ["better"]
        page.locator("#words").fill("")
        page.locator("#state").select_option("killed")
        assert shown.all_inner_texts() == ["dead"]
        row(page, "dead").locator("input").check()
        page.locator("#tag").fill("gone")
        page.get_by_role("button", name="tag", exact=True).click()
        row(page, "dead").get_by_text("gone").wait_for(timeout=20_000)
        assert json.loads((runs / "dead" / "tags.json").read_text()) == ["gone"]
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.get_by_role("button", name="delete").click()
        assert (runs / "dead").exists()
        page.once("dialog", lambda dialog: dialog.accept())
        page.get_by_role("button", name="delete").click()
        row(page, "dead").wait_for(state="detached", timeout=20_000)
        assert not (runs / "dead").exists()
    check(said, board)


def test_reports_and_comparisons_open_in_a_sandbox(runs):
    """A report of a stranger's run holds any script. It runs, but it can neither read the board nor change a run."""
    script = """<body><script>
        const said = [];
        const places = ["runs", "remove"];
        Promise.all(places.map(place => fetch(place, place === "remove" ? {method: "POST", body: "{}"} : {})
            .then(() => said.push("read"), () => said.push("refused"))))
            .then(() => { document.body.textContent = self.origin + " " + said.join(" "); });
    </script>"""
    (runs / "good" / "report.html").write_text(script)
    with served(runs) as board, visited(board.url, LIGHT) as (page, said):
        with page.context.expect_page() as opening:
            row(page, "good").get_by_role("link").click()
        opening.value.get_by_text("null refused refused").wait_for(timeout=20_000)
        mine = len(said)
        for place in ("good", "better"):
            row(page, place).locator("input").check()
        with page.context.expect_page() as opening:
            page.get_by_role("link", name="compare").click()
        drawn = opening.value
        drawn.locator("body[data-drawn=true]").wait_for(timeout=60_000)
        assert "compared with threshold 0.3" in drawn.locator("header").inner_text()
    check(said[mine:], board)
