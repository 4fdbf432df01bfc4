"""Measure the memory that a worker needs for one client, by training the client in a process of its own."""

import functools
import multiprocessing
import resource
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from flwr.app import MessageType, RecordDict

from fedssl.clients.client_app import app
from fedssl.clients.local_data import simulated_federation
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.exchange.initial_state import initial_state
from fedssl.experiment.client_settings import ClientSettings

MEASURING_TIMEOUT = 600.0
"""Training one client in one phase to measure its memory may take at most this long (seconds)."""

_one_at_a_time = threading.Lock()


def measured_bytes(phases: Sequence[ClientSettings], device: str) -> int:
    """Return the peak memory of a worker that trains the client with the most images in each phase, in bytes of the device.

    Args:
        phases: The settings of every phase; the client trains a round of each, one after the other, as in a run.
        device: ``"cpu"``: the memory of the whole process counts; ``"cuda:0"``: the GPU's memory counts, including its
            context.

    Raises:
        InputError: The client could not be trained.
    """
    phases[0].data.prepare()
    # A second caller waits and gets the first caller's answer, and so does not disturb the measurement.
    with _one_at_a_time:
        return _measured(tuple(phase.to_client_json() for phase in phases), device)


@functools.lru_cache(maxsize=4)
def _measured(texts: tuple[str, ...], device: str) -> int:
    spawn = multiprocessing.get_context("spawn")  # a fork would count this process's memory too
    ours, theirs = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_report, args=(theirs, texts, device), daemon=True)
    process.start()
    theirs.close()
    try:
        timeout = MEASURING_TIMEOUT * len(texts)
        if not ours.poll(timeout):
            raise _unmeasured(f"no answer within {timeout:g} s")
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


def _report(pipe: Connection, texts: tuple[str, ...], device: str) -> None:
    try:
        for phase, text in enumerate(texts):
            _train_largest(text, phase, device)
        pipe.send(_peak(device))
    except Exception as error:
        pipe.send(str(error))


def _train_largest(text: str, phase: int, device: str) -> None:
    """Train the client with the most images for a round of a phase, from initial weights; the phase's number is from 0."""
    settings = ClientSettings.from_json(text)
    federation = simulated_federation(settings)
    client = int(federation.sizes.argmax())
    spec = federation.data.spec
    network, last = settings.build_network(spec), settings.previous
    teacher = None if last is None else last.build(spec, settings.seed).classifier
    state = initial_state(settings.recipe, network, spec, "phase", teacher)
    protocol.claim_identity(1)
    config = protocol.request_config(text, phase, 1, settings.num_rounds)
    content = RecordDict(
        {
            protocol.ARRAYS: protocol.to_record(network.state_dict()),
            protocol.PHASE_STATE: protocol.to_record(state),
            protocol.CONFIG: config,
        }
    )
    message = protocol.new_message(MessageType.TRAIN, protocol.node_of(client), content)
    context = protocol.new_context(1, client, settings.federation.clients, device, None)
    reply = app(message, context)
    if reply.has_error():
        raise RuntimeError(reply.error.reason)


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
