"""Noisy Student: labels once a phase by the last phase's network, filtered, balanced, and learned under noise."""

import pytest
import torch
import torch.nn.functional as F

from fedssl.core.errors import InputError
from fedssl.methods.base import Fresh
from fedssl.methods.earlier import TEACHER
from fedssl.methods.functional import sharpen, snapshot
from fedssl.methods.noisy_student import LABELS, NoisyStudent, balanced_copies
from tests.methods.examples import PROGRESS, SPEC, batch, learner, linear, stream
from tests.methods.examples import shard as small_shard

IMAGES = 2 * torch.randn(12, *SPEC.shape, generator=stream(5))


def student(method, kept=None, network=None):
    """Return a client whose teacher is `linear(7)`; `kept` are the labels of an earlier round."""
    teacher = linear(7, norm=True).eval()
    network = network or linear(8, norm=True)
    fresh = Fresh(network, SPEC, small_shard(), teacher)
    state = {
        TEACHER: method.init_slot(TEACHER, fresh),
        LABELS: kept or method.init_slot(LABELS, fresh),
    }
    one = learner(network, state)
    one.previous = linear(9, norm=True).eval()  # its own weights mean nothing
    shown = []

    def show(view, ids=None, *, name):
        shown.append((view, ids.tolist()))
        yield ids, IMAGES[ids]

    one.show, one.shown = show, shown
    return one, teacher


def test_soft_labels_at_a_temperature():
    """p = (.8, .2), T = 2: square roots, normalized, are (.6667, .3333)."""
    assert sharpen(torch.tensor([[0.8, 0.2]]), 2.0)[0].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert sharpen(torch.tensor([[1.0, 0.0]]), 2.0)[0].tolist() == [1, 0]


def copies_of(counts, per_class, seed=0):
    """Return the copies of images whose classes have these counts; the later an image of a class, the more confident."""
    classes = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    confidence = torch.cat([torch.arange(n) / 100 + 0.5 for n in counts])
    kept = torch.ones_like(classes, dtype=torch.bool)
    return balanced_copies(classes, confidence, kept, per_class, stream(seed)).tolist()


def test_few_images_are_repeated():
    """3 candidates: n = 6 gives each twice; n = 7 gives each twice, and once more with probability 1/3."""
    assert copies_of([3], 6) == [2, 2, 2]
    drawn = torch.tensor([copies_of([3], 7, seed) for seed in range(400)])
    assert set(drawn.unique().tolist()) == {2, 3}
    assert drawn.float().mean(0).tolist() == pytest.approx([7 / 3] * 3, abs=0.08)


def test_of_many_images_the_most_confident_stay():
    assert copies_of([5], 2) == [0, 0, 0, 1, 1]
    assert copies_of([2], 2) == [1, 1]


def test_a_class_without_candidates_has_none():
    assert copies_of([2, 0, 1], 2) == [1, 1, 2]
    nobody = torch.zeros(3, dtype=torch.bool)
    classes = torch.tensor([0, 1, 2])
    assert balanced_copies(classes, torch.rand(3), nobody, 5, stream()).tolist() == [0, 0, 0]
    empty = torch.zeros(0, dtype=torch.int64)
    assert balanced_copies(empty, torch.zeros(0), empty.bool(), 5, stream()).tolist() == []


def test_the_teacher_labels_unaugmented_images_in_evaluation_mode():
    method = NoisyStudent(threshold=0)
    one, teacher = student(method)
    before = snapshot(one.network), snapshot(one.previous)
    method.begin(one)
    assert one.shown == [("plain", list(range(4, 12)))]
    probs = one.state[LABELS]["probs"]
    assert torch.allclose(probs[4:], teacher(IMAGES[4:]).softmax(1))
    assert torch.allclose(probs[:4], torch.tensor(0.1))  # these have given labels
    assert not probs.requires_grad
    for kept, now in zip(before, (snapshot(one.network), snapshot(one.previous)), strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_images_are_labeled_once_a_phase():
    """A later round, with another student, shows no image and has the same labels; two first rounds agree."""
    method = NoisyStudent(threshold=0.1, per_class=2)
    one, _ = student(method)
    method.begin(one)
    kept = {name: tensor.clone() for name, tensor in one.state[LABELS].items()}
    later, _ = student(method, kept=dict(one.state[LABELS]), network=linear(3, norm=True))
    method.begin(later)
    assert later.shown == []
    again, _ = student(method, network=linear(4, norm=True))
    method.begin(again)
    for labels in (later.state[LABELS], again.state[LABELS]):
        assert all(torch.equal(labels[name], kept[name]) for name in kept)
    assert {slot.name: slot.scope for slot in method.slots()} == {
        TEACHER: "phase",
        LABELS: "client",
    }


def test_only_confident_labels_are_learned():
    one, teacher = student(NoisyStudent())
    confidence = teacher(IMAGES[4:]).softmax(1).amax(1)
    middle = confidence.sort().values[3].item()
    method = NoisyStudent(threshold=middle)
    method.begin(one)
    chosen = method.pools(one)
    assert chosen.unlabeled.tolist() == [4 + i for i in range(8) if confidence[i] > middle]
    assert len(chosen.unlabeled) == 4
    assert chosen.labeled.tolist() == [0, 1, 2, 3]
    unsure, _ = student(NoisyStudent(threshold=1))
    NoisyStudent(threshold=1).begin(unsure)
    assert len(NoisyStudent(threshold=1).pools(unsure).unlabeled) == 0


def test_copies_stand_in_the_pool_as_often():
    method = NoisyStudent(threshold=0, per_class=6)
    one, _ = student(method)
    method.begin(one)
    drawn = method.pools(one).unlabeled.bincount(minlength=12)
    assert torch.equal(drawn, one.state[LABELS]["copies"])
    assert drawn.max() > 1


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_the_loss_by_hand(targets):
    """Smoothing is for given and hard labels; soft labels have their temperature instead."""
    method = NoisyStudent(targets=targets, temperature=2.0, label_smoothing=0.2, unlabeled_weight=3)
    one, _ = student(method)
    method.begin(one)
    network, given = linear(8), batch(method.views())
    loss = method.loss(network, given, one.state, PROGRESS)
    probs = one.state[LABELS]["probs"]
    logits = network(given.unlabeled[0])
    if targets == "soft":
        taught = -(sharpen(probs, 2.0) * logits.log_softmax(1)).sum(1)[4:]
    else:
        taught = F.cross_entropy(logits, probs.argmax(1), label_smoothing=0.2, reduction="none")[4:]
    part = given.__class__(
        given.labeled, given.labels, given.labeled_ids, (given.unlabeled[0][4:],),
        given.unlabeled_ids[4:], given.generator,
    )  # fmt: skip
    supervised = F.cross_entropy(network(given.labeled[0]), given.labels, label_smoothing=0.2)
    total = method.loss(network, part, one.state, PROGRESS).total
    assert total.item() == pytest.approx((supervised + 3 * taught.mean()).item(), rel=1e-5)
    assert loss.pseudo_labels.tolist() == probs.argmax(1).tolist()
    assert loss.accepted.tolist() == [1] * 12


def test_a_client_without_labels_or_without_confident_labels_learns_from_the_rest():
    method = NoisyStudent()
    one, _ = student(method)
    method.begin(one)
    for labeled, unlabeled in ((0, 12), (4, 0), (0, 0)):
        given = batch(method.views(), labeled=labeled, unlabeled=unlabeled)
        loss = method.loss(linear(8), given, one.state, PROGRESS)
        assert torch.isfinite(loss.total)
        assert loss.total.requires_grad == (labeled + unlabeled > 0)


def test_a_student_starts_from_scratch_or_from_its_teacher():
    assert NoisyStudent().comes_from("trunk.0.weight") is None
    assert NoisyStudent(start="teacher").comes_from("trunk.0.weight") == "trunk.0.weight"


def test_noise_is_strong_views_of_both_batches():
    views = NoisyStudent(unlabeled_ratio=3).views()
    assert (views.labeled, views.unlabeled, views.ratio) == (("strong",), ("strong",), 3)
    weak = NoisyStudent(labeled_view="weak", unlabeled_view="weak").views()
    assert (weak.labeled, weak.unlabeled) == (("weak",), ("weak",))


def test_the_first_phase_has_no_teacher():
    with pytest.raises(InputError, match=r"method\.kind.*first phase.*\[\[phases\]\]"):
        NoisyStudent().init_slot(TEACHER, Fresh(linear(), SPEC, None))
