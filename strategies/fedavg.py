"""Federated averaging with m of K clients sampled.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv:1602.05629.
"""

import functools
from collections.abc import Mapping
from typing import Literal

from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field, model_validator

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.exchange.sums import Sums, cohort_mean, population_mean
from fedssl.strategies.base import CohortStrategy, Strategy

WEIGHT_METRIC = {
    "all": protocol.NUM_EXAMPLES,
    "labeled": protocol.NUM_LABELED,
    "confident": protocol.NUM_CONFIDENT,
}


class FedAvg(Strategy):
    """Average the models of the sampled clients."""

    weight: Literal["all", "labeled", "confident", "uniform"] = Field(
        "all",
        description="n_k: all images of a client, its labeled ones, the labeled ones and those "
        "whose pseudo-label was accepted, or 1",
    )
    averaging: Literal["cohort", "population"] = Field(
        "cohort",
        description="cohort: the sampled clients' weights sum to 1; population: clients that "
        "were not sampled count with the old global model",
    )

    @model_validator(mode="after")
    def _check(self) -> "FedAvg":
        if self.averaging == "population" and self.weight == "confident":
            raise ValueError(
                "averaging = 'population' needs a weight that is known of clients that were not "
                "sampled; 'confident' is not"
            )
        return self

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase.

        Raises:
            InputError: Every client would weigh nothing.
        """
        if self.weight == "labeled" and not cohorts.census.num_labeled.any():
            raise InputError(
                "strategy.weight",
                "is 'labeled', but no client holds a label",
                "take another weight",
            )
        return _FedAvg(self, cohorts)

    def population_weight(self, cohorts: Cohorts) -> float:
        """Return n, the sum of n_k over all K clients."""
        census = cohorts.census
        if self.weight == "uniform":
            return float(len(census))
        counts = census.num_labeled if self.weight == "labeled" else census.num_examples
        return float(counts.sum())


def _count(weight: str, metrics: Mapping[str, float]) -> float:
    """Return n_k."""
    return 1.0 if weight == "uniform" else metrics[WEIGHT_METRIC[weight]]


class _FedAvg(CohortStrategy):
    def __init__(self, settings: FedAvg, cohorts: Cohorts) -> None:
        super().__init__(cohorts, functools.partial(_count, settings.weight))
        self._settings = settings

    def combine(self, sums: Sums, total_weight: float, arrays: NamedArrays) -> NamedArrays:
        """Return the mean over the cohort or over the population."""
        if self._settings.averaging == "cohort":
            return cohort_mean(sums, total_weight, arrays)
        return population_mean(
            sums, total_weight, self._settings.population_weight(self.cohorts), arrays
        )
