"""Quality of pseudo-labels: the counts, and the shares that are known to be right."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.metrics.pseudo_labels import (
    PseudoLabelTally,
    Step,
    count_by_class,
    count_pseudo_labels,
    pseudo_label_accuracy,
    pseudo_label_coverage,
)


def test_images_of_unknown_class_are_accepted_or_not_but_never_right_or_wrong():
    """Five images: labeled; hidden and right; hidden and wrong; hidden, not accepted; of unknown class, half accepted."""
    tally = PseudoLabelTally(1, 4)
    tally.add(
        torch.tensor([0, 1, 2, 3, 4]),
        torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5]),
        torch.tensor([False, True, True, True, True]),
        torch.tensor([-1, 1, 0, 3, -1]),
    )
    ((considered, accepted, judged, right),) = tally.counts()
    assert (considered, accepted, judged, right) == (4, 2.5, 2, 1)
    assert pseudo_label_coverage(considered, accepted) == 2.5 / 4
    assert pseudo_label_accuracy(judged, right) == 0.5
    assert math.isnan(pseudo_label_accuracy(0.0, 0.0))
    assert math.isnan(pseudo_label_coverage(0.0, 0.0))


def test_an_image_with_a_label_is_never_judged_though_its_truth_is_known():
    """Three images of accepted pseudo-labels: labeled and right; labeled and wrong; hidden and right."""
    step = (
        torch.tensor([0, 1, 2]),
        torch.ones(3),
        torch.tensor([False, False, True]),
        torch.tensor([0, 2, 2]),
    )
    tally = PseudoLabelTally(1, 3)
    tally.add(*step)
    assert tally.counts() == [(1, 1, 1, 1)]
    assert tally.by_class() == [[0, 0, 1] * 4]


CLASSES = 3


@st.composite
def steps(draw):
    """Return (pseudo_labels, accepted, hidden, truth) of a step, each (clients, n)."""
    clients, n = draw(st.integers(1, 3)), draw(st.integers(0, 12))

    def column(values):
        return torch.tensor(draw(st.lists(values, min_size=clients * n, max_size=clients * n)))

    labels = column(st.integers(0, CLASSES - 1)).long()
    accepted = column(st.sampled_from([0.0, 0.1, 0.3, 1.0])).float()
    hidden, truth = column(st.booleans()).bool(), column(st.integers(-1, CLASSES - 1)).long()
    return tuple(x.view(clients, n) for x in (labels, accepted, hidden, truth))


def counted_one_by_one(step):
    """Count a step of one client as its definition says, example by example."""
    counts = {name: [0.0] * CLASSES for name in ("considered", "accepted", "predicted", "right")}
    for label, weight, is_hidden, truth in zip(*(x.tolist() for x in step), strict=True):
        if not is_hidden or truth < 0:
            continue
        counts["considered"][truth] += 1
        counts["accepted"][truth] += weight
        counts["predicted"][label] += weight
        counts["right"][truth] += weight if label == truth else 0
    return list(counts.values())


def arrays(step):
    return Step(*(column.numpy() for column in step))


@settings(deadline=None)
@given(steps())
def test_counts_by_class_are_those_of_a_naive_loop(step):
    counts = count_by_class(arrays(step), CLASSES)
    for client, own in enumerate(counts):
        assert own.tolist() == counted_one_by_one([column[client] for column in step])


@settings(deadline=None)
@given(steps())
def test_classes_add_up_to_the_totals(step):
    """Considered and accepted only where every truth is known: the totals hold the others too."""
    labels, accepted, hidden, truth = step
    known = labels, accepted, hidden, truth.clamp(min=0)
    for columns, has_all in ((step, False), (known, True)):
        considered, weight, judged, right = count_pseudo_labels(arrays(columns)).T
        of_classes = count_by_class(arrays(columns), CLASSES).sum(-1)
        np.testing.assert_allclose(of_classes[:, 1], judged)
        np.testing.assert_allclose(of_classes[:, 2], judged)
        np.testing.assert_allclose(of_classes[:, 3], right)
        if has_all:
            np.testing.assert_allclose(of_classes[:, 0], considered)
            np.testing.assert_allclose(of_classes[:, 1], weight)


@settings(deadline=None)
@given(steps(), steps())
def test_steps_counted_at_the_end_are_those_counted_one_by_one(first, second):
    clients = min(len(first[0]), len(second[0]))
    tally, alone = PseudoLabelTally(clients, CLASSES), PseudoLabelTally(1, CLASSES)
    for step in (first, second):
        tally.add(*(column[:clients] for column in step))
        alone.add(*(column[0] for column in step))
    expected = sum(count_by_class(arrays(step), CLASSES)[:clients] for step in (first, second))
    assert tally.by_class() == [pytest.approx(own.flatten().tolist()) for own in expected]
    # To the bit, because fused or not is only a matter of views.
    assert alone.by_class() == tally.by_class()[:1]
    assert alone.counts() == tally.counts()[:1]


def test_a_client_that_took_no_step_counted_nothing():
    assert PseudoLabelTally(2, CLASSES).by_class() == [[0.0] * 4 * CLASSES] * 2
    assert PseudoLabelTally(2, CLASSES).counts() == [(0.0,) * 4] * 2
