"""The pool ends processes that do not behave, reports them, and goes on."""

import os
import sys

import pytest

from fedssl.app.sweep import pool
from fedssl.app.sweep.messages import Failed, Task

DEAF = f"""#!{sys.executable}
import os, sys, time
print("pid", os.getpid(), flush=True)
os.close(int(sys.argv[4]))
time.sleep(600)
"""


def test_a_process_that_falls_silent_and_stays_is_killed_and_ends_no_other_run(
    tmp_path, monkeypatch
):
    deaf = tmp_path / "python"
    deaf.write_text(DEAF)
    deaf.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(deaf))
    monkeypatch.setattr(pool, "PATIENCE", 0.2)
    with pool.Pool([None]) as processes:
        tasks = [Task({}, tmp_path / name, name) for name in "ab"]
        said = list(processes.run(tasks))
    assert [number for number, _ in said] == [0, 1]
    for _, message in said:
        assert isinstance(message, Failed)
        assert "fell silent, had not ended 0.2 s later, and was killed" in message.reason
        pid = int(message.reason.split()[1])
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
