"""Ctrl-C and SIGTERM: one ends a run in order, two end it at once, and the terminal is as it was."""

import os
import pty
import select
import signal
import subprocess
import time

import pytest

from fedssl.interrupts import Interrupts, handlers_kept, interruptible
from tests.helpers import command, small_toml

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


def read_until(terminal: int, words: bytes, text: bytes = b"") -> bytes:
    """Read a terminal until some words appear, or whoever writes to it is gone."""
    deadline = time.monotonic() + 100
    while words not in text:
        assert time.monotonic() < deadline, text
        if select.select([terminal], [], [], 0.5)[0]:
            try:
                text += os.read(terminal, 1 << 16)
            except OSError:
                return text
    return text


@pytest.mark.timeout(300)
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_terminal_is_left_as_it_was(times, number, tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=100_000)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command("run", file, "--out", tmp_path / "run"),
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(theirs)
    text = read_until(ours, b"3/100000")
    for _ in range(times):
        process.send_signal(number)
    text = read_until(ours, b"never said", text)
    os.close(ours)
    assert process.wait(60) == 130
    assert HIDE in text
    assert text.rindex(SHOW) > text.rindex(HIDE)
    assert b"Traceback" not in text


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before[1]
        with handlers_kept() as put_back:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            put_back()
            assert signal.getsignal(signal.SIGTERM) == ours
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == ours
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_whose_exception_is_lost_ends_the_run_after_the_round():
    interrupts = Interrupts()
    interrupts.round_ended(None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.take(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.round_ended(None)
