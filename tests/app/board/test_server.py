"""The board tells of runs as they are, to its own page only, and changes nothing but what it is asked to."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time

import filelock
import pytest

from fedssl.app.simulation import Engine
from fedssl.core.processes import LOOPBACK
from fedssl.record.run_directory import RunDirectory
from tests.app.board.serving import asked, listed, served
from tests.helpers import command, fedssl, refused, small_experiment
from tests.test_imports import modules_after
from tests.views.comparison.records import record

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def runs(tmp_path):
    """Return a folder with two comparable runs, a run with other data, and a run that was killed."""
    folder = tmp_path / "runs"
    record(folder / "a", [0.5, 0.9], seed=1)
    record(folder / "b", [0.6, 0.7], seed=1, method={"threshold": 0.9})
    record(folder / "c", [0.1], name="c", facts={"source": "other"})
    path = record(folder / "d", [0.2, 0.3, 0.4], finished=False)
    (path / "events.jsonl").write_text('{"time": "2026-01-01T00:00:00+00:00", "event": "began"}\n')
    return folder


@pytest.fixture
def board(runs):
    with served(runs) as board:
        yield board


def test_it_lists_runs_with_the_settings_that_differ(board):
    found = listed(board)
    assert {place: run["state"] for place, run in found.items()} == {
        "a": "finished", "b": "finished", "c": "finished", "d": "killed",
    }  # fmt: skip
    assert dict(found["a"]["settings"]) == {"rounds": "2", "threshold": "0.3"}
    assert dict(found["b"]["settings"]) == {"rounds": "2", "threshold": "0.9"}
    assert (found["a"]["accuracy"], found["a"]["rounds"], found["a"]["seed"]) == (0.9, 2, 1)
    assert (found["d"]["began"], found["d"]["num_rounds"]) == (1767225600, 3)


def test_settings_of_the_method_come_first(board, runs):
    """Where there is no room for all settings, the first ones are seen."""
    record(runs / "e", [0.5], method={"kind": "flexmatch"}, train={"lr": 0.07})
    names = [name for name, _ in listed(board)["e"]["settings"]]
    assert names[0] == "method"
    assert "lr" in names[1:]


def test_a_long_value_says_that_it_is_cut(board, runs):
    """The ellipsis is a part of the sixty characters; a value of sixty is whole."""
    for length in (60, 61):
        source = f"npz:{'x' * (length - 4)}"
        record(runs / str(length), [0.5], seed=length, data={"source": source, "train_size": None})
    shown = listed(board)
    values = {place: dict(shown[place]["settings"]).values() for place in ("60", "61")}
    assert "npz:" + "x" * 56 in values["60"]
    assert "npz:" + "x" * 55 + "…" in values["61"]


def test_it_follows_runs(board, runs):
    """What is kept of an ended run is read again when its folder changes."""
    listed(board)
    with filelock.FileLock(runs / "d" / ".lock"):
        assert listed(board)["d"]["state"] == "running"
    assert listed(board)["d"]["state"] == "killed"
    record(runs / "e", [0.4])
    assert "e" in listed(board)
    shutil.rmtree(runs / "a")
    assert "a" not in listed(board)
    assert fedssl("runs", "tag", runs / "b", "paper").exit_code == 0
    assert listed(board)["b"]["tags"] == ["paper"]


def test_curves_are_those_of_the_record(board):
    found = listed(board)
    status, text, _ = asked(board, f"curves?run={found['d']['id']}&run={found['a']['id']}")
    assert status == 200
    points = {place: json.loads(text)[found[place]["id"]] for place in "ad"}
    assert points == {"a": [[1, 50], [2, 90]], "d": [[1, 20], [2, 30], [3, 40]]}


def test_a_comparison_is_that_of_the_command(board, runs, tmp_path):
    found = listed(board)
    two = f"comparison?run={found['a']['id']}&run={found['b']['id']}"
    status, text, headers = asked(board, two)
    assert status == 200
    result = fedssl("compare", runs / "a", runs / "b", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert text == (tmp_path / "out" / "comparison.html").read_text().replace(
        str(runs), str(board.catalog.folder.resolve())
    )
    assert "sandbox allow-scripts" in headers["Content-Security-Policy"]
    other = f"comparison?run={found['a']['id']}&run={found['c']['id']}"
    status, text, _ = asked(board, other)
    assert status == 400
    assert f'<a href="{other.replace("&", "&amp;")}&amp;force=yes">' in text
    assert asked(board, f"{other}&force=yes")[0] == 200
    assert asked(board, f"comparison?run={found['a']['id']}")[0] == 400


def test_a_comparison_with_an_unfinished_run_says_what_to_do(board, runs):
    """A run that goes on at this moment is waited for; to resume it would be refused. A killed run is resumed."""
    found = listed(board)
    place = f"comparison?run={found['a']['id']}&run={found['d']['id']}"
    path = runs.resolve() / "d"
    status, text, _ = asked(board, place)
    assert status == 400
    assert f"is not finished; go on with it: fedssl run {path} --resume" in text
    with filelock.FileLock(runs / "d" / ".lock"):
        status, text, _ = asked(board, place)
    assert status == 400
    assert "is not finished; it goes on at this moment: wait for its end" in text
    assert "--resume" not in text


def test_a_report_is_the_file_of_the_run(board, runs):
    (runs / "a" / "report.html").write_text("the report ü", encoding="utf-8")
    place = f"report?run={listed(board)['a']['id']}"
    assert asked(board, place)[:2] == (200, "the report ü")
    assert "default-src 'none'" in asked(board, place)[2]["Content-Security-Policy"]


def test_the_report_of_an_unfinished_run_is_made_of_its_record(board, runs):
    """The file, if there is one, may be of an earlier round. While the run goes on, the page reloads itself."""
    with Engine() as engine:
        engine.run(small_experiment(record={"report": False}), [RunDirectory(runs / "e")])
    (runs / "e" / "summary.json").unlink()
    (runs / "e" / "report.html").write_text("old")
    place = f"report?run={listed(board)['e']['id']}"
    status, text, headers = asked(board, place)
    assert status == 200
    assert "This run is not finished: 2 of 2 rounds are recorded" in text
    assert 'http-equiv="refresh"' not in text
    assert "sandbox allow-scripts" in headers["Content-Security-Policy"]
    with filelock.FileLock(runs / "e" / ".lock"):
        text = asked(board, place)[1]
    assert "2 of 2 rounds are recorded; this page reloads itself." in text
    assert '<meta http-equiv="refresh" content="10">' in text
    assert (runs / "e" / "report.html").read_text() == "old"


def test_the_list_waits_for_nobody(runs):
    code = f"from fedssl.app.board.server import Board; from pathlib import Path; Board(Path({str(runs)!r}), 0).catalog.as_table()"
    assert modules_after(code) & {"torch", "numpy", "pydantic", "pandas", "jinja2", "flwr"} == set()


def test_a_damaged_record_is_told(board, runs):
    """The record of `d` has no table of clients, so that there can be no report."""
    status, text, _ = asked(board, f"report?run={listed(board)['d']['id']}")
    assert status == 400
    assert "has no clients.csv" in text
    (runs / "b" / "rounds.csv").write_bytes(b"\xff")
    assert asked(board, f"curves?run={listed(board)['b']['id']}")[:2] == (
        200,
        json.dumps({listed(board)["b"]["id"]: []}),
    )


def test_tags_and_removal(board, runs):
    found = listed(board)
    both = [found["a"]["id"], found["b"]["id"]]
    assert asked(board, "tag", {"runs": both, "add": ["x", EVIL]})[0] == 200
    assert asked(board, "tag", {"runs": both[:1], "remove": ["x"]})[0] == 200
    assert [listed(board)[place]["tags"] for place in "ab"] == [[EVIL], [EVIL, "x"]]
    status, text, headers = asked(board, "tag", {"runs": both, "add": ["\n"]})
    assert (status, headers["Content-Type"]) == (400, "text/plain; charset=utf-8")
    assert "printable" in text
    with filelock.FileLock(runs / "d" / ".lock"):
        status, text, _ = asked(board, "remove", {"runs": [*both, found["d"]["id"]]})
    assert status == 400
    assert "goes on at this moment" in text
    assert asked(board, "remove", {"runs": both})[0] == 200
    assert {path.name for path in runs.iterdir()} == {"c", "d"}
    assert "not in the folder any more" in asked(board, "remove", {"runs": both})[1]


STATUSES = {
    "another name for this host": ({"Host": "evil.example:80"}, 421),
    "no host": ({"Host": None}, 421),
    "another origin": ({"Origin": "http://evil.example"}, 403),
    "a sandbox": ({"Origin": "null"}, 403),
    "another port": ({"Origin": "http://127.0.0.1:1"}, 403),
    "another scheme": ({"Origin": "https://127.0.0.1"}, 403),
}


@pytest.mark.parametrize(("headers", "status"), STATUSES.values(), ids=STATUSES)
def test_others_are_refused(board, runs, headers, status):
    remove = {"runs": [run["id"] for run in listed(board).values()]}
    for place, sent in (("runs", None), ("", None), ("remove", remove)):
        found = asked(board, place, sent, **headers)
        assert found[0] == status
        assert "Access-Control-Allow-Origin" not in found[2]
    assert len(list(runs.iterdir())) == 4


def test_a_change_needs_an_origin_and_the_secret(board, runs):
    remove = {"runs": [run["id"] for run in listed(board).values()]}
    assert asked(board, "remove", remove, Origin=None)[0] == 403
    for key in ("", "x", f"{board.key}x", "%C3%BC", "..", f"../{board.key}"):
        assert asked(board, "remove", remove, key=key)[0] == 403
        assert asked(board, "runs", key=key)[0] == 403
    assert (
        asked(board, "remove", remove, key="x")[1] == "open the address that fedssl board printed"
    )
    assert len(list(runs.iterdir())) == 4


def test_the_address_may_lack_its_last_slash(board):
    connection = http.client.HTTPConnection("127.0.0.1", board.server_port)
    connection.request("GET", f"/{board.key}")
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Location"]) == (308, f"/{board.key}/")
    for place in ("", "/", "x", f"/{board.key}x"):
        connection = http.client.HTTPConnection("127.0.0.1", board.server_port)
        connection.request("GET", place)
        assert connection.getresponse().status == 403


def test_through_a_tunnel_it_answers_too(board):
    """The browser then names the tunnel's port, and any name of the loopback."""
    for name in LOOPBACK:
        host = f"[{name}]:9000" if ":" in name else f"{name}:9000"
        answer = asked(board, "tag", {"runs": []}, Host=host, Origin=f"http://{host}")
        assert answer[0] == 200


def test_it_listens_on_the_loopback_only(board):
    assert board.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "place",
    [
        "../../etc/passwd",
        "%2e%2e/server.py",
        "server.py",
        "/etc/passwd",
        "runs/a/rounds.csv",
        "nothing",
    ],
)
def test_no_other_file_is_served(board, place):
    assert asked(board, place)[0] in (403, 404)
    for opened in ("report", "comparison", "curves"):
        status, text, _ = asked(board, f"{opened}?run={place}&run={place}")
        assert status == 400
        assert "root:" not in text


@pytest.mark.parametrize(
    "sent",
    [b"", b"[]", b"{", b"\xff", b"[" * 9999, {"runs": 3}, {"runs": [3]}, {"runs": [], "add": ""}],
)
def test_a_request_that_is_none_is_told(board, sent):
    assert asked(board, "tag", sent)[0] == 400


def test_a_long_request_is_refused(board):
    """By its length alone: the board reads no byte of it, so a client that sends it may find the connection closed."""
    length = {"Content-Length": str((1 << 20) + 1)}
    assert asked(board, "tag", b"", **length)[0] == 413
    assert asked(board, "tag", {"runs": []}, Origin=None)[0] == 403


def test_links_out_of_the_folder_are_not_followed(board, runs, tmp_path):
    record(tmp_path / "outside", [0.5])
    (tmp_path / "secret.toml").write_text('secret = "4711"\nname = "x"\nseed = 1\nrounds = 1')
    (runs / "linked").symlink_to(tmp_path / "outside")
    for name in ("report.html", "experiment.toml"):
        shutil.copytree(runs / "a", runs / f"with {name}")
        (runs / f"with {name}" / name).unlink(missing_ok=True)
        (runs / f"with {name}" / name).symlink_to(tmp_path / "secret.toml")
    shutil.copytree(runs / "a", runs / "inner")
    (runs / "inner" / "report.html").symlink_to(runs / "a" / "summary.json")
    assert set(listed(board)) == {"a", "b", "c", "d", "inner"}
    assert "4711" not in asked(board, "runs")[1]


def test_every_answer_has_the_headers_of_a_safe_one(board):
    for place, status in (
        ("", 200),
        ("board.js", 200),
        ("runs", 200),
        ("x", 404),
        ("report?run=x", 400),
    ):
        found, _, headers = asked(board, place)
        assert found == status
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"


def test_half_a_thousand_runs_are_listed_at_once(runs):
    """A second is what a person waits for. The time of the processor counts: other processes may keep it busy."""
    for number in range(500):
        shutil.copytree(runs / "a", runs / "many" / str(number))
    with served(runs / "many") as board:
        began = time.process_time()
        board.catalog.entries()  # reads everything, before the address is printed
        first = time.process_time() - began
        began = time.process_time()
        assert len(listed(board)) == 500  # reads what may have changed
        later = time.process_time() - began
    assert first < 1.5
    assert later < 0.5


def test_mistakes_are_told(runs, tmp_path):
    refused(fedssl("board", tmp_path / "nowhere"), "no such folder")
    refused(fedssl("board", runs / "a" / "rounds.csv"), "is not a folder")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused(fedssl("board", runs, "--port", port), f"{port} cannot be used", "--port 0")


def test_ctrl_c_ends_it(runs):
    process = subprocess.Popen(
        command("board", runs, "--port", 0),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert f"board of {runs}: http://127.0.0.1:" in process.stdout.readline()
    assert process.stdout.readline() == "Ctrl-C ends it\n"
    os.kill(process.pid, signal.SIGINT)
    rest, problems = process.communicate(timeout=30)
    assert (process.returncode, rest.strip(), problems) == (0, "", "")
