"""What a record says of the run that is followed, and when nobody follows it any longer.

Earlier runs with the same directory say nothing of the run.
"""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from fedssl.app.deploy import follow
from fedssl.app.deploy.follow import GONE, SILENT, Watch
from fedssl.core.errors import InputError, RunFailed
from fedssl.record.rows import Observer
from tests.helpers import federation_of, small_experiment
from tests.views.comparison.records import rows_of

TIMES = [f"2026-01-01T00:00:0{second}.000+00:00" for second in range(10)]


def write_events(directory, *events):
    lines = [json.dumps({"time": TIMES[i], **event}) + "\n" for i, event in enumerate(events)]
    (directory / "events.jsonl").write_text("".join(lines))


BEGAN = {"event": "began"}
STOPPED = {"event": "interrupted", "reason": "Ctrl-C"}
FAILED = {"event": "failed", "reason": "no clients"}
RESUMED = {"event": "resumed", "after_round": 4}
OTHER = {"event": "incident", "what": "mended"}


@pytest.mark.parametrize(
    ("events", "since", "first", "reason"),
    [
        ([], 0, None, ""),
        ([BEGAN, OTHER], 0, 0, ""),
        ([BEGAN, STOPPED], 2, None, ""),
        ([BEGAN, STOPPED, RESUMED, OTHER], 2, 4, ""),
        ([BEGAN, STOPPED, RESUMED, FAILED], 2, None, "no clients"),
        ([BEGAN, RESUMED], 2, None, ""),
        ([BEGAN, STOPPED, BEGAN], 2, 0, ""),
    ],
)
def test_only_the_last_start_or_stop_since_its_submission_counts(
    events, since, first, reason, tmp_path
):
    write_events(tmp_path, *events)
    watch = Watch(tmp_path, TIMES[since])
    assert watch.first_round() == first
    assert watch.reason() == reason
    assert watch.has_ended() == bool(reason)


def test_a_run_that_records_already_is_followed_from_where_it_went_on(tmp_path):
    assert Watch(tmp_path).first_round() is None
    write_events(tmp_path, BEGAN, STOPPED, RESUMED)
    assert Watch(tmp_path).first_round() == 4
    assert Watch.of_next(tmp_path).first_round() is None


class Screen(Observer):
    """Note what is shown."""

    def __init__(self):
        self.said = []

    def waiting(self, what, until):
        self.said.append(what)

    def round_ended(self, end):
        self.said.append((end.row.round, list(end.incidents)))

    def failed(self, reason):
        self.said.append(f"failed: {reason}")


class Link:
    """A SuperLink that gives some answers in turn, and the last one again and again; None: it does not answer."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = 0

    def run_status(self, run_id):
        self.asked += 1
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            raise RunFailed("the deployment's server does not answer")
        return answer, ""


@pytest.fixture
def followed(tmp_path, monkeypatch):
    """Follow a run over a stand-in for its SuperLink; return how it ended and what was shown."""
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(follow, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(follow, "ASK_SECONDS", 0.0)
    screen = Screen()
    monkeypatch.setattr(follow, "make_display", lambda console: screen)

    def following(link, is_served):
        experiment = small_experiment(record={"report": False})
        watch, federation = Watch(tmp_path), federation_of(experiment)
        ended = follow.follow(experiment, federation, link, "1", watch, is_served, plain=False)
        return ended, screen.said

    return following


def in_turn(*answers):
    """Return a function that gives some answers in turn, and raises those that are errors."""
    left = list(answers)

    def answer():
        one = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(one, Exception):
            raise one
        return one

    return answer


@pytest.mark.parametrize("link", [Link("running"), Link("running", None)])
def test_a_run_whose_superlink_was_ended_is_not_followed_any_longer(link, followed, tmp_path):
    write_events(tmp_path, BEGAN)
    engine_fails = InputError("deploy", "the engine is busy")
    ended, said = followed(link, in_turn(True, engine_fails, True, False))
    assert ended == GONE
    assert said[-1] == "failed: "


def test_a_run_that_was_complete_before_its_superlink_was_ended_is_complete(
    followed, tmp_path, monkeypatch
):
    write_events(tmp_path, BEGAN)
    (tmp_path / "summary.json").write_text("{}")
    monkeypatch.setattr(follow, "outcome_of", lambda directory: None)
    assert followed(Link("running"), in_turn(False)) == ("", [])
    assert followed(Link(None), in_turn(True, False)) == ("", [])


def test_a_superlink_that_answers_nothing_is_said_once_and_waited_for_so_long(
    followed, tmp_path, monkeypatch
):
    write_events(tmp_path, BEGAN)
    monkeypatch.setattr(follow, "SILENT_SECONDS", 0.2)
    link = Link(None)
    ended, said = followed(link, lambda: True)
    assert ended == SILENT
    assert said == ["the deployment's server does not answer", "failed: "]
    assert link.asked > 2
    restarting = Link(None, None, "running", "finished:stopped")
    assert followed(restarting, lambda: True)[0] == "finished:stopped"


def test_a_run_that_does_not_begin_is_said_as_flower_calls_it(followed, tmp_path):
    link = Link("pending", "pending", "running", "finished:failed")
    _, said = followed(link, lambda: True)
    assert said == [
        "the run records nothing yet; Flower calls it 'pending'",
        "the run records nothing yet; Flower calls it 'running'",
        "failed: ",
    ]


def test_the_reason_of_a_failure_is_shown_without_tracebacks(followed, tmp_path):
    traceback = "Traceback (most recent call last):\n  File x\n    y()\nValueError: why"
    write_events(
        tmp_path, BEGAN, {"event": "failed", "reason": f"RunFailed: all failed:\n{traceback}"}
    )
    ended, said = followed(Link("finished:failed"), lambda: True)
    reason = "RunFailed: all failed:\nValueError: why"
    assert said == [f"failed: {reason}"]
    where = f"(the traceback is in {tmp_path / 'events.jsonl'})"
    assert ended == f"finished:failed: {reason} {where}"


def waiting(what, seconds):
    until = datetime.now(UTC) + timedelta(seconds=seconds)
    return {"event": "waiting", "what": what, "until": until.isoformat(timespec="seconds")}


def test_what_the_run_waits_for_and_the_incidents_of_a_round_are_shown(followed, tmp_path):
    incident = "census: client 1 is left out: --data: nothing there\nTraceback"
    write_events(
        tmp_path,
        BEGAN,
        waiting("client 0 was away long ago", -60),
        waiting("client 1 went away", 60),
        {"event": "waiting", "what": "client 2 may take its time", "until": None},
        {"event": "incident", "round": 1, "what": incident},
        {"event": "incident", "round": 2, "what": "another"},
    )
    (row,) = rows_of([0.5])
    names = [field.name for field in dataclasses.fields(row)]
    cells = [getattr(row, name) for name in names]
    lines = [names, ["" if cell != cell else cell for cell in cells]]
    text = "".join(",".join(map(str, line)) + "\n" for line in lines)
    (tmp_path / "rounds.csv").write_text(text)
    (tmp_path / "clients.csv").write_text("round\n")
    ended, said = followed(Link("finished:stopped"), lambda: True)
    assert ended == "finished:stopped"
    assert said == [
        (1, [incident]),
        "client 1 went away",
        "client 2 may take its time",
        "failed: ",
    ]
