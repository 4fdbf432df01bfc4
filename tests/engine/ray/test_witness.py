"""The witness: its output and its files when the watched process ends; the processes in the tests only sleep."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

BEGAN = '{"event": "began"}\n'


def ended_run(tmp_path, body, **streams):
    """Run code that has a witness, a record and a process `raylet`, and return how it ended and what the witness said."""
    folder = tmp_path / "run"
    code = f"""
        import os, signal, subprocess, time
        from pathlib import Path
        from fedssl.engine.ray.witness import Record, Witness

        folder = Path({str(folder)!r})
        record = Record(folder, folder / "events.jsonl", folder / ".lock")
        witness = Witness()
        raylet = subprocess.Popen(["sleep", "60"])
        witness.tell({{"processes": {{"raylet": raylet.pid}}, "folder": {str(tmp_path / "ray")!r}}})
        """
    streams = streams or {"stderr": subprocess.PIPE}
    program = textwrap.dedent(code) + textwrap.dedent(body)
    return subprocess.run([sys.executable, "-c", program], timeout=60, **streams)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "ray" / "session").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    events = tmp_path / "run" / "events.jsonl"
    events.write_text(BEGAN)
    return events


def failures(events):
    return [line for line in map(json.loads, events.read_text().splitlines()) if "reason" in line]


KILLED = "with witness.recording(record): raylet.kill(); os.kill(os.getpid(), signal.SIGKILL)"
LOST = "with witness.recording(record): raylet.kill(); time.sleep(1.5); os._exit(1)"


def test_a_process_that_is_killed_leaves_a_line_and_a_failed_event(run, tmp_path):
    done = ended_run(tmp_path, KILLED)
    assert b"error: the process of the run ended before the run did" in done.stderr
    assert b"--resume" in done.stderr
    assert len(failures(run)) == 1
    until = time.monotonic() + 20
    while (tmp_path / "ray").exists():  # removed once the processes have ended
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_process_of_rays_that_died_first_is_named(run, tmp_path):
    done = ended_run(tmp_path, LOST)
    assert done.stderr.count(b"error:") == 1
    assert b"Ray's raylet died, and Ray ended the process of the run" in done.stderr
    assert "raylet" in failures(run)[0]["reason"]


def test_a_run_that_ray_does_not_end_is_ended(run, tmp_path):
    """Once in a while, on a busy machine, a run waited forever for a Ray whose agent had died."""
    began = time.monotonic()
    done = ended_run(tmp_path, "with witness.recording(record): raylet.kill(); time.sleep(50)")
    assert time.monotonic() - began < 9
    assert done.returncode == -signal.SIGKILL
    assert b"Ray's raylet died, and Ray ended the process of the run" in done.stderr
    assert "raylet" in failures(run)[0]["reason"]


def test_an_agent_that_starts_after_its_raylet_is_watched_too(run, tmp_path):
    """On a busy machine, the agents start seconds after the raylet, which ends when an agent dies."""
    done = ended_run(
        tmp_path,
        """
        script = 'sleep 1; sh -c "sleep 60; true" dashboard/agent.py & echo $!; wait'
        late = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True)
        with witness.recording(record):
            witness.tell({"processes": {"raylet": late.pid}})
            agent = int(late.stdout.readline())
            time.sleep(1.5)
            os.kill(agent, signal.SIGKILL)
            time.sleep(0.5)
            os.killpg(late.pid, signal.SIGKILL)
            raylet.kill()
            os._exit(1)
        """,
    )
    assert b"Ray's dashboard agent died" in done.stderr


@pytest.mark.parametrize("last", ["failed", "interrupted", "ended"])
def test_a_run_that_has_said_how_it_ended_says_so_once(run, tmp_path, last):
    line = json.dumps({"event": last, "reason": "an earlier one"}) + "\n"
    run.write_text(BEGAN + line)
    ended_run(tmp_path, KILLED)
    assert run.read_text() == BEGAN + line


def test_a_torn_line_is_cut_first(run, tmp_path):
    run.write_text(BEGAN + '{"event": "client_fai')
    ended_run(tmp_path, KILLED)
    assert run.read_text().startswith(BEGAN + '{"time"')
    assert len(failures(run)) == 1


def test_a_record_that_another_process_is_at_stays_as_it_is(run, tmp_path):
    with (run.parent / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ended_run(tmp_path, KILLED)
        assert run.read_text() == BEGAN


@pytest.mark.parametrize(
    "end",
    [
        "witness.close(); raylet.kill()",
        "raylet.kill(); os._exit(1)",
        "with witness.recording(record): witness.close(); raylet.kill()",
    ],
)
def test_an_orderly_end_and_one_between_two_runs_are_silent(run, tmp_path, end):
    done = ended_run(tmp_path, end)
    assert done.stderr == b""
    assert run.read_text() == BEGAN


def test_an_end_while_ray_starts_is_told(run, tmp_path):
    done = ended_run(tmp_path, 'witness.tell({"starting": True}); raylet.kill(); os.abort()')
    assert b"ended while it started Ray" in done.stderr


def test_the_cursor_is_shown_again(run, tmp_path):
    ours, theirs = pty.openpty()
    ended_run(tmp_path, KILLED, stdout=theirs, stderr=theirs)
    time.sleep(0.5)
    assert b"\x1b[?25h" in os.read(ours, 1 << 16)
    os.close(ours)
    os.close(theirs)


def test_a_witness_is_small_and_quick(run, tmp_path):
    done = ended_run(
        tmp_path,
        """
        import sys
        time.sleep(0.5)
        status = Path(f"/proc/{witness._process.pid}/status").read_text()
        kilobytes = int(status.partition("VmRSS:")[2].split()[0])
        began = time.monotonic()
        witness.close()
        print(kilobytes, time.monotonic() - began, file=sys.stderr)
        raylet.kill()
        """,
    )
    kilobytes, seconds = map(float, done.stderr.split())
    assert kilobytes < 30_000
    assert seconds < 1.0


def test_the_witness_imports_next_to_nothing():
    code = "import sys, runpy; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    script = Path("fedssl/engine/ray/witness_process.py").resolve()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, script], capture_output=True, text=True
    )
    assert not {"pathlib", "subprocess", "shutil", "datetime", "fedssl"} & set(done.stdout.split())


def test_a_process_of_rays_that_does_not_end_is_killed_before_the_folder_goes(run, tmp_path):
    """A raylet without its control store waits for half a minute."""
    body = "print(raylet.pid, flush=True); witness.recording(record).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    done = ended_run(tmp_path, body, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    raylet = Path("/proc") / done.stdout.decode().strip()
    until = time.monotonic() + 20
    while (tmp_path / "ray").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not raylet.exists() or " Z " in (raylet / "stat").read_text()
