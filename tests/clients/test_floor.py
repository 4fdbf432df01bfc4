"""A node's own privacy: no server can lower it, and no round is answered twice with fresh noise."""

import json

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, MessageType, RecordDict

from fedssl.clients.answers import account_of
from fedssl.clients.client_app import app
from fedssl.clients.floor import Floor
from fedssl.core.errors import InputError, RunFailed
from fedssl.data.cache import CACHE_VARIABLE
from fedssl.data.terms import Terms
from fedssl.exchange import protocol
from fedssl.server.accountant import with_chosen_noise
from fedssl.server.app import serve
from fedssl.training.network import build_network
from tests.helpers import federation_of, small_experiment
from tests.nodes import Nodes

PROMISE = {"clipping_norm": 1.0, "noise_multiplier": 0.5}
FLOOR = {"privacy-clipping-norm": 1.0, "privacy-noise-multiplier": 0.5}


def private(privacy=None, **overrides):
    federation = {"clients": 1, "sample": 1, "private": True}
    sections = {} if privacy is None else {"privacy": privacy}
    return small_experiment(federation=federation, **sections, **overrides)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    data = federation_of(small_experiment()).data.train
    images = data.read(np.arange(40))[:, 0]
    np.savez(tmp_path / "own.npz", images=images, labels=data.labels[:40])
    return str(tmp_path / "own.npz")


class Node:
    """A client's machine, as a server sees it: requests of any kind, in any run."""

    def __init__(self, home, **config):
        self.config = {"partition-id": 0, "data-path": home, **config}
        self.contexts = {}
        self.asked = 0

    def ask(self, experiment, kind=MessageType.TRAIN, round=1, run=1, weights=0.0, phase=0):
        protocol.claim_identity(run)
        spec = federation_of(small_experiment()).data.spec
        network = build_network(experiment.model, experiment.method, spec, 0)
        arrays = {
            n: t.numpy() + np.asarray(weights, t.numpy().dtype)
            for n, t in network.state_dict().items()
        }
        terms = Terms.of(federation_of(small_experiment()).data)
        config = protocol.request_config(experiment.to_client_json(), phase, 1, 1, terms)
        config[protocol.ROUND] = round
        content = RecordDict(
            {"arrays": protocol.to_record(arrays), "config": ConfigRecord(dict(config))}
        )
        message = protocol.new_message(kind, 100, content)
        self.asked += 1
        protocol.set_message_id(message, str(self.asked))
        if run not in self.contexts:  # Flower keeps one a run, for as long as the process lives
            self.contexts[run] = Context(run, 100, self.config, RecordDict(), {})
        return app(message, self.contexts[run])

    def restart(self):
        self.contexts.clear()


def sent(reply):
    assert not reply.has_error(), reply.error.reason
    return {n: a.tobytes() for n, a in protocol.from_record(reply.content["arrays"]).items()}


def refusal(reply):
    assert reply.has_error()
    return reply.error.reason.strip().splitlines()[-1]


LOWERED = [
    (None, "has no \\[privacy\\]"),
    ({"clipping_norm": 1e9, "noise_multiplier": 0.5}, "clipping_norm is 1e\\+09"),
    ({"clipping_norm": 1.0}, "noise has a deviation of 0 times"),
    ({"clipping_norm": 1.0, "noise_multiplier": 0.49}, "0.49 times"),
    ({"clipping_norm": 1.0, "noise_multiplier": 0.5, "noise_at": "server"}, "noise_at is 'server'"),
]


@pytest.mark.parametrize(("privacy", "said"), LOWERED)
@pytest.mark.parametrize("kind", [MessageType.TRAIN, MessageType.EVALUATE, MessageType.QUERY])
def test_a_server_that_lowers_it_gets_no_answer(home, kind, privacy, said, caplog):
    import re

    reply = Node(home, **FLOOR).ask(private(privacy), kind)
    assert re.search(said, refusal(reply)), refusal(reply)
    assert "client 0: privacy-" in refusal(reply)
    assert "refused: client 0: privacy-" in caplog.text


@pytest.mark.parametrize(
    "privacy",
    [
        PROMISE,
        {"clipping_norm": 0.1, "noise_multiplier": 0.5},
        {"clipping_norm": 1.0, "epsilon": 0.5, "delta": 1e-5},
    ],
)
def test_as_much_or_more_is_answered(home, privacy):
    node, experiment = Node(home, **FLOOR), with_chosen_noise(private(privacy))
    assert not node.ask(experiment, MessageType.QUERY).has_error()
    assert sent(node.ask(experiment))


@pytest.mark.parametrize("floor", [FLOOR, {}])
def test_an_epsilon_for_which_the_server_chose_no_noise_is_not_answered_without_noise(home, floor):
    experiment = private({"clipping_norm": 1.0, "epsilon": 0.5})
    assert "privacy.epsilon: is 0.5, and no noise is chosen" in refusal(
        Node(home, **floor).ask(experiment)
    )


def test_what_nobody_clips_does_not_leave_it(home):
    experiment = private(PROMISE, method={"kind": "freematch"})
    assert "beside the weights" in refusal(Node(home, **FLOOR).ask(experiment))


@pytest.mark.parametrize(
    ("sender", "section"),
    [
        ({"method": {"kind": "freematch"}}, "method"),
        ({"strategy": {"kind": "scaffold"}}, "strategy"),
    ],
)
def test_the_refusal_names_the_section_that_sends(home, sender, section):
    said = refusal(Node(home, **FLOOR).ask(private(PROMISE, **sender)))
    assert f"[{section}] sends" in said
    assert f"change [{section}]" in said


@pytest.mark.parametrize("config", [FLOOR, {}])
def test_one_request_asked_again_is_answered_by_the_very_same_bytes(home, config):
    node, experiment = Node(home, **config), private(PROMISE)
    first = sent(node.ask(experiment))
    node.restart()
    assert sent(node.ask(experiment)) == first
    kept = json.loads((account_of(next(iter(node.contexts.values()))) / "account.json").read_text())
    assert kept["answers"] == 1


@pytest.mark.parametrize("config", [FLOOR, {}])
def test_another_request_for_a_round_that_was_answered_is_refused(home, config):
    node, experiment = Node(home, **config), private(PROMISE)
    sent(node.ask(experiment, round=2))
    for changed in ({"weights": 1e-6}, {"phase": 1}, {"round": 1}):
        assert "has answered round 2" in refusal(node.ask(experiment, **{"round": 2, **changed}))
    node.restart()
    assert "has answered round 2" in refusal(node.ask(experiment, round=2, weights=1e-6))
    sent(node.ask(experiment, round=3))


@pytest.mark.parametrize("round", [float("nan"), 2.5, "3", -1, 2**40])
def test_what_is_no_number_of_a_round_is_refused(home, round):
    """NaN is neither above nor below any round that was answered."""
    node, experiment = Node(home, **FLOOR), private(PROMISE)
    sent(node.ask(experiment, round=2))
    assert "no number of a round or a phase" in refusal(node.ask(experiment, round=round))


def test_a_message_of_another_type_for_the_same_function_is_no_other_request(home):
    """Flower takes train.default to the function of train."""
    node, experiment = Node(home, **FLOOR), private(PROMISE)
    sent(node.ask(experiment))
    assert "has answered round 1" in refusal(node.ask(experiment, "train.default", weights=1e-6))


def test_no_label_gets_more_answers_than_the_owner_allows(home):
    """Rounds, phases, runs, kinds of requests and new processes: all are counted together."""
    node, experiment = Node(home, **{**FLOOR, "privacy-rounds": 3}), private(PROMISE)
    sent(node.ask(experiment, round=1))
    node.restart()
    sent(node.ask(experiment, round=1, run=2))
    assert not node.ask(experiment, MessageType.EVALUATE, round=7, run=3).has_error()
    tries = (
        {"round": 8},
        {"run": 4},
        {"run": 5, "phase": 1},
        {"kind": MessageType.EVALUATE, "run": 6},
    )
    for labels in tries:
        assert "privacy-rounds: is 3" in refusal(node.ask(experiment, **labels))
    assert not node.ask(experiment, MessageType.QUERY, run=7).has_error()


def test_noise_of_a_node_with_a_floor_is_nobodys_to_draw_again(home, tmp_path):
    experiment = private(PROMISE)
    first = sent(Node(home, **FLOOR).ask(experiment))
    assert sent(Node(home, **{**FLOOR, "partition-id": 0}).ask(experiment, run=2)) != first


def test_an_account_that_cannot_be_read_is_not_begun_anew(home):
    node, experiment = Node(home, **FLOOR), private(PROMISE)
    sent(node.ask(experiment))
    (account_of(node.contexts[1]) / "account.json").write_text("{")
    assert "cannot tell what it has answered" in refusal(node.ask(experiment, round=2))


def test_a_process_that_died_before_its_reply_left_may_answer_the_same_request(home):
    node, experiment = Node(home, **{**FLOOR, "privacy-rounds": 1}), private(PROMISE)
    sent(node.ask(experiment))
    (account_of(node.contexts[1]) / "reply.bin").unlink()
    sent(node.ask(experiment))
    assert "privacy-rounds" in refusal(node.ask(experiment, round=2))


def test_without_floor_and_promise_nothing_is_kept(home, tmp_path):
    sent(Node(home).ask(private()))
    assert not (tmp_path / "cache" / "answers").exists()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"privacy-clip": 1.0}, "privacy-clip: is no setting"),
        ({"privacy-clipping-norm": "1"}, "privacy-clipping-norm: is '1'"),
        ({"privacy-clipping-norm": 0}, "privacy-clipping-norm: is 0"),
        ({"privacy-noise-multiplier": -1.0}, "privacy-noise-multiplier"),
        ({"privacy-noise-multiplier": float("nan")}, "privacy-noise-multiplier"),
        ({"privacy-rounds": 1.5}, "privacy-rounds"),
        ({"privacy-rounds": True}, "privacy-rounds"),
    ],
)
def test_a_slip_in_the_nodes_config_leaves_no_node_without_its_floor(home, config, said):
    with pytest.raises(InputError, match=said):
        Floor.of(config)
    assert said.split(":")[0] in refusal(Node(home, **config).ask(private(PROMISE)))


def test_the_census_ends_a_run_below_the_floor_before_its_first_round(home):
    grid = Nodes([{"partition-id": 0, "data-path": home, **FLOOR}])
    with pytest.raises(RunFailed, match=r"client 0: privacy-clipping-norm"):
        serve(private(), grid, [])
    assert serve(private(PROMISE), grid, []).model.arrays


@pytest.mark.parametrize("floor", [FLOOR, {"privacy-clip": 1.0}])
def test_one_clients_floor_ends_the_run_though_enough_other_clients_are_there(home, floor):
    """A run without the client whose owner asks for more would show more of the others."""
    own = {"data-path": home}
    grid = Nodes([{"partition-id": 0, **own}, {"partition-id": 1, **own, **floor}])
    federation = {"clients": 2, "sample": 2, "private": True}
    experiment = small_experiment(federation=federation, server={"min_success": 0.5})
    with pytest.raises(RunFailed, match="no round begins, because clients refuse") as error:
        serve(experiment, grid, [])
    name = next(iter(floor))
    assert str(error.value).splitlines()[1:] == [grid.replies[1].error.reason]
    assert f"client 1: {name}: is" in str(error.value)
    assert [message.metadata.message_type for message in grid.sent] == ["query", "query"]


def test_join_passes_the_floor_to_the_node_as_flower_reads_it():
    from pathlib import PurePath

    from flwr.common.config import parse_config_args

    from fedssl.app.deploy.services import client_service

    floor = {"privacy-clipping-norm": 1e-05, "privacy-noise-multiplier": 0.5, "privacy-rounds": 20}
    service = client_service(
        "python",
        0,
        "host:1",
        PurePath("ca"),
        PurePath("key"),
        9094,
        PurePath("/c d"),
        PurePath("/a b"),
        floor,
    )
    config = parse_config_args([service.command[service.command.index("--node-config") + 1]])
    assert Floor.of(config) == Floor(1e-05, 0.5, 20)
    assert config["data-path"] == "/a b"
    assert config["folder"] == "/c d"
