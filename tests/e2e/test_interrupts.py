"""Ctrl-C and SIGTERM: one signal ends a run in order, two end it at once, and the terminal is restored."""

import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from fedssl.app.interrupts import Interrupts, interruptible, put_handlers_back
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


@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_sigterm_ends_a_run_in_order_whatever_ray_does_with_it(engine, tmp_path):
    """Started by us in the background, or by Flower, Ray takes the signal for itself."""
    file = small_toml(tmp_path / "e.toml", rounds=100_000)
    process = subprocess.Popen(
        command("run", file, "--out", tmp_path / "run", "--plain", "--engine", engine),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    while not process.stdout.readline().startswith("round 3/"):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 130, errors
    assert "--resume" in errors
    assert list((tmp_path / "run" / "checkpoint").glob("round-*"))


def test_flowers_runtime_starts_a_ray_of_its_own_and_a_run_ends_with_it(tmp_path):
    """Not the one of this address, at which nobody listens; and where Ray cannot start, the run does not wait for it."""
    file = small_toml(tmp_path / "e.toml", engine={"kind": "flower"})
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    arguments = command("run", file, "--plain", "--out", tmp_path / "run")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    environment["RAY_TMPDIR"] = str(file)  # a file, and no folder
    arguments[-1] += "2"
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "RAY_TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with interruptible():
        ours = signal.getsignal(signal.SIGTERM)
        assert ours != before[1]
        put_handlers_back()
        assert signal.getsignal(signal.SIGTERM) == ours
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_second_signal_ends_the_process_at_once(second):
    """Amid what the first one began: neither is it waited for nor are other ends come to."""
    code = f"""
        import os, signal, time
        from fedssl.app.interrupts import interruptible

        with interruptible():
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(600)
            except KeyboardInterrupt:
                try:
                    print("closing", flush=True)
                    os.kill(os.getpid(), {int(second)})
                    time.sleep(600)
                finally:
                    print("closed", flush=True)
    """
    python = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(
        python, capture_output=True, text=True, timeout=100,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert done.returncode == 130, done.stderr
    assert done.stdout == "closing\n"


def test_a_signal_whose_exception_is_lost_ends_the_run_after_the_round():
    interrupts = Interrupts()
    interrupts.round_ended(None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.handle_signal(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        interrupts.round_ended(None)
