"""The example in the docstring of each family's base class does what it shows."""

import doctest
import inspect

import pytest

from fedssl.experiment.families import PLUGIN_SECTIONS
from fedssl.metrics.evaluators.base import FeatureEvaluator
from fedssl.strategies.base import Strategy
from fedssl.strategies.server_optimizer import ServerOptimizer
from fedssl.views.trackers.base import Tracker

BASES = {family.base for family in PLUGIN_SECTIONS.values()} | {
    Strategy,
    ServerOptimizer,
    FeatureEvaluator,
    Tracker,
}
"""The base class of every family, of server optimizers and of judges of features. Strategies and trackers stand above what
reads the experiment file, so their families do not know these classes."""


@pytest.mark.parametrize("base", sorted(BASES, key=lambda base: base.__name__))
def test_the_example_of_a_base_class_does_what_it_shows(base):
    (found,) = doctest.DocTestFinder(recurse=False).find(base, globs=vars(inspect.getmodule(base)))
    assert found.examples, f"{base.__name__} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found)
    assert result.failed == 0
