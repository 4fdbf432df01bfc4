"""CTAugment: the weights follow how well images are recognized, and the views follow the weights."""

import pytest
import torch
from torch import Tensor

from fedssl.augment.base import Probe
from fedssl.augment.ctaugment import NUM_BINS, OPERATIONS, CTAugment

ROTATE, RESCALE, POSTERIZE, IDENTITY = (
    OPERATIONS.index(name) for name in ("rotate", "rescale", "posterize", "identity")
)


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def probe_of(operation: Tensor, bins: Tensor) -> Probe:
    return Probe(torch.empty(len(operation), 1, 4, 4), {"operation": operation, "bin": bins})


@pytest.fixture
def applied(monkeypatch):
    """Operations and levels that were handed to `_apply_`, one entry a turn."""
    drawn: list[tuple[Tensor, Tensor]] = []

    def spy(self, images, operation, levels):
        drawn.append((operation, levels))
        return images

    monkeypatch.setattr(CTAugment, "_apply_", spy)
    return drawn


@pytest.mark.parametrize(("threshold", "update"), [(0.80, 23), (0.85, 17)])
def test_a_bin_that_is_never_recognized_is_switched_off_in_time(threshold, update):
    """Fresh weights are 1, and .99^23 < .80 <= .99^22, .99^17 < .85 <= .99^16; its neighbor stays at 1."""
    policy = CTAugment(threshold=threshold)
    state = policy.initial()
    assert (state["weights"] == 1).all()
    hit = probe_of(torch.tensor([[ROTATE]]), torch.tensor([[[3, 0]]]))
    for number in range(1, update + 1):
        state = policy.learn(state, hit, torch.zeros(1))
        odds = policy.odds(state["weights"])[ROTATE, 0]
        assert (odds[3] == 0) == (number == update), number
    assert (odds == 1).sum() == 16
    assert state["weights"][ROTATE, 0, 4] == 1


def test_learning_is_one_update_a_choice_in_order():
    """Equal to the plain loop over images, operations and parameters; the state given is not written to."""
    policy = CTAugment(depth=2, decay=0.9)
    generator = stream(1)
    operation = torch.randint(len(OPERATIONS), (40, 2), generator=generator)
    operation[:8] = ROTATE
    operation[8:12] = RESCALE
    num_bins = torch.tensor(NUM_BINS)[operation]
    bins = (torch.rand(40, 2, 2, generator=generator) * num_bins).long()
    bins[:8] = bins[0]
    match = torch.rand(40, generator=generator)
    state = {"weights": torch.rand(len(OPERATIONS), 2, 17, generator=generator)}
    before = state["weights"].clone()
    expected = before.double()
    for image in range(40):
        for turn in range(2):
            for parameter in range(2):
                if num_bins[image, turn, parameter]:
                    at = int(operation[image, turn]), parameter, int(bins[image, turn, parameter])
                    expected[at] = 0.9 * expected[at] + (1 - 0.9) * float(match[image])
    learned = policy.learn(state, probe_of(operation, bins), match)
    assert torch.allclose(learned["weights"].double(), expected, atol=1e-6)
    assert torch.equal(state["weights"], before)
    assert learned["weights"].dtype == torch.float32


def test_places_without_a_bin_never_change():
    policy = CTAugment(depth=4)
    state, generator = policy.initial(), stream(2)
    for _ in range(20):
        probe = policy.probe(torch.rand(64, 1, 4, 4), generator, flips=False)
        state = policy.learn(state, probe, torch.zeros(64))
    exists = torch.arange(17) < torch.tensor(NUM_BINS).unsqueeze(2)
    assert (state["weights"][~exists] == 1).all()
    assert (state["weights"][exists] < 1).all()


def test_probes_are_even_over_operations_and_bins(applied):
    probe = CTAugment().probe(torch.zeros(19_000, 1, 2, 2), stream(3), flips=False)
    operation, bins = probe.chosen["operation"], probe.chosen["bin"]
    assert operation.shape == (19_000, 2)
    assert bins.shape == (19_000, 2, 2)
    assert ((torch.bincount(operation.flatten(), minlength=19) - 2000).abs() < 5 * 43.5).all()
    for name, counts in (("rotate", (17,)), ("posterize", (8,)), ("rescale", (17, 6))):
        rows = bins[operation == OPERATIONS.index(name)]
        for parameter, count in enumerate(counts):
            found = torch.bincount(rows[:, parameter], minlength=count)
            share = len(rows) / count
            assert len(found) == count
            assert ((found - share).abs() < 5 * share**0.5).all()
    assert not bins[operation == IDENTITY].any()
    for turn, (drawn, levels) in enumerate(applied):
        assert torch.equal(drawn, operation[:, turn])
        inside = levels[:, :2] * torch.tensor(NUM_BINS)[drawn]
        assert torch.equal(inside.long(), bins[:, turn])


def test_fresh_views_are_even_over_operations_and_levels(applied):
    CTAugment()(torch.zeros(19_000, 1, 2, 2), stream(4), flips=False)
    assert len(applied) == 2
    chosen, levels = (torch.cat(parts) for parts in zip(*applied, strict=True))
    assert ((torch.bincount(chosen, minlength=19) - 2000).abs() < 5 * 43.5).all()
    levels = levels[(chosen != IDENTITY)]
    share = len(levels) / 10
    for parameter in (0, 2, 3):
        assert ((torch.histc(levels[:, parameter], 10, 0, 1) - share).abs() < 5 * share**0.5).all()
    method = torch.bincount((levels[chosen[chosen != IDENTITY] == RESCALE][:, 1] * 6).long())
    assert ((method - 2000 / 6).abs() < 5 * 18).all()


def test_views_use_bins_in_proportion_and_none_below_the_threshold(applied):
    """Weights 2 : 1.8 : 1.5 of a best 2 at threshold .8: the third is off, the others are drawn 10 : 9."""
    policy = CTAugment(depth=1)
    weights = policy.initial()["weights"]
    weights[ROTATE, 0] = 0.5
    weights[ROTATE, 0, [2, 9, 16]] = torch.tensor([2.0, 1.8, 1.5])
    policy.show(torch.zeros(95_000, 1, 1, 1), stream(5), {"weights": weights}, flips=False)
    [(chosen, levels)] = applied
    bins = (levels[chosen == ROTATE][:, 0] * 17).long()
    counts = torch.bincount(bins, minlength=17)
    assert counts[2] + counts[9] == len(bins)
    assert abs(counts[2] / len(bins) - 10 / 19) < 5 * (0.25 / 5000) ** 0.5
    place = levels[chosen == ROTATE][:, 0] * 17 - bins
    assert ((torch.histc(place, 5, 0, 1) - 1000).abs() < 5 * 28.3 + 100).all()


def test_the_far_end_of_the_last_bin_is_still_inside(monkeypatch):
    """The largest number below 1, added to a bin's number, rounds up to the next."""
    weights = CTAugment().initial()["weights"]
    weights[RESCALE, 1, :5] = 0
    operation = torch.full((4, 2), RESCALE)
    largest = torch.full((4, 2, 4), 1 - 2**-24)
    monkeypatch.setattr(CTAugment, "_draw", lambda self, views, generator: (operation, largest))
    images = torch.rand(4, 1, 8, 8, generator=stream(7))
    state = {"weights": weights}
    assert CTAugment().show(images, stream(), state, flips=False).isfinite().all()
    probe = CTAugment().probe(images, stream(), flips=False)
    assert (probe.chosen["bin"] == torch.tensor([16, 5])).all()


def test_a_parameter_whose_weights_vanished_starts_anew():
    weights = torch.zeros(len(OPERATIONS), 2, 17)
    odds = CTAugment().odds(weights)
    assert odds[POSTERIZE, 0].tolist() == [1.0] * 8 + [0.0] * 9
    assert (odds.sum(2) > 0).all()


def test_views_end_with_a_cutout_of_fixed_size():
    policy = CTAugment(depth=0, weak={"translate": 0})
    views = policy(torch.zeros(400, 1, 16, 16), stream(6), flips=False)
    covered = (views == 0.5).flatten(1).sum(1)
    assert covered.max() <= 81  # 8 pixels wide at most 9 pixel centers
    assert (covered > 56).float().mean() > 0.2
    bare = policy.probe(torch.zeros(4, 1, 16, 16), stream(6), flips=False).views
    assert not bare.any()
