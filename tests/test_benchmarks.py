"""Benchmarks: workloads are valid, all contenders take the same step, and the first and last rounds do not count."""

from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.check import TOLERANCE, step_difference
from benchmarks.processes import Outcome
from benchmarks.workloads import WORKLOADS, Plain, Workload
from fedssl.experiment.experiment import Experiment
from fedssl.methods.fixmatch import FixMatch

workloads = pytest.mark.parametrize("workload", WORKLOADS.values(), ids=WORKLOADS)


@workloads
def test_a_workload_is_a_valid_experiment_of_its_sizes(workload: Workload, tmp_path: Path) -> None:
    plain = Plain(Experiment.from_dict(workload.table(tmp_path, tmp_path)))
    assert plain.work == workload.work
    assert (plain.num_clients, plain.sample) == (workload.clients, workload.sample)


@workloads
def test_the_plain_step_is_ours(workload: Workload, tmp_path: Path) -> None:
    assert step_difference(workload, tmp_path) <= TOLERANCE


def test_another_step_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = FixMatch.loss
    slower = lambda self, network, *rest: _scaled(loss(self, network, *rest), 0.9)  # noqa: E731
    monkeypatch.setattr(FixMatch, "loss", slower)
    assert step_difference(WORKLOADS["S"], tmp_path) > TOLERANCE


def _scaled(loss, factor):
    return type(loss)(factor * loss.total, loss.pseudo_labels, loss.accepted)


def test_plain_clients_hold_what_ours_hold(tmp_path: Path) -> None:
    plain = Plain(Experiment.from_dict(WORKLOADS["S"].table(tmp_path, tmp_path)))
    for client in (0, 7, 99):
        shard, data = plain.federation.shard(client), plain.clients[client]
        assert data.images.equal(shard.images.float() / 255)
        assert data.labels.equal(shard.labels)
        assert data.labeled.equal(shard.labeled)


def test_the_gpu_script_finds_a_wrong_device_and_runs_on_the_cpu(monkeypatch, capsys) -> None:
    """There is no GPU here, so the CPU stands for it."""
    arguments = ["gpu", "--device", "cpu", "--repeats", "1", "--cases", "M"]
    monkeypatch.setattr("sys.argv", arguments)
    gpu.main()
    assert capsys.readouterr().out.splitlines()[-1].split()[:2] == ["M", "0.0e+00"]
    gradient, found = gpu._gradient, iter([1.0, 1.01])
    monkeypatch.setattr(gpu, "_gradient", lambda *args: next(found) * gradient(*args))
    with pytest.raises(SystemExit, match=r"1\.0e-02 from the CPU's"):
        gpu.main()


def test_the_first_two_rounds_and_the_last_are_no_steady_state() -> None:
    outcome = Outcome((9.0, 19.0, 20.0, 21.0, 22.0, 60.0), 0.0, 0.0, 0.0)
    assert outcome.seconds_a_round == 1
    assert outcome.first == 9
