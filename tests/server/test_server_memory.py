"""The server holds a few sums at a time under any strategy that needs sums only, however many clients take part."""

import math

import pytest

from fedssl.clients.client_app import app
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.sums import WeightedSum
from fedssl.experiment.families import STRATEGIES
from fedssl.server.app import serve
from fedssl.strategies.by_sums import SumStrategy
from tests.helpers import small_experiment

CLIENTS = 40

KEEPS_REPLIES = ("rscfed", "proxyfl", "fedmatch")
"""Strategies that need the reply of each client, so that their server's memory grows with the cohort."""

MEMBERS = [name for name in STRATEGIES.names() if name not in ("flwr", *KEEPS_REPLIES)]


@pytest.mark.parametrize("kind", MEMBERS)
def test_the_number_of_sums_at_a_time_is_a_logarithm_of_the_clients(kind, monkeypatch):
    """Forty replies make at most seven partial sums a record: as many as the tree is deep, and one that is being added."""
    most = [0]
    real = WeightedSum.add_part

    def watched(self, span, sums, weight):
        real(self, span, sums, weight)
        most[0] = max(most[0], len(self._nodes))

    monkeypatch.setattr(WeightedSum, "add_part", watched)
    experiment = small_experiment(
        rounds=1,
        strategy=kind,
        federation={"clients": CLIENTS, "sample": CLIENTS, "partition": "iid"},
        train={"local_steps": 1},
    )
    cohorts = Cohorts(Census.unknown(CLIENTS), CLIENTS, seed=0)
    assert isinstance(experiment.plans[0].strategy.build(cohorts), SumStrategy)
    serve(experiment, SerialGrid(Apps(app), CLIENTS), [])
    assert 2 <= most[0] <= math.ceil(math.log2(CLIENTS)) + 1
