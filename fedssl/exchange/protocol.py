"""Requests and replies as Flower records: the only place that knows the keys, and Flower's private quirks.

Written for flwr 1.41. A request carries the global arrays and one config record; a reply carries one array record and
one metric record, as Flower's own strategies expect.
"""

import functools
import io
import math
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from fedssl.core.text import printable
from fedssl.core.trust import EVERY_MODULE
from fedssl.data.terms import Terms
from fedssl.training.loop import FitReport

ARRAYS = "arrays"
STATE = "state"
"""State of methods that the server keeps; beside the weights, for strategies are given weights only."""
CONFIG = "config"
METRICS = "metrics"

EXPERIMENT = "experiment"
VERSION = "fedssl-version"
ROUND = "server-round"
"""Flower's own name: its strategies write it into every config record."""
LARGEST_ROUND = 2**31
"""Rounds and phases are below this."""
PHASE = "phase"
PHASE_ROUND = "phase-round"
PHASE_ROUNDS = "phase-rounds"
IMAGES = "images"
"""What clients with private data must know of the federation's images, as JSON; in no other request."""

PARTITION_ID = "partition-id"
NUM_PARTITIONS = "num-partitions"
DEVICE = "device"
DATA_PATH = "data-path"
"""Of a client's private data, in its node's config."""
BAD_IMAGES = "bad-images"
ALLOWED_PLUGINS = "allowed-plugins"
"""Modules beside the built-in ones that a request's experiment may name, in the node's config; none by default."""

CLIENT = "client"
NUM_EXAMPLES = "num-examples"
NUM_LABELED = "num-labeled"
NUM_CONFIDENT = "num-confident"
COUNTS = (NUM_EXAMPLES, NUM_LABELED, NUM_CONFIDENT)
UPDATE_NORM = "update-norm"
NUM_STEPS = "num-steps"
LOSS = "loss"
SECONDS = "seconds"
PSEUDO_COUNTS = ("pseudo-considered", "pseudo-accepted", "pseudo-judged", "pseudo-right")
"""Each of them counts some of what the one before it counts; see `FitReport`."""
BY_CLASS = "pseudo-by-class"
"""Metric that is a list: 4 C counts of pseudo-labels, as `FitReport.by_class` has them."""
NUMBER = "number/"
"""Begins the name of a metric that a method records: a mean over the steps of a round."""

Metrics = Mapping[str, int | float | Sequence[float]]
Layout = Mapping[str, tuple[tuple[int, ...], np.dtype[np.generic]]]
"""Shape and type of every array, by name."""
Record = TypeVar("Record", ArrayRecord, MetricRecord, RecordDict)

NO_MEMORY = "can't allocate memory"
"""What torch says on a CPU, in a plain RuntimeError."""

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
"""Numpy spells a type's name out anew at every call."""


@functools.lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...], fortran_order: bool = False) -> bytes:
    """Return the bytes that numpy's file format puts before an array's own; no array is made for it."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, header)
    return buffer.getvalue()


def _encode_array(array: npt.NDArray[Any]) -> Array:
    """Build Flower's array around numpy's file format, with its header made once a shape.

    Its constructor takes longer to look at its arguments than a small array takes to copy, so what it would set is set
    here; a test holds the two against each other.
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
    """Read a Flower array without a copy where its header is the expected one."""
    header = _npy_header(array.dtype, tuple(array.shape))
    if array.stype == "numpy.ndarray" and array.data.startswith(header):
        flat = np.frombuffer(array.data, dtype=array.dtype, offset=len(header))
        return flat.reshape(array.shape)
    return cast("npt.NDArray[np.generic]", array.numpy())


def _filled(record: Record, entries: Mapping[str, Any]) -> Record:
    """Put entries of known types into an empty Flower record, past its checks of each (flwr 1.41)."""
    record.__dict__["_data"].update(entries)
    return record


def to_record(arrays: Mapping[str, npt.NDArray[Any] | Tensor]) -> ArrayRecord:
    """Write named arrays or tensors as a Flower record."""
    return _filled(ArrayRecord(), {n: _encode_array(as_numpy(a)) for n, a in arrays.items()})


def as_numpy(array: npt.NDArray[Any] | Tensor) -> npt.NDArray[Any]:
    """Return a tensor as a numpy array, of the same memory where that is the CPU's."""
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else array


def from_record(record: ArrayRecord) -> NamedArrays:
    """Read a Flower record as named arrays, which must not be written to."""
    return {name: _decode_array(array) for name, array in record.items()}


def arrays_of(content: RecordDict, name: str) -> NamedArrays | None:
    """Return the arrays of one record of a message; None if it has no such record."""
    record = content.get(name)
    return from_record(record) if isinstance(record, ArrayRecord) else None


def layout_of(arrays: Mapping[str, npt.NDArray[Any]]) -> Layout:
    """Return the shape and type of every array."""
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


def arrays_like(record: ArrayRecord, layout: Layout) -> NamedArrays:
    """Read a record that somebody else wrote, if it is of a layout; its arrays must not be written to.

    Nothing is decoded or allocated by what the record claims: names, types, shapes, headers and lengths are compared
    with what the layout makes them, and the arrays are views of the bytes that came.

    Raises:
        ValueError: The record is of another layout.
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
    for fortran_order in (False, True):  # Flower's own constructor keeps the order of columns
        header = _npy_header(name, shape, fortran_order)
        if len(array.data) == len(header) + size and array.data.startswith(header):
            flat = np.frombuffer(array.data, dtype=dtype, offset=len(header))
            return flat.reshape(shape, order="F" if fortran_order else "C")
    raise ValueError("the reply's arrays hold other bytes than their shapes and types need")


def encoded_bytes(arrays: Mapping[str, npt.NDArray[Any]]) -> int:
    """Return the bytes that arrays come to in a record; see `num_bytes`."""
    headers = (_npy_header(_dtype_name(a.dtype), tuple(a.shape)) for a in arrays.values())
    return sum(map(len, headers)) + sum(array.nbytes for array in arrays.values())


def num_bytes(content: RecordDict) -> int:
    """Return the bytes of a message's arrays as they travel."""
    records = (record for record in content.values() if isinstance(record, ArrayRecord))
    return sum(len(array.data) for record in records for array in record.values())


def load_network(network: nn.Module, arrays: Mapping[str, Any], names: Iterable[str]) -> None:
    """Copy named arrays over a network's parameters and buffers, in place; else as `load_tensors`."""
    state = network.state_dict()
    load_tensors({name: state[name] for name in names}, arrays)


def load_tensors(tensors: Mapping[str, Tensor], arrays: Mapping[str, Any]) -> None:
    """Copy named arrays over tensors of the same names, in place.

    Args:
        tensors: Detached; written to.
        arrays: Named arrays; those that no tensor is called after are ignored.

    Raises:
        ValueError: A name is missing among the arrays or of another shape: a network that stays in a process must not
            keep what an earlier client left there.
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
    """Return the name under which a slot's tensor travels."""
    return f"{slot}/{name}"


def slot_arrays(arrays: Mapping[str, Any], slot: str) -> dict[str, Any]:
    """Return the tensors of one slot among travelling arrays, by their own names."""
    prefix = f"{slot}/"
    return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


# ---- what a client keeps ----


def state_to_bytes(state: RecordDict) -> bytes | None:
    """Write what a client left in its context; None if it left nothing."""
    return recorddict_to_proto(state).SerializeToString() if state else None


def state_from_bytes(data: bytes | None) -> RecordDict:
    """Read what `state_to_bytes` wrote."""
    return RecordDict() if data is None else recorddict_from_proto(RecordDictProto.FromString(data))


# ---- requests ----


@dataclass(frozen=True)
class Request:
    """What the server asks of a client.

    Args:
        arrays: Global weights by name.
        state: What the server keeps of the method's state, by ``SLOT/NAME``.
        experiment: The experiment of the phase, as JSON.
        server_round: Round of the run, from 1.
        phase: Phase of the run, from 0.
        phase_round: Round of the phase, from 1; None from a stock Flower strategy, which knows no phases.
        phase_rounds: Rounds of the phase; None likewise.
        terms: What the images of all clients have in common; None unless clients bring their own.
    """

    arrays: NamedArrays
    state: NamedArrays
    experiment: str
    server_round: int
    phase: int
    phase_round: int | None
    phase_rounds: int | None
    terms: Terms | None = None


def request_config(
    experiment: str, phase: int, phase_round: int, phase_rounds: int, terms: Terms | None = None
) -> ConfigRecord:
    """Return the config record of a request; strategies add the server round."""
    config = query_config(experiment, terms)
    config.update({PHASE: phase, PHASE_ROUND: phase_round, PHASE_ROUNDS: phase_rounds})
    return config


def query_config(experiment: str, terms: Terms | None) -> ConfigRecord:
    """Return the config record of a request of no round; terms travel only where clients bring their own images."""
    config = ConfigRecord({EXPERIMENT: experiment, VERSION: __version__})
    if terms is not None:
        config[IMAGES] = terms.to_json()
    return config


def read_request(message: Message) -> Request:
    """Read a request.

    Raises:
        ValueError: The message is not a request of ours, and says which record is missing; or another version's, by
            which other bits may come out.
    """
    config = message.content.get(CONFIG)
    if not isinstance(config, ConfigRecord) or EXPERIMENT not in config:
        raise ValueError(f"the request carries no {EXPERIMENT!r} in its {CONFIG!r} record")
    version = cast("str", config.get(VERSION, __version__))  # somebody else's server may name none
    if version != __version__:
        raise ValueError(
            f"the server runs fedssl {version}, this client {__version__}; install the same on both"
        )
    for name in (ROUND, PHASE, PHASE_ROUND, PHASE_ROUNDS):
        value = config.get(name, 1)
        if type(value) is not int or not 0 <= value < LARGEST_ROUND:
            raise ValueError(f"the request's {name} is {value!r}, no number of a round or a phase")
    images = cast("str | None", config.get(IMAGES))
    return Request(
        arrays=arrays_of(message.content, ARRAYS) or {},
        state=arrays_of(message.content, STATE) or {},
        experiment=cast("str", config[EXPERIMENT]),
        server_round=cast("int", config.get(ROUND, 1)),
        phase=cast("int", config.get(PHASE, 0)),
        phase_round=cast("int | None", config.get(PHASE_ROUND)),
        phase_rounds=cast("int | None", config.get(PHASE_ROUNDS)),
        terms=None if images is None else Terms.from_json(images),
    )


def new_message(
    kind: str, node: int, content: RecordDict, group: str = "", ttl: float | None = None
) -> Message:
    """Return a message to a node."""
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
    """Return all that a client measured in a round; `fedssl.exchange.disclosure` says what of it may leave the client.

    Args:
        report: What the client did.
        client: Its number.
        num_labeled, num_examples: What it holds.
        update_norm: L2 norm of what training changed of the weights that it shares; None where it was not measured.
    """
    measured = {} if update_norm is None else {UPDATE_NORM: update_norm}
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
    state: Mapping[str, Tensor],
    metrics: Metrics,
) -> Message:
    """Return the reply to a training request.

    State goes back only to a server that sent some: Flower's own strategies take a reply with one array record only.
    """
    records = {ARRAYS: to_record(arrays), METRICS: _filled(MetricRecord(), metrics)}
    if STATE in message.content:
        records[STATE] = to_record(state)
    return Message(content=_filled(RecordDict(), records), reply_to=message)


def without_records(reply: Message, records: Collection[str]) -> Message:
    """Return the same reply less some records."""
    kept = {name: record for name, record in reply.content.items() if name not in records}
    return message_of(reply.metadata, _filled(RecordDict(), kept))


def metrics_reply(message: Message, metrics: Mapping[str, int | float]) -> Message:
    """Return a reply that carries metrics only."""
    content = RecordDict({METRICS: MetricRecord(dict(metrics))})
    return Message(content=content, reply_to=message)


def error_reply(message: Message, reason: str, *, raised: bool = True) -> Message:
    """Return a reply that says why there is none.

    Args:
        message: The request.
        reason: What happened; a client's traceback.
        raised: Whether the client raised, or was lost.
    """
    code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION if raised else ErrorCode.NODE_UNAVAILABLE
    return Message(error=Error(code=int(code), reason=reason), reply_to=message)


def reply_or_explain(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Run an app and return its reply, or an error reply with the traceback if it raised.

    It has the form of a Flower mod: Flower's own runtimes keep only the text of a client's exception (flwr 1.41), so
    our app carries it along; our workers run any app through it.
    """
    try:
        return call_next(message, context)
    except Exception as error:
        return error_reply(message, explain_error(error))


def is_out_of_memory(error: Exception) -> bool:
    """Say whether there was too little memory, of the machine or of its GPU."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or NO_MEMORY in str(error)


def explain_error(error: Exception) -> str:
    """Return the traceback of an exception, and in so many words if it was for want of memory."""
    said = "".join(traceback.format_exception(error))
    return f"{said}out of memory: {error}" if is_out_of_memory(error) else said


MOST_CHARACTERS = 4000
"""Characters of a reason that are kept: of a longer one the beginning and the end, where a traceback says most."""


def shorten_reason(reason: str) -> str:
    """Return a reason that somebody else gave as it is recorded and shown: of limited length, without control characters."""
    if len(reason) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        left_out = len(reason) - 2 * half
        reason = f"{reason[:half]}\n[{left_out} characters are left out]\n{reason[-half:]}"
    return printable(reason)


def is_away(reply: Message) -> bool:
    """Say whether there is no reply because its node was not there."""
    return reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE


def reply_of(message: Message, content: RecordDict) -> Message:
    """Return the reply to a message by the node that was asked, whatever the content says of its sender."""
    return Message(content=content, reply_to=message)


def refuse_reply(reply: Message, reason: str) -> Message:
    """Return the same reply with an error in place of its content."""
    error = Error(code=int(ErrorCode.MOD_FAILED_PRECONDITION), reason=reason)
    return make_message(reply.metadata, error=error)


def metrics_of(reply: Message) -> dict[str, float]:
    """Return the single-valued metrics of a reply; none if it carries none."""
    found = all_metrics_of(reply).items()
    return {name: float(value) for name, value in found if isinstance(value, int | float)}


def all_metrics_of(reply: Message) -> Metrics:
    """Return the metrics of a reply, lists among them; none if it carries none."""
    record = reply.content.get(METRICS)
    return record if isinstance(record, MetricRecord) else {}


# ---- what Flower's own runners would have set ----


def claim_identity(run_id: int) -> None:
    """Say who is speaking: outside Flower's runners, flwr 1.41 refuses to make a message otherwise."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that the SuperLink would give it; flwr 1.41 has no public way."""
    message.metadata.__dict__["_message_id"] = message_id


def message_of(metadata: Metadata, content: RecordDict) -> Message:
    """Return the message of some metadata around a content."""
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
            ALLOWED_PLUGINS: EVERY_MODULE,  # a simulation's experiment is that of its own process
        },
        state=state_from_bytes(state),
        run_config={},
    )
