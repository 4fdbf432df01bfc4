"""The Ray that a run uses: started for this process alone, joined at an address, or started by this process before.

Ray starts without the parts that no run needs. It can be reached from this machine only, and asks for a token that is
made anew for each start. Written for ray 2.55.1, the version that flwr 1.41 pins.
"""

import contextlib
import logging
import os
import resource
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray
import ray._private.node as ray_node
import ray._private.worker as ray_worker
import ray.job_config
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from fedssl.core.errors import InputError, RunFailed
from fedssl.core.machine import available_cores
from fedssl.core.processes import path_for_other_processes
from fedssl.engine.ray.actor import TOKEN
from fedssl.engine.ray.witness import Witness

log = logging.getLogger(__name__)

INLINE_BYTES = 1 << 20
"""Objects smaller than this (bytes) travel inside a call or its answer: a third of the time of Ray's object store."""

PATIENCE = 30.0
"""Ray should have started within this many seconds; if it has not, Ray itself reports why."""

LOOPBACK = "127.0.0.1"

LONGEST_FOLDER = 21
"""Ray's sockets fit below a folder whose path has at most this many bytes.

A socket's path has at most 103 bytes (macOS), and fedssl and Ray add 82.
"""

SHARED_MEMORY = Path("/dev/shm")

LEAST_ADDRESSES = 5_000_000_000
"""A process with torch and Ray takes this many bytes of address space on two cores; with less, Ray aborts or hangs."""

STORE_SHARE = 10
"""Under a limit of the address space (``ulimit -v``), Ray's object store gets the limit divided by this number."""


class RayCluster:
    """The Ray that this process uses until `close`.

    A Ray that this class starts ends with the thread that made the object, at the latest.

    Args:
        address: Address of a Ray that runs already. None: use the Ray of this process, or start a new one.
        num_cpus: Cores that a new Ray hands out; None: all cores of this process.

    Raises:
        InputError: There is no Ray at the address, or no folder in which a new one could start.
        RunFailed: Ray does not start.
    """

    def __init__(self, address: str | None, num_cpus: int | None = None) -> None:
        self._folder: Path | None = None
        self._joined = ray.is_initialized()
        self.is_ours = address is None and not self._joined
        """Whether this object started Ray, and so with fedssl's settings."""
        if self.is_ours:
            self._folder = _make_folder()
        self.witness = Witness()
        try:
            if self.is_ours:
                self._start(num_cpus or available_cores())
            elif not self._joined:
                assert address is not None
                _join(address)
        except BaseException:
            self.close()
            raise
        if not self.is_ours:
            _warn_if_open(address)

    def close(self) -> None:
        """End the Ray that this object started, or leave the Ray that it joined."""
        self.witness.close()  # first, so that the witness does not report the end of Ray's processes
        if not self._joined:
            # A Ray that dies with its thread, without a shutdown, ends this process within a minute.
            ray.shutdown()
        if self._folder is not None:
            _read_authentication_anew()  # a Ray that this process starts later has its own token, or none
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, num_cpus: int) -> None:
        assert self._folder is not None
        self.witness.tell({"starting": True, "folder": str(self._folder)})
        store = _choose_object_store(self._folder)
        try:
            with (
                _set_environment(_environment_of_ray_processes()),
                _start_lean_nodes(),
                _silence_node_errors(),
            ):
                _read_authentication_anew()
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    job_config=_LeanJob(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="critical",
                    # Not the folder itself: Ray lets everybody write to its own folder.
                    _temp_dir=str(self._folder / "r"),
                    _system_config={
                        "max_direct_call_object_size": INLINE_BYTES,
                        # Ray would start one idle process for each core, often many more than there will be actors.
                        "prestart_worker_first_driver": False,
                    },
                    **store,
                )
        except Exception as error:  # Ray has no error class of its own for a failed start
            raise RunFailed(
                f"Ray does not start: {_explain_failed_start(error, self._folder)}; it needs memory, processes, "
                f"free ports, and room in {SHARED_MEMORY} and {self._folder.parent}; --engine serial does without Ray"
            ) from error
        self.witness.tell({"starting": False, "processes": _process_ids()})


class _LeanNode(ray_node.Node):  # type: ignore[misc]
    """A node of Ray that starts no dashboard, autoscaler or log monitor, and listens on the loopback only.

    `ray.init` cannot switch these three processes off: with "no dashboard" it still starts the dashboard's server and
    waits for it. They would cost two seconds of a core at the start and one at the end, and a run uses none of them:
    nobody looks at the dashboard, there are no machines to add, and the driver does not listen to logs. `ray.init`
    cannot listen on the loopback only, either: it takes 127.0.0.1 for "the address of this machine", and Ray's servers
    then listen everywhere.
    """

    def __init__(self, ray_params: Any, *args: Any, **settings: Any) -> None:
        ray_params.node_ip_address = LOOPBACK
        try:
            super().__init__(ray_params, *args, **settings)
        except BaseException:
            # No caller can end a node whose constructor failed.
            self.kill_all_processes(check_alive=False, wait=True)
            raise

    def start_api_server(self, **settings: Any) -> None:
        self._webui_url = ""

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass

    def start_ray_processes(self) -> None:
        """Start Ray's processes and wait until Ray knows of them; Ray itself would look only once a second."""
        super().start_ray_processes()
        deadline = time.monotonic() + PATIENCE  # after it, Ray itself reports the fault
        while not self.get_gcs_client().get_all_node_info() and time.monotonic() < deadline:
            time.sleep(0.02)


class _LeanJob(ray.job_config.JobConfig):  # type: ignore[misc]
    """A job of Ray whose workers search for modules in PYTHONPATH first.

    Ray would put this process's current folder and the script's folder in front, and a user's file ``numpy.py`` there
    would end every worker.
    """

    def _serialize(self) -> Any:
        self._py_driver_sys_path: list[str] = []
        return super()._serialize()


def _make_folder() -> Path:
    """Make and return a folder for Ray's sockets and logs, which only this user can enter.

    Raises:
        InputError: No candidate folder can be written to and has a path short enough for sockets.
    """
    asked = os.environ.get("RAY_TMPDIR")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [asked] if asked else [tempfile.gettempdir(), "/tmp", runtime, str(SHARED_MEMORY)]
    problems = []
    for place in [Path(place).absolute() for place in places if place]:
        if len(os.fsencode(place)) > LONGEST_FOLDER:
            problems.append(
                f"the path {place} has more than {LONGEST_FOLDER} bytes, too many for Ray's sockets"
            )
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="fedssl-", dir=place))
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
    raise InputError(
        "RAY_TMPDIR",
        f"there is no folder for Ray's files: {', '.join(problems)}",
        "set RAY_TMPDIR to a folder with a short path that you may write to, or use --engine serial",
    )


def _environment_of_ray_processes() -> dict[str, str]:
    """Return the environment variables with which Ray's processes start.

    Workers need this process's import path; Ray's own way, a runtime environment, would start every worker a second
    time. Actors without a GPU still see the machine's GPUs, which will become Ray's default; fedssl's workers name
    their device themselves. The token is in no command line, log or file; /proc shows it to this user alone.
    """
    return {
        "PYTHONPATH": path_for_other_processes(),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_K8S_TOKEN_AUTH": "0",
        TOKEN: secrets.token_hex(32),
    }


def _read_authentication_anew() -> None:
    """Let Ray read its token from the environment again; by itself, Ray does so only once, on its import."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _choose_object_store(folder: Path) -> dict[str, Any]:
    """Return arguments of `ray.init` with which the object store starts on machines where Ray's defaults fail.

    Raises:
        InputError: The limit of a process's address space is below what Ray needs.
    """
    chosen: dict[str, Any] = {}
    if SHARED_MEMORY.exists() and not os.access(SHARED_MEMORY, os.W_OK):
        chosen["_plasma_directory"] = str(folder)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        if limit < LEAST_ADDRESSES:
            raise InputError(
                "ulimit -v",
                f"limits a process to {limit / 1e9:.1f} GB of addresses, but Ray needs {LEAST_ADDRESSES / 1e9:.0f} GB",
                "raise the limit (ulimit -v unlimited), or use --engine serial",
            )
        least = ray._private.ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES
        chosen["object_store_memory"] = max(least, limit // STORE_SHARE)
    return chosen


def _process_ids() -> dict[str, int]:
    """Return the process ids of the raylet and of the control store that this process started."""
    started = ray_worker._global_node.all_processes
    names = {"raylet": "raylet", "gcs_server": "control store"}
    return {name: started[kind][0].process.pid for kind, name in names.items() if kind in started}


def _explain_failed_start(error: Exception, folder: Path) -> str:
    """Return one line on why Ray did not start, from its error and the last lines of its processes' output."""
    said = [(str(error) or type(error).__name__).strip().splitlines()[0][:500]]
    for file in sorted(folder.glob("r/session_*/logs/*.err")):
        with contextlib.suppress(OSError):
            lines = file.read_text(errors="replace").strip().splitlines()
            said += [f"{file.stem}: {line[:500]}" for line in lines[-1:]]
    return "; ".join(said)


def _join(address: str) -> None:
    """Join a Ray that runs already; raise `InputError` if there is none or if it does not admit this process."""
    environment = {"env_vars": {"PYTHONPATH": path_for_other_processes()}}
    try:
        _check_that_somebody_listens(address)
        _check_that_the_token_is_accepted(address)
        with _silence_node_errors():
            ray.init(
                address=address, log_to_driver=False, logging_level="error", runtime_env=environment
            )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(
            "engine.address",
            f"there is no Ray at {address!r}: {error}",
            "start one with `ray start --head`, or leave engine.address unset",
        ) from None


def _check_that_somebody_listens(address: str) -> None:
    """Raise `OSError` if no process listens at an address; Ray itself would try for minutes (ray 2.55)."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _check_that_the_token_is_accepted(address: str) -> None:
    """Raise `InputError` if the Ray at an address asks for a token that this process lacks; Ray itself would try for 40 s (ray 2.55)."""
    if not address.rpartition(":")[2].isdecimal():
        return
    header: dict[str, str] = {}
    with contextlib.suppress(ray.exceptions.AuthenticationError):  # token mode, and no token
        header = AuthenticationTokenLoader.instance().get_token_for_http_header()
    if _status_of_call(address, *header.items()) is grpc.StatusCode.UNAUTHENTICATED:
        raise InputError(
            "engine.address",
            f"the Ray at {address!r} asks for a token, and this process has none that it accepts",
            f"set RAY_AUTH_MODE=token, and set {TOKEN} to the token of that Ray",
        )


def _warn_if_open(address: str | None) -> None:
    """Warn if a Ray that this process did not start admits everybody; only its owner can close it."""
    found = address if address and ":" in address else ray.get_runtime_context().gcs_address
    if _status_of_call(found) is grpc.StatusCode.OK:
        log.warning(
            "the Ray at %s asks for no token: anybody who reaches its ports can run code as its user; "
            "start it with RAY_AUTH_MODE=token",
            found,
        )


def _status_of_call(address: str, *headers: tuple[str, str]) -> grpc.StatusCode:
    """Return what Ray's control store answers to a call; headers may hold the token."""
    # Ray uses no proxy, and a proxy from the environment would answer in place of the other machine.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address.removeprefix("ray://"), options) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            call(b"", timeout=5, metadata=headers)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


@contextmanager
def _start_lean_nodes() -> Iterator[None]:
    """Let Ray start `_LeanNode` within the block."""
    kept = ray_node.Node
    ray_node.Node = _LeanNode
    try:
        yield
    finally:
        ray_node.Node = kept


@contextmanager
def _silence_node_errors() -> Iterator[None]:
    """Keep a Ray that starts now from printing its nodes' errors; fedssl records lost workers as incidents itself."""
    kept = ray_worker.listen_error_messages
    ray_worker.listen_error_messages = lambda worker, threads_stopped: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages = kept


@contextmanager
def _set_environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes that start within the block, and put the old values back."""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
