"""The quickstart notebook as a person opens it, and the stop button."""

import json
import re
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from fedssl import Run
from tests.helpers import small_toml

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def executed(folder: Path, *, rounds: int = 60) -> tuple[Run, Run]:
    """Execute every cell of the notebook in a folder, with so many rounds; return its two runs, the baseline first."""
    notebook = nbformat.read(QUICKSTART, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace('"rounds": 60', f'"rounds": {rounds}')
    NotebookClient(notebook, timeout=1000, resources={"metadata": {"path": str(folder)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 4
    runs_cell = next(cell for cell in notebook.cells if "run(fixmatch)" in cell.source)
    assert len(runs_cell.outputs) == 3  # a display each, and the run
    (supervised,) = map(Run, folder.glob("runs/supervised/*"))
    (fixmatch,) = map(Run, folder.glob("runs/fixmatch/*"))
    assert supervised.experiment.num_rounds == fixmatch.experiment.num_rounds == rounds
    return supervised, fixmatch


def test_every_cell_of_the_quickstart_runs(tmp_path):
    executed(tmp_path, rounds=3)


@pytest.mark.readme
@pytest.mark.timeout(1200)
def test_what_the_quickstart_says_holds(tmp_path):
    """Both runs in full: that unlabeled images helped is measured anew."""
    supervised, fixmatch = executed(tmp_path)
    gain = fixmatch.summary["ema_accuracy"] - supervised.summary["ema_accuracy"]
    assert gain > 0.03
    committed = json.dumps(nbformat.read(QUICKSTART, as_version=4))
    written = re.findall(r"fixmatch seed 0: accuracy .*?, EMA (.*?) %", committed)
    assert float(written[-1]) == pytest.approx(fixmatch.summary["ema_accuracy"] * 100, abs=3)
    early, late = fixmatch.round_rows[5], fixmatch.round_rows[-1]
    assert early.pseudo_label_coverage < late.pseudo_label_coverage
    assert early.pseudo_label_accuracy < late.pseudo_label_accuracy


def test_the_quickstart_is_committed_as_it_was_executed():
    notebook = nbformat.read(QUICKSTART, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 10
    assert QUICKSTART.stat().st_size < 300_000
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        assert cell.execution_count == number + 1
        assert "execution" not in cell.metadata


@pytest.mark.timeout(600)
@pytest.mark.parametrize("engine", ["serial", "ray"])
def test_the_stop_button_leaves_a_run_that_goes_on_in_the_same_kernel(engine, tmp_path):
    file = small_toml(tmp_path / "e.toml", rounds=100_000, engine={"kind": engine})
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(tmp_path))
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=100)
        client.execute(f"from fedssl import run; run({str(file)!r}, out='stopped')")
        while (
            len(list(tmp_path.glob("stopped/rounds.csv"))) == 0
            or len(Run(tmp_path / "stopped").round_rows) < 2
        ):
            time.sleep(0.2)
        manager.interrupt_kernel()
        seen = reply_of(client)
        assert "KeyboardInterrupt: interrupted; the record so far is in stopped" in seen
        assert "run(..., out='stopped', resume=True)" in seen
        done = len(Run(tmp_path / "stopped").round_rows)
        code = (
            "from fedssl import Run, Experiment; e = Run('stopped').experiment; "
            "print(e.num_rounds, run(e.with_settings('rounds=1'), out='next', progress=False))"
        )
        client.execute(code)
        assert "100000 <Run small seed 0, finished: next>" in reply_of(client)
        client.execute(f"run({str(file)!r}, out='stopped', resume=True)")
        while len(Run(tmp_path / "stopped").round_rows) < done + 2:
            time.sleep(0.2)
        manager.interrupt_kernel()
        assert "KeyboardInterrupt" in reply_of(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    rounds = [row.round for row in Run(tmp_path / "stopped").round_rows]
    assert rounds == list(range(1, len(rounds) + 1))


def reply_of(client) -> str:
    """Return what a kernel prints or raises until it is idle."""
    seen = ""
    while True:
        message = client.get_iopub_msg(timeout=200)
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            seen += content["text"]
        if kind == "error":
            seen += f"{content['ename']}: {content['evalue']}"
        if kind == "status" and content["execution_state"] == "idle" and seen:
            return seen
