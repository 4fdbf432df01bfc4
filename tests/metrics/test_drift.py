"""Client drift equals the norm of a plain loop over all numbers, for every layout of the arrays."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.metrics.drift import update_norm, update_norms

SHAPES = {"conv": (4, 3, 2, 2), "bias": (4,), "scale": ()}


@st.composite
def models(draw):
    """Return weights before and after training at three clients, in single precision, and a counter of steps."""
    stream = np.random.default_rng(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([1e-6, 1.0, 1e6]))

    def model():
        weights = {n: np.float32(scale * stream.normal(size=s)) for n, s in SHAPES.items()}
        return {name: np.asarray(array) for name, array in weights.items()} | {
            "steps": np.array(stream.integers(100))
        }

    return model(), [model() for _ in range(3)]


def naive(before, after):
    changes = [
        float(new) - float(old)
        for name in SHAPES
        for old, new in zip(before[name].ravel(), after[name].ravel(), strict=True)
    ]
    return math.sqrt(math.fsum(change * change for change in changes))


@settings(deadline=None)
@given(models())
def test_it_is_the_norm_of_all_changes_in_double_precision(drawn):
    before, clients = drawn
    for after in clients:
        norm = update_norm(before, after)
        assert math.isclose(norm, naive(before, after), rel_tol=1e-12)
        assert update_norm(after, before) == norm
        assert update_norm(after, after) == 0


@settings(deadline=None)
@given(models())
def test_clients_in_a_stack_have_the_norms_of_each_alone(drawn):
    before, clients = drawn
    stacks = {name: np.stack([own[name] for own in clients]) for name in before}
    assert update_norms(before, stacks) == [update_norm(before, own) for own in clients]


@settings(deadline=None)
@given(models())
def test_neither_the_order_of_names_nor_the_layout_in_memory_changes_a_bit(drawn):
    before, (after, *_) = drawn
    norm = update_norm(before, after)
    turned = dict(reversed(after.items()))
    last = {name: np.asfortranarray(array) for name, array in after.items()}
    assert update_norm(before, turned) == update_norm(before, last) == norm
