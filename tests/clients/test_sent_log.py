"""The log at a client of every message that left it."""

import json
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedssl.clients.sent_log import SENT, with_sent_log
from fedssl.exchange import protocol
from fedssl.server.app import serve
from tests.helpers import small_experiment
from tests.nodes import Nodes

CLIENTS = 2


def read_log(folder: Path) -> list[dict]:
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (folder / SENT).read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_it_holds_every_message_of_a_run_with_all_that_is_in_it(tmp_path):
    folders = [tmp_path / str(client) for client in range(CLIENTS)]
    grid = Nodes([{"partition-id": n, "folder": str(folder)} for n, folder in enumerate(folders)])
    experiment = small_experiment(
        rounds=2, federation={"clients": CLIENTS, "sample": CLIENTS}, method="freematch"
    )
    serve(experiment, grid, [])
    for client, folder in enumerate(folders):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert (folder / SENT).stat().st_mode & 0o777 == 0o600
        logged = read_log(folder)
        assert [(line["answer_to"], line["round"]) for line in logged] == [
            ("query", None), ("train", 1), ("train", 2),
        ]  # fmt: skip
        replies = [r for r in grid.replies if r.metadata.src_node_id == 100 + client]
        for line, reply in zip(logged, replies, strict=True):
            assert line["run"] == "1"
            assert line["bytes"] == protocol.num_bytes(reply.content)
            assert line["records"].keys() == reply.content.keys()
            for name, record in reply.content.items():
                said = line["records"][name]
                assert said.keys() == record.keys()
                if not isinstance(record, ArrayRecord):
                    assert said == json.loads(json.dumps(dict(record)))
                    continue
                for key, array in protocol.from_record(record).items():
                    assert said[key]["shape"] == list(array.shape)
                    assert said[key]["type"] == str(array.dtype)
                    assert said[key]["bytes"] == len(record[key].data)
                    assert said[key]["norm"] == pytest.approx(
                        np.sqrt((array.astype(float) ** 2).sum())
                    )
        assert "arrays" in logged[1]["records"]
        assert "state" in logged[1]["records"]


def answered(config, content):
    """Return the reply of an app that answers anything with some content, behind the log."""
    context = Context(1, 2, config, RecordDict(), {})
    request = protocol.new_message("train", 2, RecordDict({"config": ConfigRecord()}))

    def app(message, context):
        if isinstance(content, str):
            return protocol.error_reply(message, content)
        return Message(content, reply_to=message)

    return with_sent_log(request, context, app)


def test_errors_and_numbers_that_are_not_finite_are_logged(tmp_path):
    config = {"folder": str(tmp_path)}
    answered(config, "no such class: mole")
    metrics = MetricRecord({"loss": float("nan"), "list": [1.0, float("inf")]})
    arrays = protocol.to_record({"w": np.array([np.inf, 1.0])})
    answered(config, RecordDict({"metrics": metrics, "arrays": arrays}))
    error, reply = read_log(tmp_path)
    assert error["error"] == "no such class: mole"
    assert "records" not in error
    assert reply["records"]["metrics"] == {"loss": "nan", "list": [1.0, "inf"]}
    assert reply["records"]["arrays"]["w"]["norm"] == "inf"


def test_nothing_leaves_if_the_log_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    content = RecordDict({"metrics": MetricRecord({"loss": 1.0})})
    reply = answered({"folder": str(tmp_path / "file")}, content)
    assert reply.has_error()
    assert "nothing was sent, because the client's log cannot be written" in reply.error.reason


def test_a_node_without_a_folder_logs_nothing():
    content = RecordDict({"metrics": MetricRecord({"loss": 1.0})})
    assert answered({}, content).content is content
