"""The Ray that a run starts: who may join it, what it leaves behind, and the messages when it fails or is lost."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from fedssl.core.errors import InputError
from fedssl.engine.ray import start as ray_start
from tests.engine.ray.test_grid import in_a_process_of_its_own
from tests.helpers import command, sha256, small_toml

HOSTILE = ("clients.py", "strategies/__init__.py", "torch.py", "numpy.py", "ray.py", "secrets.py")
"""Modules of the user's beside the experiment, by names that fedssl and its libraries import too."""


@pytest.fixture
def short() -> Iterator[Path]:
    """Yield a folder with a path that is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as folder:
        yield Path(folder)


class Command:
    """``fedssl run`` of many rounds in a process of its own, once its first round is recorded."""

    def __init__(self, folder: Path, engine: str, **environment: str) -> None:
        file = small_toml(folder / "e.toml", rounds=100_000)
        self.out = folder / "run"
        arguments = ("run", file, "--plain", "--engine", engine, "--workers", 1, "--out", self.out)
        self.output = folder / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                command(*arguments),
                stdout=output,
                stderr=output,
                env=os.environ | environment,
            )
        rounds = self.out / "rounds.csv"
        until = time.monotonic() + 300
        while not rounds.exists() or rounds.read_bytes().count(b"\n") < 2:
            assert self.process.poll() is None, self.output.read_text()
            assert time.monotonic() < until, self.output.read_text()
            time.sleep(0.05)

    def processes(self) -> dict[int, str]:
        """Return the command lines of the process and all below it."""
        parents, lines = {}, {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(")")[2].split()[1]
                )
                lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
        ours = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
            ours |= more
        return {pid: lines[pid] for pid in sorted(ours) if pid in lines}

    def pid_of(self, beginning: str) -> int:
        """Return the process whose program or title ends with this; on a busy machine, agents start late."""
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for pid, line in self.processes().items():
                if line.split(" ")[0].endswith(beginning):
                    return pid
            time.sleep(0.1)
        raise AssertionError(f"no {beginning} among {self.processes()}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def listening(pid: int) -> set[tuple[str, int]]:
    """Return the addresses (hexadecimal, as the kernel writes them) and ports at which a process listens."""
    targets = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    inodes = {target[8:-1] for target in targets if target.startswith("socket:[")}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == "0A" and row[9] in inodes:
                address, _, port = row[1].partition(":")
                found.add((address, int(port, 16)))
    return found


LOOPBACKS = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1."""


CALLS = (
    "NodeInfoGcsService/CheckAlive",
    "NodeManagerService/GetNodeStats",
    "ObjectManagerService/FreeObjects",
    "CoreWorkerService/PushTask",
)
"""A call of each kind of server: control store, raylet, its object manager, and every process that runs tasks."""


def answers(port: int, *headers: tuple[str, str]) -> set[grpc.StatusCode]:
    """Return what a server of Ray's answers to the calls; to those that it does not have: unimplemented."""
    codes = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        for name in CALLS:
            try:
                channel.unary_unary(f"/ray.rpc.{name}")(b"", timeout=20, metadata=headers)
                codes.add(grpc.StatusCode.OK)
            except grpc.RpcError as error:
                codes.add(error.code())
    return codes - {grpc.StatusCode.UNIMPLEMENTED}


def status(port: int) -> int:
    """Return the status with which a server answers to HTTP."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", "/get_or_create_runtime_env", b"")
    return connection.getresponse().status


@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_nobody_without_the_token_joins_the_ray_of_a_run(tmp_path, engine):
    run = Command(tmp_path, engine)
    try:
        run.pid_of("ray::RuntimeEnvAgent")  # it has its title, so it is told from the others
        raylet = run.pid_of("/raylet")
        lines = run.processes()
        environment = dict(
            entry.partition("=")[::2]
            for entry in Path(f"/proc/{raylet}/environ").read_text().split("\0")
        )
        token = environment["RAY_AUTH_TOKEN"]

        ports = {pid: listening(pid) for pid in lines}
        servers = [(lines[pid], port) for pid, found in ports.items() for _, port in found]
        assert len(servers) >= 5  # control store, raylet (2), agent, this process
        assert {address for found in ports.values() for address, _ in found} <= LOOPBACKS
        for who, port in servers:
            if who.startswith("ray::RuntimeEnvAgent"):
                assert status(port) == 401
            else:
                assert answers(port) == {grpc.StatusCode.UNAUTHENTICATED}, who
        (store,) = [port for who, port in servers if "/gcs_server " in who]
        assert answers(store, ("authorization", f"Bearer {token}")) == {grpc.StatusCode.OK}

        assert len(token) >= 32
        assert not any(token in line for line in lines.values())
        assert token not in Path(f"/proc/{run.process.pid}/environ").read_text()
        folder = Path(lines[raylet].partition("--temp-dir=")[2].split()[0])
        assert folder.parent.stat().st_mode & 0o077 == 0
        written = [*folder.rglob("*"), *run.out.rglob("*"), run.output]
        assert not any(token.encode() in file.read_bytes() for file in written if file.is_file())

        assert run.process.poll() is None
    finally:
        run.kill()


@pytest.mark.parametrize(
    ("who", "said"),
    [
        ("ray::DashboardAgent", "dashboard agent"),
        ("ray::RuntimeEnvAgent", "runtime environment agent"),
        ("/raylet", "raylet"),
        ("/gcs_server", "control store"),
    ],
)
def test_what_is_lost_of_ray_is_said_with_how_to_go_on(tmp_path, short, who, said):
    run = Command(tmp_path, "ray", TMPDIR=str(short))
    try:
        os.kill(run.pid_of(who), signal.SIGKILL)
        assert run.process.wait(60) not in (0, 2)
    finally:
        run.kill()
    until = time.monotonic() + 30
    while list(short.glob("fedssl-*")) or "error:" not in run.output.read_text():
        assert time.monotonic() < until
        time.sleep(0.1)
    output = run.output.read_text()
    assert output.count("error:") == 1
    # On a busy machine, the witness may see several deaths at once; then it names them all.
    named = rf"Ray's [a-z ]*\b{said}\b[a-z ]* died"
    assert re.search(named, output)
    assert "--resume" in output
    last = json.loads((run.out / "events.jsonl").read_text().splitlines()[-1])
    assert last["event"] == "failed"
    assert re.search(named, last["reason"])


def test_a_run_ends_well_in_a_hostile_place_and_leaves_nothing(tmp_path, short):
    """Without a home, behind a dead proxy, beside modules that are called as ours, and to the same bits on both engines that use Ray."""
    place = tmp_path / "place"
    (place / "strategies").mkdir(parents=True)
    for name in HOSTILE:
        (place / name).write_text("raise RuntimeError('the wrong module')\n")
    file = small_toml(place / "e.toml")
    home = tmp_path / "home"
    home.mkdir()
    proxies = {f"{kind}_proxy": "http://127.0.0.1:9" for kind in ("http", "https", "grpc", "all")}
    proxies |= {name.upper(): value for name, value in proxies.items()}
    environment = os.environ | proxies | {"TMPDIR": str(short), "PYTHONPATH": str(Path.cwd())}
    environment |= {"HOME": str(home), "FLWR_HOME": str(tmp_path / "flwr")}
    engines = ("ray", "flower")
    for kind in engines:
        out = ("--workers", 1, "--out", tmp_path / kind)
        arguments = command("run", file, "--plain", "--engine", kind, *out)
        done = subprocess.run(
            [arguments[0], "-P", *arguments[1:]],
            cwd=place,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert len({sha256(tmp_path / kind / "model.safetensors") for kind in engines}) == 1
    assert list(short.iterdir()) == []
    assert not (home / ".ray").exists()


def test_a_token_protects_ray_whoever_imported_it_before():
    """Ray reads its settings on its import; afterwards they are those of the user again, and a Ray of theirs is told of."""
    out = in_a_process_of_its_own("""
        import logging, os, sys
        import ray
        from ray._raylet import AuthenticationMode, get_authentication_mode
        from fedssl.engine.local_grid import Apps
        from fedssl.engine.plan import Wish
        from fedssl.engine.ray.grid import RayGrid
        from fedssl.engine.ray.start import RayCluster
        from tests.engine.ray.test_grid import naughty
        from tests.engine.ray.test_start import variables

        def token_mode():
            return get_authentication_mode() == AuthenticationMode.TOKEN

        print("before", token_mode())
        RayCluster(None).close()
        print("between", token_mode())
        grid = RayGrid(Apps(naughty), 2, Wish(1))
        print("ours", token_mode())
        print("in workers", "RAY_AUTH_TOKEN" in grid.map(variables, [()])[0])
        print("here", "RAY_AUTH_TOKEN" in os.environ)
        grid.close()
        print("after", token_mode())
        logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
        ray.init("local", num_cpus=1, include_dashboard=False, logging_level="error")
        RayCluster(None).close()
        print("theirs still", ray.is_initialized())
    """)
    lines = out.splitlines()
    assert lines[:2] == ["before False", "between False"]
    assert lines[2:5] == ["ours True", "in workers False", "here False"]
    assert lines[5] == "after False"
    assert "WARNING" in lines[6]
    assert "asks for no token" in lines[6]
    assert lines[7] == "theirs still True"


def variables(device: str) -> list[str]:
    return list(os.environ)


def test_a_cluster_with_a_token_admits_those_who_have_it(tmp_path):
    code = """
        import ray
        ray.init("local", num_cpus=1, include_dashboard=False, logging_level="error")
        print(ray.get_runtime_context().gcs_address, flush=True)
        input()
    """
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "k" * 64}
    cluster = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | known,
    )
    try:
        assert cluster.stdout is not None
        address = cluster.stdout.readline().strip()
        engine = {"kind": "ray", "workers": 1, "address": address}
        file = small_toml(tmp_path / "e.toml", engine=engine)
        results = []
        without = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
        for number, settings in enumerate((known, {}, without)):
            arguments = command("run", file, "--plain", "--out", tmp_path / str(number))
            results.append(
                subprocess.run(
                    arguments,
                    env=os.environ | settings,
                    capture_output=True,
                    text=True,
                    timeout=200,
                )
            )
    finally:
        cluster.communicate("\n", timeout=60)
    assert results[0].returncode == 0, results[0].stderr
    assert "token" not in results[0].stderr
    for refused in results[1:]:
        assert refused.returncode == 2, refused.stderr
        assert "engine.address" in refused.stderr
        assert "asks for a token" in refused.stderr
        assert "gcs_client" not in refused.stderr, "Ray tried by itself, which takes 40 s"
        assert "Traceback" not in refused.stderr


def test_ray_that_does_not_start_is_one_message_and_leaves_nothing(short):
    out = in_a_process_of_its_own(f"""
        import os
        os.environ["RAY_TMPDIR"] = {str(short)!r}
        import ray._private.services as services
        from fedssl.engine.ray.start import RayCluster
        from fedssl.core.errors import RunFailed

        def broken(*args, **kwargs):
            raise OSError("no port is free")

        services.start_raylet = broken
        try:
            RayCluster(None)
        except RunFailed as error:
            print(error)
        import ray
        print("initialized", ray.is_initialized())
        print("children", open(f"/proc/self/task/{{os.getpid()}}/children").read().split())
    """)
    assert "Ray does not start: no port is free" in out
    assert "--engine serial" in out
    assert "initialized False" in out
    assert "children []" in out
    assert list(short.iterdir()) == []


def test_rays_folder_is_short_and_private(monkeypatch, short, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "long" * 20)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    folder = ray_start._make_folder()
    assert len(str(folder)) < 40
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.rmdir()
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    folder = ray_start._make_folder()
    assert folder.parent == short
    folder.rmdir()
    for unusable in ("/proc/none", "/tmp/" + "long" * 20, str(tmp_path / "a" / "b" / "c")):
        monkeypatch.setenv("RAY_TMPDIR", unusable)
        with pytest.raises(InputError, match=r"RAY_TMPDIR.*--engine serial"):
            ray_start._make_folder()


def test_sockets_fit_the_folder():
    """What Ray adds to the folder: a session by time and process, and the longest of its sockets."""
    added = "/fedssl-12345678/r/session_2026-11-28_02-58-51_963827_4194304/sockets/plasma_store"
    with socket.socket(socket.AF_UNIX), tempfile.TemporaryDirectory(dir="/tmp"):
        assert ray_start.LONGEST_FOLDER + len(added) <= 103


@pytest.mark.parametrize("limit", [3_500_000_000])
def test_too_few_addresses_are_told_before_ray_starts(limit):
    code = f"""
        import resource
        from fedssl.engine.ray.start import RayCluster
        from fedssl.core.errors import InputError
        resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
        try:
            RayCluster(None)
        except InputError as error:
            print(error)
    """
    assert "ulimit -v: limits a process to 3.5 GB" in in_a_process_of_its_own(code)
