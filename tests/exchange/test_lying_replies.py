"""A client's reply is refused or stays within bounds: it counts for its client only, and its claims take no memory."""

import dataclasses
import math
import tracemalloc
import unicodedata

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.checks import COUNT_LIMIT, LARGEST_WEIGHT, Holding
from fedssl.exchange.reduction import Answer, CohortSums, Reduction, by_examples
from fedssl.exchange.replies import MOST_METRICS
from fedssl.server.round_log import RoundLog

protocol.claim_identity(1)

MODEL = {"w": np.ones((2, 3), np.float32), "n": np.array(3, np.int64)}
STATE = {"shares/probs": np.ones(2, np.float32)}
CLASSES = 2
HONEST = {
    "client": 1, "num-examples": 20, "num-labeled": 4, "num-confident": 16.8, "num-steps": 5,
    "loss": 0.5, "seconds": 0.1, "update-norm": 1.5, "pseudo-by-class": [1.0] * 8,
    "pseudo-considered": 10.0, "pseudo-accepted": 8.0, "pseudo-judged": 8.0, "pseudo-right": 6.0,
}  # fmt: skip
HOLDING = Holding(1, 20, 4)


def request():
    return protocol.new_message("train", protocol.node_of(1), RecordDict())


def reply(metrics=HONEST, arrays=None, state=None, **others) -> Message:
    records = {
        protocol.ARRAYS: protocol.to_record(MODEL) if arrays is None else arrays,
        protocol.STATE: protocol.to_record(STATE) if state is None else state,
        protocol.METRICS: MetricRecord(dict(metrics)),
    }
    return Message(content=RecordDict(records | others), reply_to=request())


def added(message: Message) -> tuple[Answer, float]:
    """Return what is left of a reply beside an honest one, and the weight behind their sum, which must be usable."""
    weigh = {protocol.ARRAYS: by_examples, protocol.STATE: by_examples}
    carried = {protocol.ARRAYS: MODEL, protocol.STATE: STATE}
    sums = CohortSums(Reduction.of(carried, weigh), 2)
    answer = sums.add(0, message, HOLDING)
    assert sums.add(1, reply(), HOLDING).metrics is not None
    for total, weight in sums.result().values():
        assert weight in (20, 40)
        assert all(np.isfinite(array).all() for array in total.values())
        assert all(abs(array / weight).max() <= LARGEST_WEIGHT for array in total.values())
    assert len(answer.reason) < 1000
    assert (answer.metrics is None) == (weight == 20)
    return answer, weight


def refused(message: Message, reason: str) -> None:
    answer, _ = added(message)
    assert answer.metrics is None
    assert reason in answer.reason
    assert answer.node == protocol.node_of(1)


def test_an_honest_reply_is_added():
    answer, weight = added(reply())
    assert answer.num_bytes == protocol.num_bytes(reply().content)
    assert (answer.metrics["num-confident"], weight) == (16.8, 40)
    assert answer.lists == {protocol.BY_CLASS: [1.0] * 8}
    of_no_steps = HONEST | {"num-steps": 0, "loss": math.nan}
    assert added(reply(of_no_steps))[0].metrics is not None


@pytest.mark.parametrize(
    ("metric", "value", "reason"),
    [
        ("num-examples", 10**12, "num-examples is 1000000000000, but the census says 20"),
        ("num-examples", 1.7e308, "num-examples is 1.7e+308"),
        ("num-examples", 20.5, "num-examples is 20.5, which is not a whole number"),
        ("num-labeled", 20, "num-labeled is 20, but the census says 4"),
        ("num-confident", 20.1, "num-confident is 20.1, more than its num-examples"),
        ("client", 2, "says that it is from client 2, but client 1 was asked"),
        ("client", math.nan, "client is nan"),
        ("num-steps", math.nan, "num-steps is nan"),
        ("num-steps", math.inf, "num-steps is inf"),
        ("num-steps", -1, "num-steps is -1"),
        ("num-steps", 2**62, "num-steps is 4.6"),
        ("loss", 1e308, "training diverged: the reply's loss is 1e+308"),
        ("loss", math.nan, "training diverged: the reply's loss is nan"),
        ("pseudo-right", 9.0, "pseudo-right is 9, more than its pseudo-judged"),
        ("pseudo-accepted", math.inf, "pseudo-accepted is inf"),
        ("seconds", -1.0, "seconds is -1"),
        ("update-norm", 1e308, "update-norm is 1e+308"),
        ("update-norm", math.nan, "update-norm is nan"),
        ("of-its-own", 1e31, "of-its-own is 1e+31"),
        ("pseudo-by-class", [1e308] * 8, "pseudo-by-class holds 1e+308"),
        ("pseudo-by-class", [0.0] * 10**6, "has 1000000 numbers, more than 400000"),
        ("num-confident", [1.0], "num-confident is missing"),
    ],
)
def test_no_metric_is_believed_that_cannot_be(metric, value, reason):
    refused(reply(HONEST | {metric: value}), reason)


def test_no_variance_is_below_zero():
    """It would be within all bounds, and its square root NaN at every client that is sent the mean."""
    model = {"0.weight": np.ones(2, np.float32), "1.running_var": np.ones(2, np.float32)}
    carried = {protocol.ARRAYS: model, protocol.STATE: STATE}
    reduction = Reduction.of(carried, {protocol.ARRAYS: by_examples})
    for smallest, said in ((0.0, ""), (-1e-3, "1.running_var is a variance below zero")):
        sent = model | {"1.running_var": np.array([1.0, smallest], np.float32)}
        sums = CohortSums(reduction, 1)
        answer = sums.add(0, reply(arrays=protocol.to_record(sent)), HOLDING)
        assert said in answer.reason
        assert (answer.metrics is None) == bool(said)


def test_there_is_a_limit_to_the_number_of_metrics():
    many = {f"m{i}": 1.0 for i in range(MOST_METRICS)}
    refused(reply(HONEST | many), f"{MOST_METRICS + len(HONEST)} metrics, more than {MOST_METRICS}")
    few = dict(list(many.items())[: MOST_METRICS - len(HONEST)])
    assert added(reply(HONEST | few))[0].metrics is not None


def claim(**changes) -> ArrayRecord:
    """Return the model's record, with an array that says something else of itself."""
    record = protocol.to_record(MODEL)
    whole = vars(record["w"])
    fields = {key: whole[key] for key in ("dtype", "shape", "stype", "data")} | changes
    record["w"] = Array(fields["dtype"], fields["shape"], fields["stype"], fields["data"])
    return record


DATA = protocol.to_record(MODEL)["w"].data
FORGED = DATA.replace(b"(2, 3)", b"(9, 9)")
CLAIMS = {
    "a thousand million numbers": claim(dtype="float64", shape=(10**9,), data=b"x"),
    "more than there is memory": claim(dtype="float64", shape=(10**13,)),
    "a type of 400 MB": claim(dtype="<U100000000", shape=()),
    "void": claim(dtype="V1000000000"),
    "objects": claim(dtype="object"),
    "no type": claim(dtype="nonsense"),
    "its own reader": claim(stype="pickle"),
    "another header": claim(data=FORGED),
    "less": claim(data=DATA[:-1]),
    "more": claim(data=DATA + b"\0"),
    "nothing": claim(data=b""),
    "other bytes order": claim(dtype=">f4"),
    "negative": claim(shape=(-2, -3)),
    "another name": ArrayRecord({"v": Array(MODEL["w"]), "n": Array(MODEL["n"])}),
    "another one": protocol.to_record(MODEL | {"z": np.ones(2)}),
}


@pytest.mark.parametrize("case", CLAIMS)
@pytest.mark.parametrize("record", [protocol.ARRAYS, protocol.STATE])
def test_nothing_is_allocated_by_what_an_array_claims(case, record):
    message = reply(**{record: CLAIMS[case]})
    if record == protocol.STATE:
        false = CLAIMS[case].get("w", Array(MODEL["w"]))
        message = reply(**{record: ArrayRecord({"shares/probs": false})})
    tracemalloc.start()
    refused(message, "the reply's arrays")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2e6


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"more": protocol.to_record(STATE)}, "holds 1 records that were not asked for"),
        ({"more": ConfigRecord({"x": 1})}, "holds 1 records that were not asked for"),
        ({protocol.ARRAYS: MetricRecord()}, "lacks its arrays"),
        ({protocol.STATE: ConfigRecord()}, "lacks its arrays"),
        ({protocol.METRICS: ConfigRecord()}, "lacks its arrays or its metrics"),
    ],
)
def test_records_are_those_that_were_asked_for(content, reason):
    refused(reply(**content), reason)


@pytest.mark.parametrize("value", [1e30, 3e38, -1e11, math.nan, math.inf])
def test_weights_from_which_nobody_can_go_on_are_refused(value):
    false = MODEL | {"w": np.full((2, 3), value, np.float32)}
    reason = (
        "not finite"
        if not math.isfinite(value)
        else "diverged: the reply's weights reach beyond 1e+10"
    )
    refused(reply(arrays=protocol.to_record(false)), reason)
    largest = MODEL | {"w": np.full((2, 3), 1e10, np.float32)}
    assert added(reply(arrays=protocol.to_record(largest)))[0].metrics is not None


def test_arrays_in_the_order_of_columns_are_read():
    record = protocol.to_record(MODEL)
    columns = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    record["w"] = Array(columns)
    read = protocol.arrays_like(record, protocol.layout_of(MODEL))
    assert np.array_equal(read["w"], columns)


def test_what_a_weight_function_makes_of_a_reply_is_that_replys():
    for weigh, reason in (
        (lambda metrics: metrics["none"], "KeyError: 'none'"),
        (lambda metrics: math.nan, "weight in the sum is nan"),
        (lambda metrics: -1.0, "weight in the sum is -1"),
    ):
        sums = CohortSums(Reduction.of({protocol.ARRAYS: MODEL}, {protocol.ARRAYS: weigh}), 1)
        message = reply()
        del message.content[protocol.STATE]
        assert reason in sums.add(0, message, HOLDING).reason
        assert sums.result()[protocol.ARRAYS] == (None, 0.0)


# ---- whatever it is ----


NUMBERS = st.one_of(
    st.floats(), st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, 4, 20, 1e30, 1e308, COUNT_LIMIT])
)  # fmt: skip
VALUES = st.one_of(
    NUMBERS, st.lists(st.floats(), max_size=9), st.lists(st.integers(0, 9), max_size=9)
)
METRICS = st.dictionaries(st.sampled_from([*HONEST, "other", ""]), VALUES, max_size=4)
DTYPES = st.sampled_from(
    ["float32", "float64", "int64", "object", "<U100000000", "V9", "", "?", "m8[s]"]
)
SHAPES = st.lists(st.one_of(st.integers(0, 4), st.integers(0, 10**13)), max_size=4).map(tuple)
BYTES = st.one_of(st.binary(max_size=200), st.just(DATA), st.just(FORGED))
ARRAYS = st.builds(Array, DTYPES, SHAPES, st.sampled_from(["numpy.ndarray", "pickle", ""]), BYTES)
WEIGHTS = st.one_of(
    ARRAYS,
    st.floats(width=32).map(lambda value: Array(np.full((2, 3), value, np.float32))),
)


@given(
    METRICS, st.dictionaries(st.sampled_from(["w", "n", "z"]), WEIGHTS, max_size=2), st.booleans()
)
@settings(max_examples=150, deadline=None)
def test_a_reply_is_refused_or_within_bounds(metrics, arrays, in_state):
    record = protocol.to_record(STATE if in_state else MODEL)
    for name, array in arrays.items():
        record[name] = array
    answer, _ = added(
        reply(HONEST | metrics, **{protocol.STATE if in_state else protocol.ARRAYS: record})
    )
    log = RoundLog(
        1,
        Census(tuple(map(protocol.node_of, range(2))), np.array([1, 20]), np.array([1, 4])),
        {},
        CLASSES,
    )
    log.note(answer)
    log.close()
    tally, (row,) = log.tally(), log.clients
    if row.status == "failed":
        return
    assert (row.num_examples, row.num_labeled) == (20, 4)
    for name, value in dataclasses.asdict(row).items():
        assert isinstance(value, str) or math.isnan(value) or abs(value) <= 1e30, name
    assert all(math.isfinite(value) for value in dataclasses.astuple(tally))
    assert all(math.isfinite(row.considered) for row in log.class_rows())


@pytest.mark.parametrize("counts", [[1.0] * 7, [], [1.0] * 9])
def test_counts_of_other_classes_are_left_out_and_said(counts):
    answer, _ = added(reply(HONEST | {protocol.BY_CLASS: counts}))
    log = RoundLog(1, Census.unknown(2), {}, CLASSES)
    log.note(answer)
    assert log.class_rows() == []
    assert not counts or f"there are {len(counts)} counts, not 4 times 2" in log.incidents[0]


@pytest.mark.parametrize("name", ["number/a/b", "number/", "number/=1+1", "number/" + "x" * 60])
def test_a_number_under_a_false_name_is_left_out_and_said(name):
    answer, _ = added(reply(HONEST | {name: 1.0}))
    log = RoundLog(1, Census.unknown(2), {}, CLASSES)
    log.note(answer)
    assert log.number_rows() == []
    assert "numbers are left out" in log.incidents[0]


@given(st.text(max_size=50), st.integers(0, 10**5))
@settings(max_examples=50, deadline=None)
def test_reasons_are_short_and_plain(text, times):
    said = protocol.shorten_reason(text + "x" * times + "\x1b]52;c;\x07")
    assert len(said) < 2 * protocol.MOST_CHARACTERS + 100
    assert all(unicodedata.category(c) not in ("Cc", "Cs") or c in "\n\t" for c in said)
    assert said.endswith("\\x1b]52;c;\\x07")


def test_a_reason_keeps_its_first_and_last_lines():
    log = RoundLog(1, Census.unknown(2), {}, CLASSES)
    long = "Traceback\n" + "x" * 2 * 10**7 + "\n=HYPERLINK(\x1b[2J)"
    log.note(Answer(protocol.node_of(1), None, reason=long))
    assert log.clients[0].reason == "=HYPERLINK(\\x1b[2J)"
    assert log.failures[0].reason.startswith("Traceback\n")
    assert "characters are left out" in log.failures[0].reason
    assert len(log.failures[0].reason) < 5000
