"""Requests and replies as Flower records: this module alone knows their keys and Flower's private quirks.

Written for flwr 1.41. A request carries the global arrays and one config record; a reply carries one array record and
one metric record, as Flower's own strategies expect.
"""

import functools
import io
import math
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message.message import make_message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.supercore.task_identity import TaskIdentity
from torch import Tensor, nn

from fedssl import __version__
from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import NothingLearned, RefusedByFloor, TrainingDiverged
from fedssl.core.text import printable
from fedssl.core.trust import EVERY_MODULE
from fedssl.data.terms import Terms
from fedssl.training.loop import FitReport

ARRAYS = "arrays"
STATE = "state"
"""Record of the state that the server merges, weighted by examples. It is a record apart, because strategies see weights
only."""
UNIFORM_STATE = "state.uniform"
"""Record of the state that the server merges with the same weight for every client."""
STATE_RECORDS: Mapping[str, str] = {"examples": STATE, "uniform": UNIFORM_STATE}
"""The record of ``server`` state, by the weight with which it is merged; see `fedssl.core.slots.Merge`."""
PHASE_STATE = "state.phase"
"""Record of the state that stays the same over a phase; it never comes back."""
KEEP_STATE = "keep-state"
"""This entry of a request's config says that the client keeps the state of the phase, because it is sent only once."""
EXTRA = "extra."
"""The names of records that a strategy sends to one client alone begin with this prefix."""
CONFIG = "config"
METRICS = "metrics"

EXPERIMENT = "experiment"
VERSION = "fedssl-version"
ROUND = "server-round"
"""Flower's strategies write the round into every config record under this name."""
REPEAT = "repeat"
"""A request's config holds under this name how often the client was asked before in this round; a first request lacks
it."""
COUNTED = "counted-round"
"""A request's config holds under this name the last round of the client whose replies the server counted; 0: no round.
Requests lack it if the server keeps the clients' state itself, or if clients keep nothing."""
KEPT_ROUNDS = "kept-rounds"
"""A request's config lists under this name the other rounds of the client that the server may go on from later, because a
checkpoint holds them. It stands beside `COUNTED`."""
MOST_KEPT_ROUNDS = 8
"""A request lists at most this many rounds, so that no server can fill a client's disk."""
RUN = "run"
"""A request's config names under this name the run, in 32 hexadecimal digits, beside `COUNTED`. A run that goes on after a
stop has the same name, although it is a new run of Flower's."""
LARGEST_ROUND = 2**31
"""The numbers of rounds and phases are below this number."""
RUN_NAME = re.compile(r"[0-9a-f]{32}")
PHASE = "phase"
PHASE_ROUND = "phase-round"
PHASE_ROUNDS = "phase-rounds"
IMAGES = "images"
"""What clients with private data must know about the federation's images, as JSON; other requests lack this entry."""

PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"
DEVICE = "device"
DATA_PATH = "data-path"
"""A node's config holds the path of its client's private data under this name."""
BAD_IMAGES = "bad-images"
FOLDER = "folder"
"""A node's config holds under this name the path of its client's own folder, for its state and the log of what it sent."""
ALLOWED_PLUGINS = "allowed-plugins"
"""A node's config lists under this name the plug-in modules that a request's experiment may name, in addition to the
built-in modules; none by default."""

CLIENT = "client"
NUM_EXAMPLES = "num-examples"
NUM_LABELED = "num-labeled"
NUM_CONFIDENT = "num-confident"
COUNTS = (NUM_EXAMPLES, NUM_LABELED, NUM_CONFIDENT)
UPDATE_NORM = "update-norm"
NUM_STEPS = "num-steps"
INACTIVE = "inactive"
"""This metric is 1 if the client sat the round out: its reply carries no arrays and does not count in any sum."""
LOSS = "loss"
SECONDS = "seconds"
PSEUDO_COUNTS = ("pseudo-considered", "pseudo-accepted", "pseudo-judged", "pseudo-right")
"""Each of these metrics counts a part of what the metric before it counts; see `FitReport`."""
BY_CLASS = "pseudo-by-class"
"""This metric is a list: the 4 C counts of pseudo-labels of `FitReport.by_class`."""
NUMBER = "number/"
"""The names of metrics that a method records begin with this prefix; each is a mean over the steps of a round."""

Metrics = Mapping[str, int | float | Sequence[float]]
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
"""Shape and type of every array, by name."""
Record = TypeVar("Record", ArrayRecord, MetricRecord, RecordDict)
Value = TypeVar("Value", npt.NDArray[Any], Tensor, npt.NDArray[Any] | Tensor)

NO_MEMORY = "can't allocate memory"
"""Torch raises a plain RuntimeError with these words when a CPU's memory is used up."""

_FIRST_NODE_ID = SUPERLINK_NODE_ID + 1


# ---- node ids ----


def node_of(client: int) -> int:
    """Return the node id that our own grids give a client number."""
    return client + _FIRST_NODE_ID


def client_of(node: int) -> int:
    """Return the client number behind a node id of our own grids."""
    return node - _FIRST_NODE_ID


# ---- arrays ----


_dtype_name = functools.lru_cache(str)
"""Return the name of a numpy type; cached because numpy builds the name anew at every call."""


@functools.lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...], fortran_order: bool = False) -> bytes:
    """Return the header that numpy's file format puts before an array's bytes, without making an array."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _encode_array(array: npt.NDArray[Any]) -> Array:
    """Encode an array in numpy's file format as Flower's array; each header is made once a type and shape.

    The constructor of Flower's array takes longer to check its arguments than a small array takes to copy. So this
    function sets the same attributes itself; a test compares its arrays with the constructor's.
    """
    dtype, shape = _dtype_name(array.dtype), tuple(array.shape)
    encoded = Array.__new__(Array)
    encoded.__dict__.update(
        _is_dirty=True,
        dtype=dtype,
        shape=shape,
        stype="numpy.ndarray",
        data=_npy_header(dtype, shape) + array.tobytes(),
    )
    return encoded


def _decode_array(array: Array) -> npt.NDArray[np.generic]:
    """Decode a Flower array, without a copy if its header is as expected."""
    header = _npy_header(array.dtype, tuple(array.shape))
    if array.stype == "numpy.ndarray" and array.data.startswith(header):
        flat = np.frombuffer(array.data, dtype=array.dtype, offset=len(header))
        return flat.reshape(array.shape)
    return cast("npt.NDArray[np.generic]", array.numpy())


def _filled(record: Record, entries: Mapping[str, Any]) -> Record:
    """Put entries of known types into an empty Flower record without its check of each entry (flwr 1.41)."""
    record.__dict__["_data"].update(entries)
    return record


def to_record(arrays: Mapping[str, npt.NDArray[Any] | Tensor]) -> ArrayRecord:
    """Encode named arrays or tensors as a Flower record."""
    return _filled(ArrayRecord(), {n: _encode_array(as_numpy(a)) for n, a in arrays.items()})


def as_numpy(array: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
    """Return a tensor as a numpy array; a tensor on the CPU and its array share memory."""
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else array


def as_tensors(
    records: Mapping[str, NamedArrays], device: torch.device
) -> dict[str, dict[str, Tensor]]:
    """Return copies of the arrays of several records as tensors on a device."""
    return {
        record: {name: torch.from_numpy(array.copy()).to(device) for name, array in arrays.items()}
        for record, arrays in records.items()
    }


def from_record(record: ArrayRecord) -> NamedArrays:
    """Decode a Flower record as named arrays, which must not be written to."""
    return {name: _decode_array(array) for name, array in record.items()}


def arrays_of(content: RecordDict, name: str) -> NamedArrays | None:
    """Return the arrays of one record of a message; None if the message has no such record."""
    record = content.get(name)
    return from_record(record) if isinstance(record, ArrayRecord) else None


def layout_of(arrays: Mapping[str, npt.NDArray[Any]]) -> Layout:
    """Return the shape and type of every array."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def arrays_like(record: ArrayRecord, layout: Layout) -> NamedArrays:
    """Decode a record of another party if it has the expected layout; its arrays must not be written to.

    The record's claims decide no decoding and no allocation. Names, types, shapes, headers and lengths are compared
    with those that the layout implies, and the arrays are views of the received bytes.

    Raises:
        ValueError: The record has another layout.
    """
    if record.keys() != layout.keys():
        raise ValueError(DIFFERENT)
    return {name: _array_like(record[name], *expected) for name, expected in layout.items()}


DIFFERENT = "the reply's arrays differ from the model's in name, shape or type"


def _array_like(
    array: Array, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> npt.NDArray[np.generic]:
    name = _dtype_name(dtype)
    if (array.stype, array.dtype, tuple(array.shape)) != ("numpy.ndarray", name, shape):
        raise ValueError(DIFFERENT)
    size = math.prod(shape) * dtype.itemsize
    for fortran_order in (False, True):  # Flower's own constructor keeps column-major order
        header = _npy_header(name, shape, fortran_order)
        if len(array.data) == len(header) + size and array.data.startswith(header):
            flat = np.frombuffer(array.data, dtype=dtype, offset=len(header))
            return flat.reshape(shape, order="F" if fortran_order else "C")
    raise ValueError("the reply's arrays hold other bytes than their shapes and types need")


def encoded_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the number of bytes that arrays take in a record; see `num_bytes`."""
    headers = (_npy_header(_dtype_name(a.dtype), tuple(a.shape)) for a in arrays.values())
    return sum(map(len, headers)) + sum(array.nbytes for array in arrays.values())


def num_bytes(content: RecordDict) -> int:
    """Return the number of bytes of a message's encoded arrays."""
    records = (record for record in content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())


def load_network(network: nn.Module, arrays: Mapping[str, Any], names: Iterable[str]) -> None:
    """Copy named arrays over the named parameters and buffers of a network, in place; see `load_tensors`."""
    state = network.state_dict()
    load_tensors({name: state[name] for name in names}, arrays)


def load_tensors(tensors: Mapping[str, Tensor], arrays: Mapping[str, Any]) -> None:
    """Copy named arrays over tensors of the same names, in place.

    Args:
        tensors: Detached tensors, which are overwritten.
        arrays: Named arrays; an array without a tensor of its name is ignored.

    Raises:
        ValueError: A tensor has no array of its name, or one of another shape. A network that stays in a process must
            not keep numbers of an earlier client.
    """
    for name, tensor in tensors.items():
        array = arrays.get(name)
        if array is None or array.shape != tuple(tensor.shape):
            found = "is missing" if array is None else f"has shape {array.shape}"
            raise ValueError(f"array {name!r} {found}; the network wants {tuple(tensor.shape)}")
        if tensor.device.type == "cpu":
            np.copyto(tensor.numpy(), array, casting="same_kind")
        else:
            tensor.copy_(torch.from_numpy(array.copy()))


def slot_key(slot: str, name: str) -> str:
    """Return the name of a slot's tensor in a message."""
    return f"{slot}/{name}"


def slot_of(name: str) -> str:
    """Return the slot in the name of a slot's tensor in a message."""
    return name.partition("/")[0]


def slot_arrays(arrays: Mapping[str, Any], slot: str) -> dict[str, Any]:
    """Return the arrays of one slot among the arrays of a message, by their names within the slot."""
    prefix = f"{slot}/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


# ---- what a client keeps ----


def state_to_bytes(state: RecordDict) -> bytes | None:
    """Encode what a client keeps in its context; None if it keeps nothing."""
    return recorddict_to_proto(state).SerializeToString() if state else None


def state_from_bytes(data: bytes | None) -> RecordDict:
    """Decode what `state_to_bytes` returned."""
    return RecordDict() if data is None else recorddict_from_proto(RecordDictProto.FromString(data))


# ---- requests ----


@dataclass(frozen=True)
class Request:
    """A request of the server to a client.

    Args:
        arrays: Global weights by name.
        state: The state that the server merges, by ``SLOT/NAME``.
        experiment: The experiment of the phase, as JSON.
        server_round: Round of the run, from 1.
        phase: Phase of the run, from 0.
        phase_round: Round of the phase, from 1; None from a stock Flower strategy, which knows no phases.
        phase_rounds: Number of rounds of the phase; None from a stock Flower strategy.
        terms: What the images of all clients have in common; None unless clients bring their own images.
        phase_state: The state that stays the same over the phase, by ``SLOT/NAME``; empty if the request has none.
        keeps_phase_state: Whether the client must keep `phase_state`, because it will not be sent again.
        extra: Arrays for this client alone, by record and name.
        repeat: How often the client was asked before in this round.
        counted: The last round of the client whose replies the server counted; 0: no round; None: the server does not say.
        kept_rounds: Other rounds of the client that the server may name as `counted` later.
        run: Name of the run for clients that keep their state themselves; None: the server does not say.
    """

    arrays: NamedArrays
    state: NamedArrays
    experiment: str
    server_round: int
    phase: int
    phase_round: int | None
    phase_rounds: int | None
    terms: Terms | None = None
    phase_state: NamedArrays = field(default_factory=dict)
    keeps_phase_state: bool = False
    extra: Mapping[str, NamedArrays] = field(default_factory=dict)
    repeat: int = 0
    counted: int | None = None
    kept_rounds: tuple[int, ...] = ()
    run: str | None = None


def request_config(
    experiment: str, phase: int, phase_round: int, phase_rounds: int, terms: Terms | None = None
) -> ConfigRecord:
    """Return the config record of a training request; strategies add the server round."""
    config = query_config(experiment, terms)
    config.update({PHASE: phase, PHASE_ROUND: phase_round, PHASE_ROUNDS: phase_rounds})
    return config


def query_config(experiment: str, terms: Terms | None) -> ConfigRecord:
    """Return the config record of a request outside any round; it has terms only if clients bring their own images."""
    config = ConfigRecord({EXPERIMENT: experiment, VERSION: __version__})
    if terms is not None:
        config[IMAGES] = terms.to_json()
    return config


def read_request(message: Message) -> Request:
    """Decode a request.

    Raises:
        ValueError: The message lacks the experiment, holds an invalid number of a round or phase, or comes from another
            version of fedssl, which may compute other bits.
    """
    config = message.content.get(CONFIG)
    if not isinstance(config, ConfigRecord) or EXPERIMENT not in config:
        raise ValueError(f"the request carries no {EXPERIMENT!r} in its {CONFIG!r} record")
    version = cast(
        "str", config.get(VERSION, __version__)
    )  # a server of another party may name no version
    if version != __version__:
        raise ValueError(
            f"the server runs fedssl {version}, this client {__version__}; install the same on both"
        )
    for name in (ROUND, PHASE, PHASE_ROUND, PHASE_ROUNDS, REPEAT, COUNTED):
        value = config.get(name, 1)
        if type(value) is not int or not 0 <= value < LARGEST_ROUND:
            raise ValueError(f"the request's {name} is {value!r}, no number of a round or a phase")
    run, kept_rounds = config.get(RUN), config.get(KEPT_ROUNDS, [])
    if run is not None and not (isinstance(run, str) and RUN_NAME.fullmatch(run)):
        raise ValueError(f"the request's {RUN} is {run!r}, no name of a run")
    is_list = isinstance(kept_rounds, list) and len(kept_rounds) <= MOST_KEPT_ROUNDS
    if not is_list or any(type(round) is not int for round in cast("list[object]", kept_rounds)):
        raise ValueError(f"the request's {KEPT_ROUNDS} is {kept_rounds!r}, no list of rounds")
    images = cast("str | None", config.get(IMAGES))
    return Request(
        arrays=arrays_of(message.content, ARRAYS) or {},
        state=_state_of(message.content),
        experiment=cast("str", config[EXPERIMENT]),
        server_round=cast("int", config.get(ROUND, 1)),
        phase=cast("int", config.get(PHASE, 0)),
        phase_round=cast("int | None", config.get(PHASE_ROUND)),
        phase_rounds=cast("int | None", config.get(PHASE_ROUNDS)),
        terms=None if images is None else Terms.from_json(images),
        phase_state=arrays_of(message.content, PHASE_STATE) or {},
        keeps_phase_state=bool(config.get(KEEP_STATE, False)),
        extra={
            name.removeprefix(EXTRA): arrays_of(message.content, name) or {}
            for name in message.content
            if name.startswith(EXTRA)
        },
        repeat=cast("int", config.get(REPEAT, 0)),
        counted=cast("int | None", config.get(COUNTED)),
        kept_rounds=tuple(cast("list[int]", kept_rounds)),
        run=run,
    )


def _state_of(content: RecordDict) -> NamedArrays:
    """Return the arrays of all records of ``server`` state."""
    return {
        name: array
        for record in STATE_RECORDS.values()
        for name, array in (arrays_of(content, record) or {}).items()
    }


def with_config(
    content: RecordDict, entries: Mapping[str, int | bool | str | list[int]]
) -> RecordDict:
    """Return a request's content with further entries in its config; the other records are shared with the old content."""
    config = ConfigRecord({**content.config_records[CONFIG], **entries})
    extended = RecordDict(dict(content.items()))
    extended[CONFIG] = config
    return extended


def new_message(
    kind: str, node: int, content: RecordDict, group: str = "", ttl: float | None = None
) -> Message:
    """Return a new message to a node."""
    return Message(content=content, message_type=kind, dst_node_id=node, group_id=group, ttl=ttl)


# ---- replies ----


def fit_metrics(
    report: FitReport,
    *,
    client: int,
    num_labeled: int,
    num_examples: int,
    update_norm: float | None,
) -> Metrics:
    """Return every metric that a client measured in a round; `fedssl.exchange.disclosure` decides which may leave it.

    Args:
        report: Measurements of the client's training.
        client: Number of the client.
        num_labeled, num_examples: Number of its labeled and of all its training images.
        update_norm: L2 norm of the change that training made to the shared weights; None: not measured.
    """
    measured: dict[str, float] = {} if update_norm is None else {UPDATE_NORM: update_norm}
    if report.is_inactive:
        measured[INACTIVE] = 1
    numbers = {f"{NUMBER}{n}": value for n, value in report.numbers.items() if value == value}
    return {
        CLIENT: client,
        NUM_EXAMPLES: num_examples,
        NUM_LABELED: num_labeled,
        NUM_CONFIDENT: report.num_confident(num_labeled, num_examples),
        NUM_STEPS: report.num_steps,
        LOSS: report.loss,
        **dict(
            zip(
                PSEUDO_COUNTS,
                (report.considered, report.accepted, report.judged, report.right),
                strict=True,
            )
        ),
        SECONDS: report.seconds,
        **measured,
        BY_CLASS: report.by_class,
        **numbers,
    }


def fit_reply(
    message: Message,
    arrays: Mapping[str, npt.NDArray[Any] | Tensor],
    state: Mapping[str, npt.NDArray[Any] | Tensor],
    metrics: Metrics,
) -> Message:
    """Return the reply to a training request; of the state, it has what `state_asked_for` returns."""
    records = {ARRAYS: to_record(arrays), METRICS: _filled(MetricRecord(), metrics)}
    for record, asked in state_asked_for(message, state).items():
        records[record] = to_record(asked)
    return Message(content=_filled(RecordDict(), records), reply_to=message)


def state_asked_for(message: Message, state: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Return the part of a client's state that the reply to a request carries, by record.

    A reply has a state only if the request had one: Flower's own strategies accept one array record only.

    Args:
        message: The request.
        state: The state after training, by ``SLOT/NAME``.
    """
    asked = (record for record in STATE_RECORDS.values() if record in message.content)
    return {
        record: {n: state[n] for n in message.content.array_records[record] if n in state}
        for record in asked
    }


def without_records(reply: Message, records: Collection[str]) -> Message:
    """Return a reply without some of its records."""
    kept = {name: record for name, record in reply.content.items() if name not in records}
    return message_of(reply.metadata, _filled(RecordDict(), kept))


def metrics_reply(message: Message, metrics: Metrics) -> Message:
    """Return a reply that carries metrics only."""
    content = RecordDict({METRICS: _filled(MetricRecord(), metrics)})
    return Message(content=content, reply_to=message)


RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)
"""The code of an error reply of a client that raised an exception."""
AWAY = int(ErrorCode.NODE_UNAVAILABLE)
"""The code of an error reply that was made because the client was lost."""
REFUSED_BY_FLOOR = 1001
"""The code of an error reply of a client whose own privacy floor refuses the experiment; Flower has no such code."""


def error_reply(message: Message, reason: str, code: int = RAISED) -> Message:
    """Return an error reply, which says why a client has no result.

    Args:
        message: The request.
        reason: What went wrong, such as the client's traceback.
        code: `RAISED`, `AWAY` or `REFUSED_BY_FLOOR`.
    """
    return Message(error=Error(code=code, reason=reason), reply_to=message)


def reply_or_explain(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Run an app and return its reply, or an error reply with the traceback if the app raises.

    The function has the form of a Flower mod. Flower's own runtimes keep only the text of a client's exception (flwr
    1.41), so our client app uses this function as a mod. Our workers run every app through it.
    """
    try:
        return call_next(message, context)
    except RefusedByFloor as error:
        return error_reply(message, str(error), REFUSED_BY_FLOOR)
    except Exception as error:
        return error_reply(message, explain_error(error))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the machine or its GPU ran out of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error)


def explain_error(error: Exception) -> str:
    """Return the traceback of an exception, with the words "out of memory" at its end if memory ran out.

    Training that diverged is no fault of the code, and a loss without a gradient has no line at fault, so their errors have
    no traceback.
    """
    if isinstance(error, TrainingDiverged):
        return f"FloatingPointError: {error}"
    if isinstance(error, NothingLearned):
        return f"{type(error).__name__}: {error}"
    said = "".join(traceback.format_exception(error))
    return f"{said}out of memory: {error}" if is_out_of_memory(error) else said


MOST_CHARACTERS = 4000
"""At most this many characters of a reason are kept. A longer reason keeps its beginning and its end, where a traceback
says most."""


def shorten_reason(reason: str) -> str:
    """Return the reason of another party with limited length and no control characters, to record and show it."""
    if len(reason) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        left_out = len(reason) - 2 * half
        reason = f"{reason[:half]}\n[{left_out} characters are left out]\n{reason[-half:]}"
    return printable(reason)


def is_away(reply: Message) -> bool:
    """Return whether a reply is an error because its node was not available."""
    return reply.has_error() and reply.error.code == AWAY


def is_refused_by_floor(reply: Message) -> bool:
    """Return whether a reply is an error because the client's own privacy floor refuses the experiment."""
    return reply.has_error() and reply.error.code == REFUSED_BY_FLOOR


def reply_of(message: Message, content: RecordDict) -> Message:
    """Return a content as the reply to a message; the sender is the node that was asked, whatever the content says."""
    return Message(content=content, reply_to=message)


def refuse_reply(reply: Message, reason: str) -> Message:
    """Return the same reply with an error in place of its content."""
    error = Error(code=int(ErrorCode.MOD_FAILED_PRECONDITION), reason=reason)
    return make_message(reply.metadata, error=error)


def metrics_of(reply: Message) -> dict[str, float]:
    """Return the single-valued metrics of a reply; empty if the reply carries none."""
    single, _ = split_metrics(all_metrics_of(reply))
    return single


def all_metrics_of(reply: Message) -> Metrics:
    """Return all metrics of a reply, including lists; empty if the reply carries none."""
    record = reply.content.get(METRICS)
    return record if isinstance(record, MetricRecord) else {}


def split_metrics(
    metrics: Metrics,
) -> tuple[dict[str, float], dict[str, Sequence[float]]]:
    """Return the single-valued metrics and the metrics that are lists, each by name."""
    single = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    return single, {k: v for k, v in metrics.items() if not isinstance(v, int | float)}


# ---- what Flower's own runners would have set ----


def claim_identity(run_id: int) -> None:
    """Set this process's identity to a run's server; without it, flwr 1.41 makes no message outside its own runners."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of a message, as the SuperLink would; flwr 1.41 has no public way to do it."""
    message.metadata.__dict__["_message_id"] = message_id


def message_of(metadata: Metadata, content: RecordDict) -> Message:
    """Return a message with the given metadata and content."""
    return make_message(metadata, content)


def new_context(
    run_id: int, client: int, num_clients: int, device: str, state: bytes | None
) -> Context:
    """Return the context in which a client's app runs."""
    return Context(
        run_id=run_id,
        node_id=node_of(client),
        node_config={
            PARTITION_ID: client,
            NUM_PARTITIONS: num_clients,
            DEVICE: device,
            ALLOWED_PLUGINS: EVERY_MODULE,  # a simulation's experiment comes from its own process
        },
        state=state_from_bytes(state),
        run_config={},
    )
