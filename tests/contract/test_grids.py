"""One contract for every grid of this machine: replies, order, errors, state, and the same bits."""

from collections.abc import Iterator

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedssl.clients.client_app import app as real_app
from fedssl.engine.local_grid import Apps, LocalGrid
from fedssl.engine.plan import Wish
from fedssl.engine.ray.grid import RayGrid
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.reduction import CohortSums, Reduction

CLIENTS = 6

toy = ClientApp()


@toy.train()
def train(message: Message, context: Context) -> Message:
    """Add this client's number to the weights; client 4 raises; visits are counted in the state."""
    client = int(context.node_config["partition-id"])
    if client == 4:
        raise RuntimeError("client four does not want to")
    visits = 1
    if "visits" in context.state.metric_records:
        visits += int(context.state.metric_records["visits"]["n"])
    context.state["visits"] = MetricRecord({"n": visits})
    sent = message.content.array_records["arrays"]
    arrays = {name: array.numpy() + client for name, array in sent.items()}
    metrics = MetricRecord({"num-examples": client + 1, "visits": visits, "client": client})
    content = RecordDict({"arrays": protocol.to_record(arrays), "metrics": metrics})
    return Message(content=content, reply_to=message)


@pytest.fixture(scope="module")
def ray_grid() -> Iterator[RayGrid]:
    grid = RayGrid(Apps(toy), CLIENTS, Wish(2))
    yield grid
    grid.close()


@pytest.fixture(params=["serial", "ray"])
def grid(request: pytest.FixtureRequest) -> LocalGrid:
    if request.param == "serial":
        return SerialGrid(Apps(toy), CLIENTS)
    shared: RayGrid = request.getfixturevalue("ray_grid")
    shared.restart(CLIENTS)
    return shared


def requests(clients: list[int], value: float = 1.0) -> list[Message]:
    content = RecordDict(
        {"arrays": protocol.to_record({"w": np.full(3, value)}), "config": ConfigRecord()}
    )
    return [protocol.new_message("train", protocol.node_of(c), content) for c in clients]


def test_it_is_a_flower_grid_of_numbered_clients(grid):
    assert isinstance(grid, Grid)
    assert [protocol.client_of(node) for node in grid.get_node_ids()] == list(range(CLIENTS))
    assert [info.node_id for info in grid.get_nodes()] == list(grid.get_node_ids())


def test_replies_come_in_the_order_of_the_messages(grid):
    replies = list(grid.send_and_receive(requests([5, 0, 3, 1])))
    assert [int(r.content["metrics"]["client"]) for r in replies] == [5, 0, 3, 1]
    assert replies[0].content["arrays"]["w"].numpy().tolist() == [6, 6, 6]


def test_streaming_gives_every_reply_once(grid):
    replies = list(grid.stream(requests([5, 0, 3, 1, 2])))
    assert sorted(int(r.content["metrics"]["client"]) for r in replies) == [0, 1, 2, 3, 5]


def test_push_and_pull(grid):
    ids = list(grid.push_messages(requests([2, 3])))
    assert len(set(ids)) == 2
    replies = list(grid.pull_messages(ids))
    assert {r.metadata.reply_to_message_id for r in replies} == set(ids)
    assert list(grid.pull_messages(ids)) == []


def test_a_client_that_raises_is_an_error_with_its_traceback(grid):
    replies = list(grid.send_and_receive(requests([3, 4, 5])))
    assert [r.has_error() for r in replies] == [False, True, False]
    assert "client four does not want to" in replies[1].error.reason
    assert "Traceback" in replies[1].error.reason
    assert protocol.client_of(replies[1].metadata.src_node_id) == 4


def test_client_state_survives_from_round_to_round(grid):
    for visit in (1, 2, 3):
        replies = list(grid.send_and_receive(requests([0, 5])))
        assert [int(r.content["metrics"]["visits"]) for r in replies] == [visit, visit]
    grid.restart(CLIENTS)
    assert int(next(iter(grid.send_and_receive(requests([0])))).content["metrics"]["visits"]) == 1


def test_messages_with_contents_of_their_own(grid):
    replies = list(grid.send_and_receive([*requests([0], 10.0), *requests([0], 20.0)]))
    assert [float(r.content["arrays"]["w"].numpy()[0]) for r in replies] == [10, 20]


def test_a_node_that_is_not_there(grid):
    with pytest.raises(ValueError, match="not one of this grid's"):
        list(grid.stream(requests([CLIENTS])))


def test_a_stock_flower_fedavg_drives_it(grid):
    """Three rounds of Flower's own strategy; the mean of w + client, weighted by client + 1, is exact."""
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=CLIENTS)
    start = ArrayRecord({"w": protocol.to_record({"w": np.zeros(3)})["w"]})
    result = strategy.start(grid, start, num_rounds=3)
    others = [c for c in range(CLIENTS) if c != 4]
    gain = sum(c * (c + 1) for c in others) / sum(c + 1 for c in others)
    np.testing.assert_allclose(result.arrays["w"].numpy(), 3 * gain)


def test_a_stock_flower_fedavg_drives_our_clients(experiment):
    """Flower's FedAvg over our ClientApp, train and evaluate; the text of the experiment is all it is given."""
    grid = SerialGrid(Apps(real_app), 6)
    from fedssl.clients.local_data import simulated_federation
    from fedssl.training.network import build_network

    spec = simulated_federation(experiment).data.spec
    network = build_network(experiment.model, experiment.method, spec, experiment.seed)
    config = ConfigRecord({protocol.EXPERIMENT: experiment.to_client_json()})
    result = FedAvg(fraction_train=0.5, min_available_nodes=6).start(
        grid,
        protocol.to_record(network.state_dict()),
        num_rounds=2,
        train_config=config,
        evaluate_config=config,
    )
    assert set(result.train_metrics_clientapp) == {1, 2}
    assert 0 <= result.evaluate_metrics_clientapp[2]["accuracy"] <= 1


def test_serial_and_ray_give_the_same_replies(ray_grid):
    ray_grid.restart(CLIENTS)
    serial = SerialGrid(Apps(toy), CLIENTS)
    for _ in range(2):
        ours = list(serial.send_and_receive(requests([0, 1, 2, 3, 5])))
        theirs = list(ray_grid.send_and_receive(requests([0, 1, 2, 3, 5])))
        for one, other in zip(ours, theirs, strict=True):
            assert one.content["arrays"]["w"].data == other.content["arrays"]["w"].data
            assert one.content["metrics"] == other.content["metrics"]


@pytest.mark.parametrize("how", ["stream", "reduce"])
def test_what_is_to_be_done_meanwhile_is_done_once_before_any_reply(grid, how):
    done = []
    messages = requests([5, 0, 3])
    if how == "stream":
        replies = grid.stream(messages, meanwhile=lambda: done.append("meanwhile"))
    else:
        sums = CohortSums(Reduction({}, {}), 3)
        replies = grid.reduce(messages, sums, meanwhile=lambda: done.append("meanwhile"))
    for _ in replies:
        done.append("reply")
    assert done == ["meanwhile", "reply", "reply", "reply"]


def test_if_that_raises_the_grid_is_as_good_as_before(grid):
    with pytest.raises(OSError, match="full"):
        list(grid.stream(requests([5, 0, 3]), meanwhile=_raise))
    assert [not r.has_error() for r in grid.send_and_receive(requests([5, 0, 3, 1]))] == [True] * 4


def _raise():
    raise OSError("full")
