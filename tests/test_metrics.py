"""Quality of pseudo-labels: of what is counted, and of what is known to be right."""

import math

import torch

from fedssl.metrics.pseudo_labels import (
    PseudoLabelTally,
    pseudo_label_accuracy,
    pseudo_label_coverage,
)


def test_images_of_unknown_class_are_accepted_or_not_but_never_right_or_wrong():
    """Five images: labeled; hidden and right; hidden and wrong; hidden, not accepted; of unknown class, half accepted."""
    tally = PseudoLabelTally(torch.device("cpu"))
    tally.add(
        torch.tensor([0, 1, 2, 3, 4]),
        torch.tensor([1.0, 1.0, 1.0, 0.0, 0.5]),
        torch.tensor([False, True, True, True, True]),
        torch.tensor([-1, 1, 0, 3, -1]),
    )
    considered, accepted, judged, right = tally.counts()
    assert (considered, accepted, judged, right) == (4, 2.5, 2, 1)
    assert pseudo_label_coverage(considered, accepted) == 2.5 / 4
    assert pseudo_label_accuracy(judged, right) == 0.5
    assert math.isnan(pseudo_label_accuracy(0.0, 0.0))
    assert math.isnan(pseudo_label_coverage(0.0, 0.0))
