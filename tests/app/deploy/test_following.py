"""What a record says of the run that is followed: earlier runs with the same directory say nothing of it."""

import json

import pytest

from fedssl.app.deploy.follow import Watch

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
