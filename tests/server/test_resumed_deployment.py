"""A deployed run whose server is killed at any request goes on to the bits of a simulation: clients go back with it."""

import json
import shutil

import pytest
from flwr.app import ConfigRecord, Context, RecordDict

from fedssl.clients.client_app import app
from fedssl.clients.kept_rounds import StateLost, go_to_counted_round, keep_round
from fedssl.clients.own_folder import KEPT, MOST_RUNS, kept_in_folder
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.persistent_grid import PersistentGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.protocol import Request
from fedssl.record.run_directory import RunDirectory
from fedssl.server.app import serve
from tests.helpers import small_experiment
from tests.nodes import Nodes
from tests.resuming import Stop, Stopper, bits

CLIENTS, ROUNDS = 4, 6
FEDERATION = {"clients": CLIENTS, "sample": 2}
PHASES = [
    {"rounds": 3, "strategy": "scaffold", "method": {"kind": "tests.plugins.frozen"}},
    {"rounds": 3, "strategy": "feddyn", "method": "temporal_ensembling"},
]
CASES = {
    "memory, momentum and a private head": {
        "method": "tests.plugins.stateful", "train": {"keep_momentum": True}, "strategy": "scaffold",
    },
    "clients that are asked twice in a round": {
        "method": "tests.plugins.stateful", "strategy": {"kind": "tests.plugins.listed", "clients": [3, 1, 3]},
    },
    "phases, and a teacher that is sent once": {"rounds": None, "phases": PHASES},
}  # fmt: skip


class Killed(BaseException):
    """The server's process is gone."""


class Link(Nodes):
    """Nodes with folders of their own, behind a SuperLink whose server is killed when it sends a certain request.

    Args:
        folder: The clients' folders are in it; None: the clients have none.
        kill: Number of the request to train, from 1, that is not sent any more; None: the server lives.
        die: Called just before the server is killed.
    """

    def __init__(self, folder, kill=None, die=None):
        configs = [{"partition-id": n} for n in range(CLIENTS)]
        for config in configs if folder is not None else ():
            config["folder"] = str(folder / str(config["partition-id"]))
        for config in configs:
            config["allowed-plugins"] = "tests.plugins"
        super().__init__(configs)
        self.kill, self.die, self.trained, self.waiting = kill, die, 0, {}

    def push_messages(self, messages):
        names = []
        for message in messages:
            is_training = message.metadata.message_type == "train"
            self.trained += is_training
            if is_training and self.trained == self.kill:
                self.die()
                raise Killed
            (reply,) = self.send_and_receive([message])
            names.append(message.metadata.message_id)
            self.waiting[names[-1]] = reply
        return names

    def pull_messages(self, message_ids):
        return [self.waiting.pop(name) for name in message_ids if name in self.waiting]


def experiment_of(case):
    settings = {"rounds": ROUNDS, "server": {"checkpoint_every": 3}, **CASES[case]}
    return small_experiment(federation=FEDERATION, **settings)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """Return the bits of a case's simulation."""
    found = {}

    def bits_of(case):
        if case not in found:
            path = tmp_path_factory.mktemp("simulated") / "run"
            serve(experiment_of(case), SerialGrid(Apps(app), CLIENTS), [RunDirectory(path)])
            found[case] = models_of(path)
        return found[case]

    return bits_of


def models_of(path):
    return {name: value for name, value in bits(path).items() if name.endswith(".safetensors")}


def go_on(experiment, path, link):
    directory = RunDirectory(path, resume=True)
    found = directory.load()
    serve(experiment, PersistentGrid(link), [directory], found.snapshot)
    return found


@pytest.mark.parametrize("kills", [[12], [9, 5], [3, 2, 4]], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_a_server_that_is_killed_at_any_request_goes_on_to_the_simulations_bits(
    case, kills, tmp_path, simulated
):
    """Each number counts the requests of one server until it is killed; the last server lives."""
    experiment, path, folder = experiment_of(case), tmp_path / "0", tmp_path / "clients"
    for number, kill in enumerate(kills):
        left = tmp_path / str(number + 1)
        link = Link(folder, kill, lambda path=path, left=left: shutil.copytree(path, left))
        with pytest.raises(Killed):
            go_on(experiment, path, link)
        path = left  # what a process that is killed leaves: its last words are not written
        (path / ".lock").unlink(missing_ok=True)
    found = go_on(experiment, path, Link(folder))
    assert models_of(path) == simulated(case)
    if kills == [12]:
        assert found.snapshot.round == 3  # clients go back further than one round


def test_clients_keep_few_rounds_and_few_runs(tmp_path):
    experiment = experiment_of("memory, momentum and a private head").with_settings("rounds=9")
    for number in range(MOST_RUNS + 1):
        link = Link(tmp_path / "clients")
        serve(experiment, PersistentGrid(link), [RunDirectory(tmp_path / str(number))])
        assert not any(context.state for context in link.contexts.values())
    for client in range(CLIENTS):
        files = list((tmp_path / "clients" / str(client) / KEPT).iterdir())
        assert len(files) == MOST_RUNS
        for file in files:
            state = protocol.state_from_bytes(file.read_bytes())
            assert len({name.partition("/")[0] for name in state}) <= 5


def test_without_folders_flower_keeps_the_states_while_the_run_lasts(tmp_path, simulated):
    case = "memory, momentum and a private head"
    serve(experiment_of(case), PersistentGrid(Link(None)), [RunDirectory(tmp_path / "run")])
    assert models_of(tmp_path / "run") == simulated(case)


def test_a_client_whose_folder_is_lost_fails_once_and_begins_anew(tmp_path):
    experiment = experiment_of("memory, momentum and a private head")
    experiment = experiment.with_settings("federation.sample=4", "server.min_success=0.5")
    path, folder = tmp_path / "run", tmp_path / "clients"
    with pytest.raises(Killed):
        go_on(experiment, path, Link(folder, 4 * 4, lambda: None))
    shutil.rmtree(folder / "2")
    go_on(experiment, path, Link(folder))
    events = [json.loads(line) for line in (path / "events.jsonl").read_text().splitlines()]
    failures = [event for event in events if event["event"] == "client_failed"]
    assert [(event["round"], event["client"]) for event in failures] == [(4, 2)]
    assert "has lost what it kept in round 3" in failures[0]["reason"]


def test_a_deployments_run_is_no_simulations_and_the_other_way_round(tmp_path):
    experiment = experiment_of("memory, momentum and a private head")
    for name in ("deployed", "simulated"):
        grid = PersistentGrid(Link(tmp_path / "c")) if name == "deployed" else SerialGrid(Apps(app), CLIENTS)  # fmt: skip
        with pytest.raises(Stop):
            serve(experiment, grid, [RunDirectory(tmp_path / name), Stopper(4)])
    deployed = RunDirectory(tmp_path / "deployed", resume=True)
    with pytest.raises(InputError, match=r"--resume: this run is a deployment's"):
        serve(experiment, SerialGrid(Apps(app), CLIENTS), [deployed], deployed.load().snapshot)
    with pytest.raises(InputError, match=r"--resume: this run is a simulation's"):
        go_on(experiment, tmp_path / "simulated", Link(tmp_path / "c"))
    go_on(experiment, tmp_path / "deployed", Link(tmp_path / "c"))  # nothing was lost


def test_without_state_at_clients_a_run_goes_on_anywhere(tmp_path):
    experiment = small_experiment(rounds=3, federation=FEDERATION)
    with pytest.raises(Stop):
        serve(experiment, PersistentGrid(Link(None)), [RunDirectory(tmp_path / "a"), Stopper(2)])
    directory = RunDirectory(tmp_path / "a", resume=True)
    serve(experiment, SerialGrid(Apps(app), CLIENTS), [directory], directory.load().snapshot)
    serve(experiment, SerialGrid(Apps(app), CLIENTS), [RunDirectory(tmp_path / "b")])
    assert models_of(tmp_path / "a") == models_of(tmp_path / "b")


def request_of(round, counted, *kept, repeat=0, run=None):
    return Request({}, {}, "", round, 0, None, None, repeat=repeat, counted=counted, kept_rounds=kept, run=run)  # fmt: skip


def answer(kept, request):
    """Go on from what a client kept, and count its requests; return how many it had counted before."""
    go_to_counted_round(kept, request, (), keeps=True)
    before = kept.get("n", {"n": 0})["n"]
    kept["n"] = ConfigRecord({"n": before + 1})
    keep_round(kept, request, ())
    return before


def test_a_client_goes_back_to_every_round_that_is_asked_for_and_forgets_the_others():
    kept = RecordDict()
    assert answer(kept, request_of(1, 0)) == 0
    assert answer(kept, request_of(3, 1)) == 1
    assert answer(kept, request_of(4, 3, 1)) == 2
    assert answer(kept, request_of(5, 4, 1)) == 3  # round 3 is not needed any more
    assert answer(kept, request_of(2, 1)) == 1  # the server went on from a checkpoint
    with pytest.raises(StateLost, match="lost what it kept in round 3"):
        answer(kept, request_of(6, 3))
    assert answer(kept, request_of(6, 3)) == 0
    assert answer(kept, request_of(7, 0)) == 0


def test_a_repeated_request_goes_on_within_its_round_even_if_it_comes_twice():
    kept = RecordDict()
    for _ in range(2):
        assert answer(kept, request_of(1, 0)) == 0
        assert answer(kept, request_of(1, 0, repeat=1)) == 1
        assert answer(kept, request_of(1, 0, repeat=1)) == 1
        assert answer(kept, request_of(1, 0, repeat=2)) == 2
    assert answer(kept, request_of(2, 1)) == 3


def test_a_failed_request_leaves_nothing_behind(tmp_path):
    context = Context(1, 2, {"folder": str(tmp_path)}, RecordDict(), {})
    run = "a" * 32

    def fail():
        with kept_in_folder(context, request_of(1, 0, run=run)):
            context.state["half"] = ConfigRecord({})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with kept_in_folder(context, request_of(1, 0, run=run)):
        go_to_counted_round(context.state, request_of(1, 0), (), keeps=True)
        assert "half" not in context.state


def test_a_damaged_file_says_what_to_do(tmp_path):
    run = "b" * 32
    (tmp_path / KEPT).mkdir()
    (tmp_path / KEPT / f"{run}.bin").write_bytes(b"\xff\xff")
    context = Context(1, 2, {"folder": str(tmp_path)}, RecordDict(), {})
    with (
        pytest.raises(ValueError, match=r"b.bin is damaged .*; remove it"),
        kept_in_folder(context, request_of(1, 0, run=run)),
    ):
        pass
    assert (tmp_path / KEPT / f"{run}.bin").read_bytes() == b"\xff\xff"


def refuse_request(config, said):
    content = RecordDict({protocol.CONFIG: protocol.query_config("{}", None)})
    content = protocol.with_config(content, {protocol.COUNTED: 0, **config})
    protocol.claim_identity(1)
    message = protocol.new_message("train", 1, content)
    with pytest.raises(ValueError, match=said):
        protocol.read_request(message)


@pytest.mark.parametrize("rounds", [list(range(9)), [0.5], "all"])
def test_a_list_of_rounds_that_would_fill_the_disk_is_refused(rounds):
    refuse_request({protocol.KEPT_ROUNDS: rounds}, "no list of rounds")


@pytest.mark.parametrize("run", ["../../etc", "A" * 32, "a" * 31, 7])
def test_a_run_whose_name_could_be_a_path_is_refused(run):
    refuse_request({protocol.RUN: run}, "no name of a run")
