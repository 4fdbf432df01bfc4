"""Federated averaging with m of K clients sampled.

McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017,
arXiv:1602.05629.
"""

import functools
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field, StringConstraints, model_validator

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.numbers import CHOSEN, NAME
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.exchange.sums import Sums, cohort_mean, population_mean
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_sums import SumStrategy

NumberName = Annotated[str, StringConstraints(pattern=f"^{CHOSEN}{NAME.pattern}$")]
"""Value of ``strategy.weight`` that names a number which the method records."""

NamedWeight = Literal["all", "labeled", "labeled_or_all", "confident", "uniform"]
"""The values of ``strategy.weight`` that have a name of their own."""

Weight = NamedWeight | NumberName
"""How much a client counts in a mean."""

WEIGHT_METRIC = {
    "all": protocol.NUM_EXAMPLES,
    "labeled": protocol.NUM_LABELED,
    "confident": protocol.NUM_CONFIDENT,
}
"""The metric of a reply that holds the weight, for each value of ``strategy.weight`` that counts images."""


class FedAvg(Strategy):
    """Average the models of the sampled clients."""

    group: ClassVar[str] = "averaging"

    weight: Weight = Field(
        "all",
        description="a client's weight n_k in the mean; all: its number of images; labeled: its "
        "number of labeled images; labeled_or_all: its number of labeled images or, if no client of the run holds a "
        "label, of all images; confident: labeled images and images whose pseudo-label was accepted; uniform: 1; "
        "number:NAME: a number that the method records, which must not be negative",
    )
    averaging: Literal["cohort", "population"] = Field(
        "cohort",
        description="cohort: the mean is over the sampled clients; population: the mean is over "
        "all clients, and a client that was not sampled counts with the old global model",
    )

    @model_validator(mode="after")
    def _check(self) -> "FedAvg":
        known = ("all", "labeled", "labeled_or_all", "uniform")
        if self.averaging == "population" and self.weight not in known:
            raise ValueError(
                "averaging = 'population' needs a weight that is known for clients that were not "
                f"sampled; {self.weight!r} is not known; take {', '.join(known[:-1])} or {known[-1]}"
            )
        return self

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase.

        Raises:
            InputError: The weight is the number of labeled images, and no client holds a label: all weights would be 0.
        """
        self.check_weight(cohorts)
        return AveragingStrategy(self, cohorts)

    def check_weight(self, cohorts: Cohorts) -> None:
        """Refuse a weight that is 0 for every client.

        Raises:
            InputError: The weight is the number of labeled images, and no client holds a label.
        """
        if self.weight == "labeled" and not cohorts.census.num_labeled.any():
            raise InputError(
                "strategy.weight",
                "is 'labeled', but no client holds a label",
                "take another weight",
            )

    def weight_in(self, cohorts: Cohorts) -> Weight:
        """Return the weight that counts in a run, where ``labeled_or_all`` is one of the two."""
        if self.weight != "labeled_or_all":
            return self.weight
        return "labeled" if cohorts.census.num_labeled.any() else "all"

    def population_weight(self, cohorts: Cohorts) -> float:
        """Return n, the sum of the weights n_k over all K clients."""
        census, weight = cohorts.census, self.weight_in(cohorts)
        if weight == "uniform":
            return float(len(census))
        counts = census.num_labeled if weight == "labeled" else census.num_examples
        return float(counts.sum())


def _count(weight: Weight, metrics: Mapping[str, float]) -> float:
    """Return n_k, the weight of a client's reply, from the reply's metrics.

    Raises:
        ValueError: The weight is a number of the method's, and the client's method did not record it.
    """
    if weight == "uniform":
        return 1.0
    if weight in WEIGHT_METRIC:
        return metrics[WEIGHT_METRIC[weight]]
    name = weight.removeprefix(CHOSEN)
    value = metrics.get(f"{protocol.NUMBER}{name}")
    if value is None:
        raise ValueError(
            f"strategy.weight is {weight!r}, and the client's method recorded no {name!r}"
        )
    return value


class AveragingStrategy(SumStrategy):
    """Average models with the weights and over the clients that a `FedAvg` section names.

    Args:
        settings: The section.
        cohorts: The clients of the run, and how many of them take part in a round.
    """

    def __init__(self, settings: FedAvg, cohorts: Cohorts) -> None:
        super().__init__(cohorts, functools.partial(_count, settings.weight_in(cohorts)))
        self.settings = settings

    def combine(self, sums: Sums, total_weight: float, arrays: NamedArrays) -> NamedArrays:
        """Return the mean over the cohort or over the population."""
        if self.settings.averaging == "cohort":
            return cohort_mean(sums, total_weight, arrays)
        return population_mean(
            sums, total_weight, self.settings.population_weight(self.cohorts), arrays
        )
