"""`fedssl runs`: lists, removes and tags runs, and touches nothing else."""

import io
import json
import resource
import shutil
from pathlib import Path

import filelock
import pytest
from rich.cells import cell_len

from fedssl.app.commands.runs import overviews_below
from fedssl.app.run_table import run_table
from fedssl.core.console import Console
from fedssl.record.run_path import TAGS
from tests.helpers import fedssl, finished, in_a_process, refused
from tests.test_imports import modules_after
from tests.views.comparison.records import Spent, record


@pytest.fixture
def runs(tmp_path):
    """Return a folder with a finished run of each of two methods, and two runs that are not finished."""
    record(tmp_path / "a", [0.5, 0.9], name="a", seed=1, ended="2026-01-03T00:00:00+00:00")
    early, long = "2026-01-01T00:00:00+00:00", Spent(seconds=500.0)
    other = record(tmp_path / "b", [0.7], name="b", spent=long, ended=early)
    summary = json.loads((other / "summary.json").read_text())
    (other / "summary.json").write_text(json.dumps({**summary, "method": "supervised"}))
    record(tmp_path / "c" / "1", [0.8], name="c", finished=False, ended="2026-01-02T00:00:00+00:00")
    events = [{"event": "failed", "reason": "KeyboardInterrupt: "}]
    record(tmp_path / "c" / "2", [0.1], name="c", finished=False)
    (tmp_path / "c" / "2" / "events.jsonl").write_text(json.dumps(events[0]) + "\n")
    return tmp_path


def listed(runs, *options):
    result = fedssl("runs", "list", runs, "--json", *options)
    finished(result)
    return [run["path"].removeprefix(f"{runs}/") for run in json.loads(result.output)]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ([], ["a", "c/1", "b", "c/2"]),
        (["--reverse"], ["c/2", "b", "c/1", "a"]),
        (["--sort", "name"], ["a", "b", "c/1", "c/2"]),
        (["--sort", "accuracy"], ["a", "c/1", "b", "c/2"]),
        (["--sort", "seconds", "-n", "2"], ["b", "a"]),
        (["--sort", "rounds", "-n", "1"], ["a"]),
        (["--sort", "state"], ["a", "b", "c/2", "c/1"]),
        (["--state", "finished"], ["a", "b"]),
        (["--state", "killed", "--state", "interrupted"], ["c/1", "c/2"]),
        (["--name", "[ac]"], ["a", "c/1", "c/2"]),
        (["--method", "supervised"], ["b"]),
        (["--tag", "none"], []),
    ],
)
def test_runs_are_chosen_and_ordered(runs, options, wanted):
    assert listed(runs, *options) == wanted


def test_a_table_says_what_a_run_came_to(runs):
    result = fedssl("runs", runs)
    finished(result)
    lines = result.output.splitlines()
    assert lines[0].split() == ["run", "state", "rounds", "EMA", "%", "time", "age"]
    first = lines[2].split()
    assert first[:6] == [str(runs / "a"), "finished", "2", "90.0", "2", "s"]
    assert lines[4].split()[:6] == [str(runs / "b"), "finished", "1", "70.0", "8", "min"]
    assert lines[5].split()[1:] == ["interrupted", "1", "10.0", "1.0", "s", "-"]


def shown(folder, width):
    """Return the lines on a terminal of some width, the paths in the table, and the columns for which it has no room."""
    console = Console(file=io.StringIO(), width=width)
    table, left_out = run_table(overviews_below(folder), width)
    console.print(table)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return lines, list(table.columns[0].cells), left_out


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
def test_the_paths_of_runs_are_whole_on_any_terminal(tmp_path, monkeypatch, width):
    """As a sweep names them: what does not fit beside a path gives way, the least important column first."""
    monkeypatch.chdir(tmp_path)
    places = [
        f"runs/sweep-digits/digits-fixmatch/method.kind={kind},rounds=24/seed{seed}"
        for kind in ("fixmatch", "supervised")
        for seed in (0, 1)
    ]
    for place in places:
        record(tmp_path / place, [0.5], name="x")
    finished(fedssl("runs", "tag", places[0], "paper", "the second try"))
    lines, paths, left_out = shown(Path("runs"), width)
    assert max(map(cell_len, lines)) <= width
    assert "".join("".join(line.split()) for line in lines).count("digits-fixmatch") == 4
    assert sorted(path.replace("\n", "") for path in paths) == sorted(places)
    shown_heads = lines[0].replace("EMA %", "EMA").split()[1:]
    order = ["state", "EMA", "tags", "rounds", "age", "time"]
    assert set(shown_heads) == set(order[: len(shown_heads)])
    assert len(shown_heads) + len(left_out) == len(order)
    assert (left_out == []) == (width == 200)
    assert ("state" in left_out) == (width < 40)
    assert any("\n" in path for path in paths) == (width <= 80)


def test_a_path_is_broken_behind_slashes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "runs" / "a-long-name-of-a-run" / "20261130-105512-seed0", [0.5])
    lines, _, left_out = shown(Path("runs"), 40)
    starts = [line.split()[0] for line in lines[2:]]
    assert starts == ["runs/", "a-long-name-of-a-run/", "20261130-105512-seed0"]
    assert "finished" in lines[2]
    assert left_out == ["rounds", "time", "age"]


@pytest.mark.parametrize("width", [40, 60, 80])
def test_one_long_path_takes_no_column_from_the_others(tmp_path, monkeypatch, width):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "runs" / "short", [0.9])
    record(tmp_path / "runs" / ("long-name-" * 10), [0.5])
    record(tmp_path / "runs" / ("x" * 100), [0.5])
    lines, _, left_out = shown(Path("runs"), width)
    assert max(map(cell_len, lines)) <= width
    assert lines[0].replace("EMA %", "EMA").split()[:3] == ["run", "state", "EMA"]
    assert not {"state", "EMA %"} & set(left_out)
    assert [line.split()[-2:] for line in lines if "short" in line] == [["finished", "90.0"]]
    text = "".join(line.split()[0] for line in lines[2:])
    assert "long-name-" * 10 in text
    assert "x" * 100 in text


def test_a_terminal_is_told_what_has_no_room(runs, monkeypatch):
    monkeypatch.setattr(
        "fedssl.app.commands.runs.run_table", lambda found, width: ("a table", ["age"])
    )
    assert "no room for age: a wider terminal or --json shows them" in fedssl("runs", runs).output


def test_without_a_word_the_runs_of_this_folder_are_listed(runs, monkeypatch):
    (runs / "runs").mkdir()
    shutil.move(runs / "a", runs / "runs" / "a")
    monkeypatch.chdir(runs)
    for arguments in (["runs"], ["runs", "list"], ["runs", "--sort", "name"], ["runs", "runs"]):
        result = fedssl(*arguments)
        finished(result)
        assert [line.split()[0] for line in result.output.splitlines()[2:]] == ["runs/a"]
    finished(fedssl("runs", "--help"))


@pytest.mark.parametrize(
    ("word", "meant"),
    [("remove", "rm"), ("delete", "rm"), ("ls", "list"), ("lst", "list"), ("tags", "tag")],
)
@pytest.mark.parametrize("others", [(), ("a",)])
def test_a_word_that_is_nearly_a_command_names_the_command(runs, monkeypatch, word, meant, others):
    monkeypatch.chdir(runs)
    result = fedssl("runs", word, *others)
    assert result.exit_code == 2
    assert f"No such command '{word}'. Did you mean '{meant}'?" in result.output
    assert (runs / "a").is_dir()
    (runs / word).mkdir()
    finished(fedssl("runs", word))  # a folder of this name is listed


def test_mistakes_are_told(runs):
    refused(fedssl("runs", runs / "nowhere"), "no such folder")
    refused(fedssl("runs", runs / "a" / "rounds.csv"), "is not a folder")
    empty = runs / "empty"
    empty.mkdir()
    assert fedssl("runs", empty).output.startswith(
        "no runs: `fedssl new` writes an experiment file"
    )
    assert fedssl("runs", runs, "--tag", "none").output == "no runs\n"


def test_before_the_first_run_the_way_to_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(
        fedssl("runs"), "runs: no such folder; `fedssl new` writes", "`fedssl run FILE` runs it"
    )
    refused(fedssl("board"), "runs: no such folder; `fedssl new` writes")


def test_tags_come_and_go(runs):
    tagged = fedssl("runs", "tag", runs / "a", "paper", "[red]best")
    assert tagged.output.replace("\n", "").endswith("a: [red]best, paper")
    finished(fedssl("runs", "tag", runs / "b", "paper"))
    assert listed(runs, "--tag", "paper") == ["a", "b"]
    assert listed(runs, "--tag", "paper", "--tag", "[red]best") == ["a"]
    assert "[red]best, paper" in fedssl("runs", runs).output
    assert fedssl("runs", "untag", runs / "b", "paper").output.endswith("b: no tags\n")
    assert listed(runs, "--tag", "paper") == ["a"]
    assert not (runs / "b" / TAGS).exists()
    refused(fedssl("runs", "untag", runs / "b", "paper"), "has no tag 'paper'")
    refused(fedssl("runs", "tag", runs, "paper"), "holds no run", f"such as {runs / 'c' / '2'}")


@pytest.mark.parametrize("tag", ["", " ", "a\nb", "\x1b[31m", "x" * 41])
def test_a_tag_is_a_word(runs, tag):
    refused(fedssl("runs", "tag", runs / "a", tag), "use 1 to 40 printable characters")


def test_a_run_is_removed_after_a_question(runs):
    result = fedssl("runs", "rm", runs / "a", runs / "b")  # no answer comes
    assert result.exit_code == 1
    assert "Remove 2 runs" in result.output
    assert {path.name for path in runs.iterdir()} == {"a", "b", "c"}
    assert not (runs / "a" / ".lock").exists()
    finished(fedssl("runs", "rm", runs / "a", runs / "b", runs / "a", "--yes"))
    assert {path.name for path in runs.iterdir()} == {"c"}


def test_the_folder_in_which_one_is_can_be_removed(runs, monkeypatch):
    monkeypatch.chdir(runs / "a")
    finished(fedssl("runs", "rm", ".", "--yes"))
    assert not (runs / "a").exists()


def test_nothing_but_runs_is_removed(runs):
    own = runs / "own"
    own.mkdir()
    shutil.copy(runs / "a" / "experiment.toml", own)
    (runs / "link").symlink_to(runs / "a")
    outer = runs / "outer"
    shutil.copytree(runs / "a", outer)
    shutil.copytree(runs / "a", outer / "deep" / "er")
    before = sorted(runs.rglob("*"))
    for path, words in {
        runs: "holds no run",
        runs / "nowhere": "holds no run",
        own: "has no data.json",
        runs / "link": "is a link",
        outer: f"holds another run, {outer / 'deep' / 'er'}",
    }.items():
        refused(fedssl("runs", "rm", "--yes", runs / "a", path), words)
    with filelock.FileLock(runs / "c" / "1" / ".lock"):
        refused(
            fedssl("runs", "rm", "--yes", runs / "a", runs / "c" / "1"), "goes on at this moment"
        )
    (runs / "c" / "1" / ".lock").unlink()
    assert sorted(runs.rglob("*")) == before


def test_the_question_waits_for_a_yes(runs, monkeypatch):
    monkeypatch.setattr("typer.confirm", lambda text: False)
    finished(fedssl("runs", "rm", runs / "a"))
    assert (runs / "a").exists()
    monkeypatch.setattr("typer.confirm", lambda text: True)
    finished(fedssl("runs", "rm", runs / "a"))
    assert not (runs / "a").exists()


def test_it_waits_for_nobody(runs):
    found = modules_after(f"from fedssl.cli import app; app(['runs', {str(runs)!r}])")
    assert found & {"torch", "numpy", "pydantic", "flwr", "pandas", "ray"} == set()


def test_many_runs_are_listed_at_once(runs):
    """The time of the processor, start of Python included, counts: other processes may keep it busy."""
    for number in range(500):
        shutil.copytree(runs / "a", runs / "many" / str(number))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = in_a_process("runs", runs / "many")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1
    assert len(done.stdout.splitlines()) == 502
