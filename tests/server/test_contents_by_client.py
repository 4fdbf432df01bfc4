"""Contents that differ by client: each client gets its own arrays on every engine, and they count as traffic."""

import numpy as np
import pandas as pd
import pytest

from fedssl.app.simulation import Engine
from fedssl.exchange import protocol
from fedssl.record.run_directory import RunDirectory
from tests.helpers import small_experiment
from tests.resuming import bits

CLIENTS = [3, 0, 5, 3]


def run(path, sends=True, **engine):
    experiment = small_experiment(
        strategy={"kind": "tests.plugins.listed", "clients": CLIENTS, "sends": sends},
        method={"kind": "tests.plugins.addressee"},
        engine=engine,
    )
    with Engine() as machine:
        return machine.run(experiment, [RunDirectory(path)])


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    path = tmp_path_factory.mktemp("serial")
    return path, run(path, kind="serial")


def test_each_client_is_given_its_own_array(serial):
    """In round r, client k is sent 0, r, ..., k r, whose sum is r k (k + 1) / 2; client 0 is sent nothing."""
    numbers = pd.read_csv(serial[0] / "numbers.csv").query("name == 'told' and client >= 0")
    for server_round in (1, 2):
        own = numbers[numbers["round"] == server_round]
        told = [(c, server_round * c * (c + 1) / 2) for c in sorted(CLIENTS)]
        assert list(zip(own.client, own.value, strict=True)) == told


def test_what_a_client_is_told_changes_what_it_learns(serial, tmp_path):
    silent = run(tmp_path, sends=False, kind="serial")
    first = serial[1].model.arrays
    assert any(not np.array_equal(first[name], a) for name, a in silent.model.arrays.items())


def test_it_is_traffic_down_and_none_up(serial):
    _, outcome = serial
    model = protocol.encoded_bytes(outcome.model.arrays)
    sizes = [k + 1 for k in CLIENTS if k > 0]
    own = sum(protocol.encoded_bytes({"numbers": np.zeros(size, np.float32)}) for size in sizes)
    assert own > sum(4 * size for size in sizes)
    for row in outcome.rounds:
        assert row.bytes_down == len(CLIENTS) * model + own
        assert row.bytes_up == len(CLIENTS) * model


def test_it_is_the_same_on_ray(serial, tmp_path):
    run(tmp_path, kind="ray", workers=2)
    assert bits(tmp_path) == bits(serial[0])
