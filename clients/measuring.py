"""Measure the memory that a worker needs for one client, by training the client in a process of its own."""

import functools
import multiprocessing
import resource
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from flwr.app import MessageType, RecordDict

from fedssl.clients.client_app import app
from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings

MEASURING_TIMEOUT = 600.0
"""Training one client to measure its memory may take at most this long (seconds)."""

_one_at_a_time = threading.Lock()


def measured_bytes(experiment: ClientSettings, device: str) -> int:
    """Return the peak memory of a worker that trains the client with the most images, in bytes of the device.

    Args:
        experiment: The experiment; the client trains as in its first phase.
        device: ``"cpu"``: the memory of the whole process counts; ``"cuda:0"``: the GPU's memory counts, including its
            context.

    Raises:
        InputError: The client could not be trained.
    """
    experiment.data.prepare()
    # A second caller waits and gets the first caller's answer, and so does not disturb the measurement.
    with _one_at_a_time:
        return _measured(experiment.to_client_json(), device)


@functools.lru_cache(maxsize=4)
def _measured(text: str, device: str) -> int:
    spawn = multiprocessing.get_context("spawn")  # a fork would count this process's memory too
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_report, args=(theirs, text, device), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(MEASURING_TIMEOUT):
            raise _unmeasured(f"no answer within {MEASURING_TIMEOUT:g} s")
        found = ours.recv()
    except EOFError:
        raise _unmeasured(
            "the process that trained a client died; it may have run out of memory"
        ) from None
    finally:
        process.kill()
    if isinstance(found, str):
        raise _unmeasured(found)
    return int(found)


def _unmeasured(why: str) -> InputError:
    return InputError(
        "engine.memory_per_worker",
        f"could not be measured: {why}",
        "set engine.memory_per_worker, in MB",
    )


def _report(pipe: Connection, text: str, device: str) -> None:
    try:
        pipe.send(_train_largest(text, device))
    except Exception as error:
        pipe.send(str(error))


def _train_largest(text: str, device: str) -> int:
    experiment = ClientSettings.from_json(text)
    federation = simulated_federation(experiment)
    client = int(federation.sizes.argmax())
    spec = federation.data.spec
    network = experiment.build_network(spec)
    protocol.claim_identity(1)
    config = protocol.request_config(text, 0, 1, experiment.num_rounds)
    content = RecordDict(
        {protocol.ARRAYS: protocol.to_record(network.state_dict()), protocol.CONFIG: config}
    )
    message = protocol.new_message(MessageType.TRAIN, protocol.node_of(client), content)
    context = protocol.new_context(1, client, experiment.federation.clients, device, None)
    reply = app(message, context)
    if reply.has_error():
        raise RuntimeError(reply.error.reason)
    return _peak(device)


def _peak(device: str) -> int:
    if device == "cpu":
        return _peak_of_process()
    free, total = torch.cuda.mem_get_info(device)
    # Memory of the GPU that other processes hold counts too, because workers cannot have it.
    cached = torch.cuda.memory_reserved(device)
    return total - free - cached + torch.cuda.max_memory_reserved(device)


def _peak_of_process() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak would include the parent process's
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
