"""The Ray that a run uses: started for this process alone, joined at an address, or begun by this process before.

Ray is started without what no run here needs, reachable from this machine only, and behind a token that is made for this
start. Written for ray 2.55.1, the version that flwr 1.41 pins.
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
from fedssl.core.processes import import_path
from fedssl.engine.ray.actor import TOKEN
from fedssl.engine.ray.witness import Witness

log = logging.getLogger(__name__)

INLINE_BYTES = 1 << 20
"""What is smaller travels inside a call or its answer, which takes a third of the time of Ray's object store."""

PATIENCE = 30.0
"""Seconds in which Ray should have started."""

LOOPBACK = "127.0.0.1"

LONGEST_FOLDER = 21
"""Bytes of a path below which Ray's sockets fit: a socket's path has at most 103 bytes (macOS), and we and Ray add 82."""

SHARED_MEMORY = Path("/dev/shm")

LEAST_ADDRESSES = 5_000_000_000
"""Bytes of address space that a process with torch and Ray takes on two cores; Ray aborts or hangs where it gets less."""

STORE_SHARE = 10
"""Under a limit of its address space (``ulimit -v``), a process gives one part in so many to Ray's object store."""


class RayCluster:
    """The Ray that this process uses, until `close`.

    One that is started here ends with the thread that made it, at the latest.

    Args:
        address: Address of a Ray that runs already; None: the one of this process, or else a new one.
        num_cpus: Cores that a new one hands out; None: all of this process.

    Raises:
        InputError: There is no Ray at the address, or no folder in which one could be started.
        RunFailed: Ray does not start.
    """

    def __init__(self, address: str | None, num_cpus: int | None = None) -> None:
        self._folder: Path | None = None
        self._joined = ray.is_initialized()
        self.is_ours = address is None and not self._joined
        """Whether it was started here, with the settings of ours."""
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
        """End the Ray that was started here, or leave the one that was joined."""
        self.witness.close()  # first: that Ray's processes end now is no loss
        if not self._joined:
            # Were Ray left to die with its thread, it would end this process in a minute.
            ray.shutdown()
        if self._folder is not None:
            _read_authentication_anew()  # what this process starts later has its own token, or none
            shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self, num_cpus: int) -> None:
        assert self._folder is not None
        self.witness.tell({"starting": True, "folder": str(self._folder)})
        store = _object_store(self._folder)
        try:
            with _environment(_settings_of_rays_processes()), _lean_nodes(), _quiet():
                _read_authentication_anew()
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    job_config=_LeanJob(),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="critical",
                    _temp_dir=str(self._folder / "r"),  # Ray lets everybody write to its own folder
                    _system_config={
                        "max_direct_call_object_size": INLINE_BYTES,
                        # One idle process a core: on a large machine, many more than there will be actors.
                        "prestart_worker_first_driver": False,
                    },
                    **store,
                )
        except Exception as error:  # whatever Ray's start raises: it has no error of its own
            raise RunFailed(
                f"Ray does not start: {_why(error, self._folder)}; it needs memory, processes, free ports, and room in "
                f"{SHARED_MEMORY} and {self._folder.parent}; --engine serial does without Ray"
            ) from error
        self.witness.tell({"starting": False, "processes": _process_ids()})


class _LeanNode(ray_node.Node):  # type: ignore[misc]
    """A node of Ray's that starts no dashboard, autoscaler or log monitor, and listens on the loopback only.

    `ray.init` has no switch for them: "no dashboard" still starts its server, and waits for it. They would cost two
    seconds of a core at the start and a second at the end, to show what nobody looks at, to add machines where there
    are none, and to read logs aloud to a driver that does not listen. It has no way to listen on the loopback only
    either: it takes 127.0.0.1 for "the address of this machine", and Ray's servers then listen everywhere.
    """

    def __init__(self, ray_params: Any, *args: Any, **settings: Any) -> None:
        ray_params.node_ip_address = LOOPBACK
        try:
            super().__init__(ray_params, *args, **settings)
        except BaseException:
            self.kill_all_processes(check_alive=False, wait=True)  # nobody gets to end half a node
            raise

    def start_api_server(self, **settings: Any) -> None:
        self._webui_url = ""

    def start_monitor(self) -> None:
        pass

    def start_log_monitor(self) -> None:
        pass

    def start_ray_processes(self) -> None:
        """Start them and wait until Ray knows of them, for which it would otherwise look once a second."""
        super().start_ray_processes()
        deadline = time.monotonic() + PATIENCE  # after which Ray says itself what is wrong
        while not self.get_gcs_client().get_all_node_info() and time.monotonic() < deadline:
            time.sleep(0.02)


class _LeanJob(ray.job_config.JobConfig):  # type: ignore[misc]
    """A job of Ray's whose workers search for modules where PYTHONPATH says, and nowhere before that.

    Ray puts this process's current folder and the script's in front: a ``numpy.py`` of the user's there ends every worker.
    """

    def _serialize(self) -> Any:
        self._py_driver_sys_path: list[str] = []
        return super()._serialize()


def _make_folder() -> Path:
    """Make and return a folder for Ray's sockets and logs, which only this user can enter.

    Raises:
        InputError: There is no place with a path that is short enough for sockets.
    """
    asked = os.environ.get("RAY_TMPDIR")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [asked] if asked else [tempfile.gettempdir(), "/tmp", runtime, str(SHARED_MEMORY)]
    problems = []
    for place in [Path(place).absolute() for place in places if place]:
        if len(os.fsencode(place)) > LONGEST_FOLDER:
            problems.append(
                f"{place} has more than {LONGEST_FOLDER} bytes, and Ray's sockets do not fit"
            )
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="fedssl-", dir=place))
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
    raise InputError(
        "RAY_TMPDIR",
        f"there is no folder for Ray's files: {', '.join(problems)}",
        "set it to a folder that you may write to and whose path is short, or use --engine serial",
    )


def _settings_of_rays_processes() -> dict[str, str]:
    """Return environment variables with which Ray's processes are started.

    Workers need this process's import path (Ray's own way, a runtime environment, costs every worker a start of its
    own). That actors without a GPU still see the machine's is Ray's coming default: our workers name their device
    themselves. The token is in no command line, log or file; /proc shows it to this user alone.
    """
    return {
        "PYTHONPATH": import_path(),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_ENABLE_K8S_TOKEN_AUTH": "0",
        TOKEN: secrets.token_hex(32),
    }


def _read_authentication_anew() -> None:
    """Let Ray read its token from the environment: it does so once, on its import, which may have been long ago."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _object_store(folder: Path) -> dict[str, Any]:
    """Return arguments of `ray.init` for an object store where Ray's default would not start.

    Raises:
        InputError: The address space of processes is limited to less than Ray takes.
    """
    chosen: dict[str, Any] = {}
    if SHARED_MEMORY.exists() and not os.access(SHARED_MEMORY, os.W_OK):
        chosen["_plasma_directory"] = str(folder)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        if limit < LEAST_ADDRESSES:
            raise InputError(
                "ulimit -v",
                f"a process may have {limit / 1e9:.1f} GB of addresses, and Ray needs {LEAST_ADDRESSES / 1e9:.0f} GB",
                "raise it (ulimit -v unlimited), or use --engine serial",
            )
        least = ray._private.ray_constants.OBJECT_STORE_MINIMUM_MEMORY_BYTES
        chosen["object_store_memory"] = max(least, limit // STORE_SHARE)
    return chosen


def _process_ids() -> dict[str, int]:
    """Return the process ids of the raylet and of the control store that were started here."""
    started = ray_worker._global_node.all_processes
    names = {"raylet": "raylet", "gcs_server": "control store"}
    return {name: started[kind][0].process.pid for kind, name in names.items() if kind in started}


def _why(error: Exception, folder: Path) -> str:
    """Return in a line why Ray has not started: by its error, and by the last lines of its processes' output."""
    said = [(str(error) or type(error).__name__).strip().splitlines()[0][:500]]
    for file in sorted(folder.glob("r/session_*/logs/*.err")):
        with contextlib.suppress(OSError):
            lines = file.read_text(errors="replace").strip().splitlines()
            said += [f"{file.stem}: {line[:500]}" for line in lines[-1:]]
    return "; ".join(said)


def _join(address: str) -> None:
    """Join a Ray that runs already; raise `InputError` if there is none, or it does not admit us."""
    environment = {"env_vars": {"PYTHONPATH": import_path()}}
    try:
        _knock(address)
        with _quiet():
            ray.init(
                address=address, log_to_driver=False, logging_level="error", runtime_env=environment
            )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        if _answer_to_a_stranger(address) is grpc.StatusCode.UNAUTHENTICATED:
            raise InputError(
                "engine.address",
                f"the Ray at {address!r} asks for a token and does not know ours",
                f"set RAY_AUTH_MODE=token and {TOKEN} to its token",
            ) from None
        raise InputError(
            "engine.address",
            f"there is no Ray at {address!r}: {error}",
            "start one with `ray start --head`, or leave it unset",
        ) from None


def _knock(address: str) -> None:
    """Raise `OSError` if nobody listens at an address; Ray itself would try for minutes (2.55)."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.removeprefix("ray://"), int(port)), timeout=10).close()


def _warn_if_open(address: str | None) -> None:
    """Warn of a Ray that admits everybody: one that was not started here, which only its owner can close."""
    found = address if address and ":" in address else ray.get_runtime_context().gcs_address
    if _answer_to_a_stranger(found) is grpc.StatusCode.OK:
        log.warning(
            "the Ray at %s asks for no token: whoever reaches its ports runs code as its user; "
            "start it with RAY_AUTH_MODE=token",
            found,
        )


def _answer_to_a_stranger(address: str) -> grpc.StatusCode:
    """Return what Ray's control store answers to a call without a token."""
    # Without a proxy, as Ray itself: one that is set in the environment would answer for the other machine.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(address.removeprefix("ray://"), options) as channel:
        call = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            call(b"", timeout=5)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


@contextmanager
def _lean_nodes() -> Iterator[None]:
    kept = ray_node.Node
    ray_node.Node = _LeanNode
    try:
        yield
    finally:
        ray_node.Node = kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep a Ray that starts now from printing what its nodes say into our screen: lost workers are our incidents."""
    kept = ray_worker.listen_error_messages
    ray_worker.listen_error_messages = lambda worker, threads_stopped: None
    try:
        yield
    finally:
        ray_worker.listen_error_messages = kept


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables within the block, for processes that are started there, and put them back."""
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
