"""Checkpoints and the files beside them: complete or absent, with shared packs, and with full disks."""

import csv
import errno
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedssl.core.errors import InputError, RunFailed
from fedssl.core.kept import as_array, from_array
from fedssl.engine.client_states import ClientStates
from fedssl.record.checkpoint import FORMAT, Checkpoints
from fedssl.record.global_model import GlobalModel
from fedssl.record.lines import Lines, Table, read_rounds
from fedssl.record.rows import RoundEnd, RoundRow
from fedssl.record.run_directory import RunDirectory
from fedssl.record.snapshot import Snapshot
from tests.helpers import federation_of, fedssl, small_experiment, small_toml
from tests.resuming import Stopper, bits, go_on, run

NAN = float("nan")


def row(round: int) -> RoundRow:
    odd = [0.1 + round, NAN, 1 / 3, float("inf"), 5e-324, 2 / 7, NAN, -0.0]
    return RoundRow(round, 0, "fixmatch, or \"so\"\n", *odd, 10, 10, 5, 0)  # fmt: skip


def snapshot(states: ClientStates | None, rounds: int) -> Snapshot:
    arrays = {"b": np.full(3, rounds, np.float32), "a": np.ones((2, 0)), "0-d": np.array(7)}
    return Snapshot(
        rounds=tuple(row(i + 1) for i in range(rounds)),
        model=GlobalModel(arrays, {}, {"slot/mask": np.array([True, False])}),
        kept={
            "strategy": {"m/b": np.ones(2)},
            "clock": {"now": np.array(0.1 + 0.2)},
            "model": {"names": as_array({"weight": "first.weight"})},
        },
        seconds=1.5,
        clients=states,
    )


def save(path: Path, checkpoints: Checkpoints, taken: Snapshot) -> None:
    (path / "rounds.csv").unlink(missing_ok=True)
    table = Table(path / "rounds.csv", RoundRow)
    table.add(taken.rounds)
    checkpoints.save(taken, {"rounds.csv": table.length})
    table.close()


@pytest.fixture
def path(tmp_path):
    (tmp_path / "experiment.toml").write_text("seed = 0")
    return tmp_path


def test_rounds_are_read_as_they_were_written(tmp_path):
    table = Table(tmp_path / "rounds.csv", RoundRow)
    rows = [row(1), row(2), row(3)]
    table.add(rows[:2])
    length = table.length
    table.add(rows[2:])
    table.close()
    assert list(map(repr, read_rounds(tmp_path / "rounds.csv"))) == list(map(repr, rows))
    assert len(read_rounds(tmp_path / "rounds.csv", length)) == 2
    again = Table(tmp_path / "rounds.csv", RoundRow, length)
    again.add([row(2)])
    again.close()
    with pytest.raises(ValueError, match="has one twice"):
        read_rounds(tmp_path / "rounds.csv")


def test_an_older_table_of_rounds_has_no_inactive_clients(tmp_path):
    """Its first line does not name the column; a record of today does, right after the lost clients."""
    now, older = tmp_path / "rounds.csv", tmp_path / "older.csv"
    table = Table(now, RoundRow)
    table.add([replace(row(1), clients_lost=1, clients_inactive=3)])
    table.close()
    assert [one.clients_inactive for one in read_rounds(now)] == [3]
    cells = list(csv.reader(now.open(newline="")))
    place = cells[0].index("clients_inactive")
    assert cells[0][place - 1] == "clients_lost"
    with older.open("w", newline="") as file:
        csv.writer(file).writerows(line[:place] + line[place + 1 :] for line in cells)
    (read,) = read_rounds(older)
    assert (read.clients_ok, read.clients_lost, read.clients_inactive) == (5, 1, 0)


def test_a_checkpoint_is_read_as_it_was_written(path):
    states = ClientStates()
    for client in (5, 2):
        states.stage(client, bytes([client]) * 10)
    states.commit()
    taken = snapshot(states, 1)
    save(path, Checkpoints(path), taken)
    found = Checkpoints(path).find().snapshot
    assert found is not None
    assert found.seconds == 1.5
    assert found.kept["clock"]["now"] == 0.1 + 0.2
    assert from_array(found.kept["model"]["names"]) == {"weight": "first.weight"}
    parts = {**taken.model.parts(), **taken.kept}
    again = {**found.model.parts(), **found.kept}
    assert list(parts) == list(again)
    for part, was in parts.items():
        now = again[part]
        assert list(was) == list(now)  # in their order too: strategies zip
        for name, array in was.items():
            assert (now[name].dtype, now[name].shape) == (array.dtype, array.shape)
            assert now[name].tobytes() == array.tobytes()
    assert found.clients is not None
    assert found.clients.versions() == {5: 1, 2: 1}
    assert found.clients.kept(5) == bytes([5]) * 10
    assert found.is_whole


def test_what_has_not_changed_is_not_written_again(path):
    """A hundred clients of 1 kB, one of which changes: the next checkpoint's pack holds that one."""
    states = ClientStates(0)
    for client in range(100):
        states.stage(client, bytes([client]) * 1000)
    states.commit()
    checkpoints = Checkpoints(path)
    save(path, checkpoints, snapshot(states, 1))
    states.stage(7, b"changed")
    states.commit()
    save(path, checkpoints, snapshot(states, 2))
    packs = {p.name: p.stat().st_size for p in (path / "checkpoint" / "clients").iterdir()}
    assert packs == {"round-000001.pack": 100_000, "round-000002.pack": 7}
    states.commit()
    save(path, checkpoints, snapshot(states, 3))  # nobody has changed: no pack at all
    assert len(list((path / "checkpoint" / "clients").iterdir())) == 2


def test_packs_are_no_more_than_about_twice_what_clients_keep(path):
    generator = np.random.default_rng(0)
    states, size = ClientStates(0), 2000
    expected: dict[int, bytes] = {}
    checkpoints = Checkpoints(path)
    for number in range(1, 40):
        for client in generator.choice(50, 10, replace=False).tolist():
            expected[client] = generator.bytes(size)
            states.stage(client, expected[client])
        states.commit()
        if number % 7 == 0:
            checkpoints = Checkpoints(path)  # a process that goes on
            checkpoints.find()
        save(path, checkpoints, snapshot(states, number))
        packs = sum(p.stat().st_size for p in (path / "checkpoint" / "clients").iterdir())
        # Twice for the newest, and what the one before it needs on top.
        assert packs <= 2 * size * len(expected) + 2 * size * 25
        found = Checkpoints(path).find().snapshot
        assert found is not None
        assert found.clients is not None
        assert {c: found.clients.kept(c) for c in found.clients.versions()} == expected


def test_what_was_being_written_is_not_found_and_goes(path):
    checkpoints = Checkpoints(path)
    save(path, checkpoints, snapshot(None, 1))
    half = path / "checkpoint" / "round-000002.partial"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    (path / "checkpoint" / "clients" / "round-000002.pack.partial").write_bytes(b"half")
    again = Checkpoints(path)
    found = again.find()
    assert found.snapshot is not None
    assert (found.snapshot.round, found.damaged) == (1, ())
    save(path, again, snapshot(None, 2))
    names = sorted(p.name for p in (path / "checkpoint").rglob("*.partial"))
    assert names == []


def test_a_manifest_is_verified_too(path):
    save(path, Checkpoints(path), snapshot(None, 1))
    manifest = path / "checkpoint" / "round-000001" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["manifest"]["seconds"] = 2
    manifest.write_text(json.dumps(content))
    (said,) = Checkpoints(path).find().damaged
    assert said.endswith("manifest.json is not what was written")


def test_another_version_is_refused_and_nothing_is_touched(tmp_path, monkeypatch):
    experiment = small_experiment(rounds=3)
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "run", Stopper(2, KeyboardInterrupt()))
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with monkeypatch.context() as patched:
        patched.setattr("fedssl.record.checkpoint.FORMAT", FORMAT + 1)
        with pytest.raises(InputError, match="by another version"):
            go_on(experiment, tmp_path / "run")
    rounds = tmp_path / "run" / "rounds.csv"
    rounds.write_bytes(rounds.read_bytes().replace(b"bytes_up", b"bytes_on"))
    with pytest.raises(InputError, match=r"rounds.csv was written by another version"):
        go_on(experiment, tmp_path / "run")
    rounds.write_bytes(files[rounds])
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == files


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes: what fits is written, as on a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_lines_that_do_not_fit_leave_nothing(tmp_path):
    lines = Lines(tmp_path / "a")
    lines.append("first\n")
    with files_at_most(10), pytest.raises(OSError, match="File too large"):
        lines.append("second\n")
    assert (tmp_path / "a").read_text() == "first\n"
    lines.append("third\n")
    assert (tmp_path / "a").read_text() == "first\nthird\n"
    lines.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bits of a run of six rounds that nothing stops, with a checkpoint after each."""
    path = tmp_path_factory.mktemp("whole") / "run"
    run(small_experiment(rounds=6, server={"checkpoint_every": 1}), path)
    return bits(path)


@pytest.mark.parametrize(
    "full", ["rounds.csv", "clients.csv", "model.safetensors", "manifest.json"]
)
def test_a_full_disk_is_one_error_and_nothing_is_lost(full, whole, tmp_path, monkeypatch):
    """The disk is full from some file's fourth write on, after part of it was written; then there is room again."""
    file = small_toml(tmp_path / "e.toml", rounds=6, server={"checkpoint_every": 1})
    out, writes = tmp_path / "run", []
    real_append, real_open = Lines.append, Path.open

    def append(lines, text):
        if Path(lines._file.name).name == full:
            writes.append(text)
            if len(writes) > 4:
                real_append(lines, text[:10])
                raise OSError(errno.ENOSPC, "No space left on device")
        real_append(lines, text)

    def open_(path, *arguments, **options):
        if path.name == full and path.parent.name.startswith("round-") and "wb" in arguments:
            writes.append(path)
            if len(writes) > 3:
                path.write_text("some")
                raise OSError(errno.ENOSPC, "No space left on device")
        return real_open(path, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Lines, "append", append)
        patched.setattr(Path, "open", open_)
        result = fedssl("run", file, "--out", out)
    assert result.exit_code == 1, result.output
    assert result.output.count("error:") == 1
    assert "Traceback" not in result.output
    for word in (f"cannot record in {out}", "No space left on device", "free space", "--resume"):
        assert word in result.output.replace("\n", " ")
    whole_rounds = 3 if full.endswith(".csv") else 4
    assert pd.read_csv(out / "rounds.csv")["round"].tolist() == list(range(1, whole_rounds + 1))
    clients = pd.read_csv(out / "clients.csv")
    assert clients.groupby("round").size().tolist() == [3] * whole_rounds
    assert not list(out.rglob("*.partial"))
    again = fedssl("run", file, "--out", out, "--resume")
    assert again.exit_code == 0, again.output
    assert "goes on after round 3" in again.output
    assert bits(out) == whole


def test_a_disk_that_is_full_from_the_beginning(tmp_path):
    with files_at_most(100), pytest.raises(RunFailed, match=r"cannot record in .*File too large"):
        run(small_experiment(), tmp_path / "run")
    run(small_experiment(), tmp_path / "run")  # as good as empty


def test_two_processes_do_not_share_a_folder(tmp_path):
    experiment = small_experiment()
    first, second = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "run")
    first.began(experiment, federation_of(experiment))
    with pytest.raises(InputError, match="in use by another process"):
        second.began(experiment, federation_of(experiment))
    with pytest.raises(InputError, match="in use by another process"):
        RunDirectory(tmp_path / "run", resume=True)
    first.close()
    with pytest.raises(InputError, match="go on with its run: --resume"):
        RunDirectory(tmp_path / "run")
    RunDirectory(tmp_path / "run", resume=True).close()


def test_a_snapshot_stays_what_it_was_while_the_run_goes_on(tmp_path):
    """Everything of round 2's is hashed, and hashed again after round 5: strategies and methods write to nothing of it."""
    taken: list[Snapshot] = []

    class Keep(Stopper):
        def round_ended(self, end: RoundEnd) -> None:
            if end.row.round == 2:
                assert end.snapshot is not None
                taken.append(end.snapshot)
                self.before = content(end.snapshot)

    def content(snapshot: Snapshot) -> bytes:
        parts = (
            snapshot.model.arrays,
            snapshot.model.ema,
            snapshot.model.state,
            *snapshot.kept.values(),
        )
        return b"".join(array.tobytes() for part in parts for array in part.values())

    for i, overrides in enumerate(
        (
            {"strategy": {"kind": "flwr:FedAdam"}},
            {
                "federation": {"labels": {"kind": "at_server", "per_class": 4}},
                "server": {"method": {"kind": "mean_teacher", "teacher_scope": "client"}},
                "method": "freematch",
            },
        )
    ):
        keep = Keep(0)
        run(small_experiment(rounds=5, **overrides), tmp_path / str(i), keep)
        assert content(taken[i]) == keep.before
        assert not taken[i].is_whole


def test_runs_can_be_resumed_twice_from_the_same_folder(tmp_path):
    experiment = small_experiment(rounds=3, server={"checkpoint_every": 1})
    run(experiment, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(experiment, tmp_path / "run", Stopper(2, KeyboardInterrupt()))
    directory = RunDirectory(tmp_path / "run", resume=True)
    directory.load()
    directory.close()
    go_on(experiment, tmp_path / "run")
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
