"""No node can end a run by a false answer: the answer becomes an incident, and the client of its number is absent.

A client whose own privacy floor refuses the experiment does end the run.
"""

import json
import math
from datetime import UTC, datetime

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.malicious import Strangers
from fedssl.clients.client_app import app
from fedssl.core.errors import RunFailed
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.record.rows import Observer
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from tests.helpers import small_experiment
from tests.resuming import Stopper

protocol.claim_identity(1)

CLIENTS = 4


def answer(message, metrics):
    records = {} if metrics is None else {protocol.METRICS: MetricRecord(metrics)}
    return Message(content=RecordDict(records), reply_to=message)


def census(lies, least=0.5, **limits):
    """Return the census of four clients of (5 + number) images, one labeled; some nodes say something else."""

    def ask(messages):
        for message in messages:
            node = message.metadata.dst_node_id
            client = protocol.client_of(node)
            honest = {"client": client, "num-examples": 5 + client, "num-labeled": 1}
            lie = lies.get(client, {})
            yield answer(message, None if lie is None else honest | lie)

    nodes = [protocol.node_of(client) for client in range(CLIENTS)]
    return Census.by_query(ask, nodes, "{}", CLIENTS, min_success=least, **limits)


LIES = {
    "nothing": (None, "its answer cannot be read: KeyError: 'client'"),
    "nobody": ({"client": math.nan}, "its client is nan"),
    "large": ({"client": 1e30}, "its client is 1e+30"),
    "beyond": ({"client": 4}, "its client is 4"),
    "half": ({"client": 0.5}, "its client is 0.5"),
    "list": ({"client": [1]}, "its answer cannot be read: KeyError: 'client'"),
    "negative": ({"num-examples": -5}, "its num-examples is -5"),
    "many": ({"num-examples": 2**62}, "its num-examples is 4.6"),
    "labels": ({"num-labeled": 7}, "its num-labeled is 7"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_false_answer_is_an_incident_that_names_the_node(case):
    lie, said = LIES[case]
    found = census({1: lie})
    assert found.num_examples.tolist() == [5, 0, 7, 8]
    assert found.num_labeled.tolist() == [1, 0, 1, 1]
    assert found.absent.keys() == {1}
    assert found.nodes[1] < 0
    (incident,) = found.incidents
    assert f"node {protocol.node_of(1)} is left out" in incident
    assert said in incident
    with pytest.raises(
        RunFailed, match=rf"no census from clients \[1\]\n(.|\n)*node {protocol.node_of(1)}"
    ):
        census({1: lie}, least=0.8)


def test_of_two_nodes_with_one_number_neither_is_believed():
    found = census({1: {"client": 3}})
    assert found.absent.keys() == {1, 3}
    (incident,) = found.incidents
    assert (
        f"say they are client 3 and neither is believed: {protocol.node_of(1)}, {protocol.node_of(3)}"
        in incident
    )


def test_an_operator_limits_what_a_client_may_hold():
    assert census({1: {"num-examples": 10**9}}).num_examples[1] == 10**9
    found = census({1: {"num-examples": 10**9}}, max_examples=1000)
    assert "more than server.max_client_examples = 1000" in found.incidents[0]
    assert found.absent.keys() == {1}


TRACEBACK = "Traceback (most recent call last):\n  File x\nInputError: --data: there is nothing at /a: b; look"


def erring(reason, code=protocol.RAISED, clients=(1,)):
    """Return a way to ask nodes, some of which answer with an error."""

    def ask(messages):
        for message in messages:
            client = protocol.client_of(message.metadata.dst_node_id)
            if client in clients:
                yield protocol.error_reply(message, reason, code)
            else:
                yield answer(message, {"client": client, "num-examples": 5, "num-labeled": 1})

    return ask


NODES = [protocol.node_of(client) for client in range(CLIENTS)]
NUMBERS = {node: client for client, node in enumerate(NODES)}


@pytest.mark.parametrize(("numbers", "name"), [(NUMBERS, "client 1"), ({}, f"node {NODES[1]}")])
def test_the_first_line_of_an_incident_says_the_whole_reason(numbers, name):
    found = Census.by_query(
        erring(TRACEBACK), NODES, "{}", CLIENTS, min_success=0.5, numbers=numbers
    )
    (incident,) = found.incidents
    first, rest = incident.split("\n", 1)
    why = "it could not answer the census: InputError: --data: there is nothing at /a: b; look"
    assert first == f"census: {name} is left out: {why}"
    assert rest == TRACEBACK
    said = why if numbers else "the census has no valid answer for it"
    assert found.absent == {1: f"the client is absent: {said}"}


def test_a_long_reason_is_said_whole_once_and_not_in_every_round():
    reason = "InputError: 12 images cannot be read " + "(a.png, b.png) " * 50
    found = Census.by_query(erring(reason), NODES, "{}", CLIENTS, min_success=0.5, numbers=NUMBERS)
    assert reason.strip() in found.incidents[0]
    repeated = found.absent[1]
    assert "12 images cannot be read" in repeated
    assert repeated.endswith("... (the census's incident says all)")
    assert len(repeated) < 200


def test_clients_that_refuse_by_their_floors_end_the_run_and_are_all_named():
    ask = erring("client N: privacy-rounds: no", protocol.REFUSED_BY_FLOOR, clients=(1, 2))
    with pytest.raises(RunFailed, match="no round begins") as error:
        Census.by_query(ask, NODES, "{}", CLIENTS, min_success=0.0)
    assert str(error.value).count("client N: privacy-rounds: no") == 2


def test_the_census_says_whom_it_waits_for_once(monkeypatch):
    monkeypatch.setattr("fedssl.exchange.census.AWAY_PAUSE", 0.0)
    told, asked = [], []

    def ask(messages):
        asked.append(list(messages))
        clients = (1, 3) if len(asked) < 3 else ()
        return erring("Node Unavailable", protocol.AWAY, clients)(asked[-1])

    Census.by_query(
        ask, NODES, "{}", CLIENTS, numbers=NUMBERS, on_wait=lambda *said: told.append(said)
    )
    assert len(asked) == 3
    ((what, until),) = told
    assert what == "client 1, client 3 went away"
    assert 140 < (until - datetime.now(UTC)).total_seconds() < 150


def test_a_run_needs_one_client_at_least():
    with pytest.raises(RunFailed, match="no census"):
        census(dict.fromkeys(range(CLIENTS)), least=0.0)


VALUES = st.one_of(
    st.floats(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 9),
    st.lists(st.floats(), max_size=2),
)
ANSWERS = st.dictionaries(
    st.sampled_from(["client", "num-examples", "num-labeled", "x"]), VALUES, max_size=4
)


@given(st.dictionaries(st.integers(0, 3), st.one_of(st.none(), ANSWERS), max_size=4))
@settings(max_examples=100, deadline=None)
def test_whatever_nodes_answer_the_census_adds_up_or_says_which_lied(lies):
    try:
        found = census(lies, least=0.0)
    except RunFailed as error:
        said = str(error)
    else:
        said = ""
    if said:  # nobody is left who could be believed
        assert said.startswith("no census from clients [0, 1, 2, 3]")
        assert len(said) < 5000
        return
    assert len(set(found.nodes)) == CLIENTS
    assert ((found.num_labeled >= 0) & (found.num_labeled <= found.num_examples)).all()
    assert (found.num_examples < 2**53).all()
    assert {client for client, node in enumerate(found.nodes) if node < 0} == set(found.absent)
    assert bool(found.absent) <= bool(found.incidents)


class Liars(Strangers):
    """The nodes of a small federation, one of which says something else in the census."""

    def __init__(self, lie):
        super().__init__(app, 6)
        self.lie = lie
        self.asked = set()

    def send_and_receive(self, messages, *, timeout=None):
        for reply in super().send_and_receive(messages):
            client = protocol.client_of(reply.metadata.src_node_id)
            if reply.metadata.message_type == "train":
                self.asked.add(client)
            elif client == 2:
                reply.content[protocol.METRICS].update(self.lie)
            yield reply


class Watcher(Observer):
    def __init__(self):
        self.ends = []

    def round_ended(self, end):
        self.ends.append(end)


def test_a_run_that_goes_on_records_what_its_own_census_says(tmp_path):
    experiment = small_experiment(federation={"sample": 6}, server={"checkpoint_every": 1})
    first = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        serve(experiment, Liars({}), [first, Stopper(1, KeyboardInterrupt())])
    directory = RunDirectory(tmp_path / "run", resume=True)
    serve(experiment, Liars({"client": -1}), [directory], directory.load().snapshot)
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").open()]
    said = [(event["round"], event["what"]) for event in events if event["event"] == "incident"]
    assert [round for round, _ in said] == [2]
    assert "its client is -1" in said[0][1]


@pytest.mark.parametrize("strategy", ["fedavg", "flwr:FedAvg"])
def test_a_run_goes_on_without_a_client_whose_census_is_false(strategy):
    grid, seen = Liars({"num-examples": 2**60}), Watcher()
    experiment = small_experiment(strategy=strategy, federation={"sample": 6})
    outcome = serve(experiment, grid, [seen])
    assert [row.clients_ok for row in outcome.rounds] == [5, 5]
    assert grid.asked == {0, 1, 3, 4, 5}
    assert [[failure.client for failure in end.failures] for end in seen.ends] == [[2], [2]]
    assert "is absent" in seen.ends[0].failures[0].reason
    assert ["census: node" in incident for incident in seen.ends[0].incidents] == [True]
    with pytest.raises(RunFailed, match="no census from clients"):
        serve(small_experiment(server={"min_success": 0.9}), Liars({"client": -1}), [])
