"""Records on the wire are exact and readable by Flower, and Flower's quirks are handled in one place."""

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedssl.core.errors import NothingLearned, TrainingDiverged
from fedssl.exchange import protocol
from fedssl.training.loop import FitReport

protocol.claim_identity(1)

DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_])


@given(npst.arrays(DTYPES, npst.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=5)))
@settings(max_examples=150, deadline=None)
def test_arrays_travel_exactly_and_flower_reads_ours(array):
    record = protocol.to_record({"x": array})
    ours = protocol.from_record(record)["x"]
    theirs = record["x"].numpy()
    for read in (ours, theirs):
        assert read.dtype == array.dtype
        assert read.shape == array.shape
        assert read.tobytes() == array.tobytes()
    assert record["x"].data == Array(array).data  # byte for byte what Flower would have written


def test_flowers_own_arrays_are_read_whatever_their_order():
    column_major = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    record = ArrayRecord({"x": Array(column_major)})
    assert np.array_equal(protocol.from_record(record)["x"], column_major)


def test_tensors_in_any_memory_format():
    tensor = (
        torch.arange(2 * 3 * 4 * 4.0).view(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    )
    record = protocol.to_record({"w": tensor})
    assert np.array_equal(protocol.from_record(record)["w"], tensor.numpy())
    assert protocol.num_bytes(RecordDict({"a": record, "b": record})) == 2 * len(record["w"].data)


def test_a_network_is_loaded_in_place():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    pointers = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    arrays = {
        name: np.full(tensor.shape, 3, tensor.numpy().dtype)
        for name, tensor in network.state_dict().items()
    }
    protocol.load_network(network, arrays, arrays)
    for name, tensor in network.state_dict().items():
        assert (tensor == 3).all()
        assert tensor.data_ptr() == pointers[name]
    for wrong in ({"0.weight": np.zeros((9, 9, 9))}, {"0.weight": np.zeros(())}, {}):
        with pytest.raises(ValueError, match=r"array '0.weight' (is missing|has shape)"):
            protocol.load_network(network, wrong, ["0.weight"])


def message(content=None):
    return protocol.new_message("train", protocol.node_of(3), content or RecordDict())


def test_a_request_survives_the_trip():
    config = protocol.request_config("{}", 1, 2, 7)
    config[protocol.ROUND] = 12
    arrays = protocol.to_record({"w": np.ones(2)})
    request = protocol.read_request(message(RecordDict({"arrays": arrays, "config": config})))
    assert (request.experiment, request.server_round) == ("{}", 12)
    assert (request.phase_round, request.phase_rounds) == (2, 7)
    assert request.phase == 1
    assert request.arrays["w"].tolist() == [1, 1]
    assert request.state == {}


def test_a_stock_strategys_request_knows_no_phases():
    config = ConfigRecord({protocol.EXPERIMENT: "{}", "server-round": 4})
    request = protocol.read_request(message(RecordDict({"config": config})))
    assert (request.server_round, request.phase_round, request.phase_rounds) == (4, None, None)


def test_a_request_without_an_experiment_says_so():
    with pytest.raises(ValueError, match="no 'experiment' in its 'config' record"):
        protocol.read_request(message())


def test_another_versions_request_is_refused():
    config = protocol.request_config("{}", 0, 1, 2)
    config[protocol.VERSION] = "99.0"
    with pytest.raises(ValueError, match=r"the server runs fedssl 99\.0, this client \d"):
        protocol.read_request(message(RecordDict({"config": config})))


def reply_to(request):
    report = FitReport(5, 0.5, 10.0, 8.0, 8.0, 6.0, 0.1, [0.0] * 8)
    metrics = protocol.fit_metrics(
        report, client=3, num_labeled=4, num_examples=20, update_norm=1.5
    )
    assert metrics["num-confident"] == 4 + 0.8 * 16
    return protocol.fit_reply(
        request, {"w": torch.ones(2)}, {"statistics/mean": torch.ones(())}, metrics
    )


def test_a_reply_has_the_one_array_and_one_metric_record_that_flower_wants():
    reply = reply_to(message())
    assert len(reply.content.array_records) == len(reply.content.metric_records) == 1
    sent = {protocol.STATE: protocol.to_record({"statistics/mean": np.zeros(())})}
    stateful = reply_to(message(RecordDict(sent)))
    returned = protocol.from_record(stateful.content[protocol.STATE])
    assert returned["statistics/mean"] == 1
    assert set(protocol.without_records(stateful, {protocol.STATE}).content) == {
        "arrays",
        "metrics",
    }
    metrics = protocol.metrics_of(reply)
    assert metrics["num-examples"] == 20
    assert metrics["pseudo-right"] == 6
    assert metrics["update-norm"] == 1.5
    assert "pseudo-by-class" not in metrics
    assert protocol.all_metrics_of(reply)[protocol.BY_CLASS] == [0.0] * 8
    assert reply.metadata.src_node_id == protocol.node_of(3)


def test_the_bytes_of_arrays_are_told_without_writing_them():
    arrays = {"w": np.ones((2, 3), np.float32), "n": np.array(3), "none": np.ones((0, 4))}
    content = RecordDict({"arrays": protocol.to_record(arrays)})
    assert protocol.encoded_bytes(arrays) == protocol.num_bytes(content) > 24


def test_records_filled_past_flowers_checks_are_those_that_its_constructors_make():
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3, dtype=np.int64)}
    ours, flowers = protocol.to_record(arrays), ArrayRecord()
    for name, array in arrays.items():
        flowers[name] = Array(array)
    assert ours == flowers
    assert ours.object_id == flowers.object_id
    for name in arrays:
        assert vars(ours[name]).keys() >= vars(flowers[name]).keys() - {"_object_id"}
    reply = reply_to(message())
    checked = MetricRecord(dict(reply.content[protocol.METRICS]))
    assert checked == reply.content[protocol.METRICS]
    assert RecordDict(dict(reply.content)) == reply.content


def test_explained_errors_carry_the_traceback():
    def broken(message, context):
        raise ValueError("what went wrong")

    reply = protocol.reply_or_explain(message(), None, broken)
    assert reply.has_error()
    assert "Traceback" in reply.error.reason
    assert "what went wrong" in reply.error.reason


def test_refusing_keeps_who_said_it():
    reply = protocol.metrics_reply(message(), {"a": 1})
    refused = protocol.refuse_reply(reply, "not finite")
    assert refused.has_error()
    assert refused.metadata.src_node_id == protocol.node_of(3)
    assert refused.metadata.reply_to_message_id == reply.metadata.reply_to_message_id


def test_flower_still_needs_to_be_told_who_speaks():
    """If this fails, flwr makes messages by itself and `claim_identity` can go."""
    from flwr.supercore.task_identity import TaskIdentity

    kept = TaskIdentity._run_id
    try:
        TaskIdentity._run_id = None
        with pytest.raises(RuntimeError, match="not set"):
            message()
    finally:
        TaskIdentity._run_id = kept
    assert isinstance(message().content, RecordDict)
    assert protocol.client_of(protocol.node_of(5)) == 5
    assert MetricRecord({"x": 1})["x"] == 1


def test_training_that_diverged_is_explained_without_a_traceback():
    with pytest.raises(FloatingPointError) as raised:
        raise TrainingDiverged("training diverged; lower train.lr")
    said = protocol.explain_error(raised.value)
    assert said == "FloatingPointError: training diverged; lower train.lr"


def test_a_loss_without_a_gradient_is_explained_without_a_traceback():
    assert protocol.explain_error(NothingLearned("no gradient")) == "NothingLearned: no gradient"


def test_an_error_of_a_methods_own_arithmetic_keeps_its_traceback():
    with pytest.raises(FloatingPointError) as raised, np.errstate(divide="raise"):
        np.ones(1) / np.zeros(1)
    assert "np.ones(1) / np.zeros(1)" in protocol.explain_error(raised.value)
