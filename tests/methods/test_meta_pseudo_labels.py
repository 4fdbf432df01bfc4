"""Meta Pseudo Labels: hard labels, the sign of the feedback, and which network each of the two steps moves."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedssl.methods.base import METHODS, Batch, Fresh, Progress
from fedssl.methods.functional import snapshot
from fedssl.methods.meta_pseudo_labels import (
    MetaPseudoLabels,
    StudentAndTeacher,
    feedback_loss,
    measured_loss,
)
from fedssl.models.base import Classifier
from fedssl.training.optimization import Train
from tests.helpers import small_experiment
from tests.methods.examples import PROGRESS, SPEC, batch, learner, linear, network_of, stream
from tests.training.test_loop import equal, shard, train_client  # noqa: F401

START = Progress(round=1, num_rounds=100, step=0, num_steps=10)


def gradient(logits, labels, feedback):
    logits = torch.tensor(logits, requires_grad=True)
    feedback_loss(logits, torch.tensor(labels), torch.tensor(feedback)).backward()
    return logits.grad


@pytest.mark.parametrize("h", [0.3, -2.0, 0.0])
def test_the_gradient_of_the_feedback(h):
    """Equal logits of two classes and label 0: h (p - one-hot) = h (-1/2, 1/2)."""
    assert torch.allclose(gradient([[0.0, 0.0]], [0], h), torch.tensor([[-0.5 * h, 0.5 * h]]))
    two = gradient([[0.0, 0.0], [0.0, 0.0]], [0, 1], h)
    assert torch.allclose(two, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) * h / 4)


def test_soft_labels_would_make_the_feedback_vanish():
    """The mistake of the official code: CE of a prediction with itself has the gradient p - p."""
    logits = torch.randn(5, 4, generator=stream(), dtype=torch.float64, requires_grad=True)
    F.cross_entropy(logits, logits.detach().softmax(1)).backward()
    assert logits.grad.abs().max() < 1e-15
    assert gradient([[1.0, -1.0, 2.0]], [2], 1.0).abs().max() > 0.1
    for labels in ("hard", "sampled"):
        network = network_of(MetaPseudoLabels())
        lesson = MetaPseudoLabels(labels=labels).teach(network.teacher, batch(), PROGRESS)
        assert not lesson.labels.is_floating_point()


# one step by hand: two classes, a student with one weight, and a teacher with a bias of its own


class Single(Classifier):
    """Logits (0, theta) for every image; theta is the difference of the logits of class 1 and class 0."""

    def __init__(self, theta=0.0):
        super().__init__(nn.Flatten(), nn.Identity(), 1)
        self.theta = nn.Parameter(torch.tensor(theta))

    def forward(self, images):
        return torch.stack([torch.zeros(len(images)), self.theta.expand(len(images))], 1)


def pair(student=0.0, teacher=1.0):
    return StudentAndTeacher(Single(student), Single(teacher))


def single_batch(label=1, labeled=1, unlabeled=1):
    images = torch.zeros(unlabeled, 1, 1, 1)
    return Batch(
        labeled=(torch.zeros(labeled, 1, 1, 1),), labels=torch.full((labeled,), label),
        labeled_ids=torch.zeros(labeled, dtype=torch.int64), unlabeled=(images, images),
        unlabeled_ids=torch.arange(unlabeled), generator=stream(),
    )  # fmt: skip


def stepper(network, method=None, state=None, progress=PROGRESS, lr=1.0):
    """Return a learner whose optimizers are plain gradient descent with one learning rate."""
    method = method or MetaPseudoLabels()
    one = learner(network, state or {}, progress=progress)
    one.optimizers = method.optimizers(network, lambda p: torch.optim.SGD(p, lr=lr))
    one.taken = []

    def descend(total, name):
        one.taken.append((name, float(total.detach())))
        one.optimizers[name].zero_grad()
        total.backward()
        one.optimizers[name].step()

    one.descend = descend
    return one


ALONE = {"unlabeled_weight": 0.0}
"""Without UDA's unlabeled part, the teacher learns from labels and from the feedback."""


def test_a_step_by_hand():
    """The teacher says 1, so the student moves from 0 to 1/2; its labeled loss falls from ln 2 = .6931 to .4741."""
    network = pair()
    one = stepper(network)
    loss = MetaPseudoLabels(**ALONE).step(one, single_batch())
    assert network.student.theta.item() == pytest.approx(0.5)
    assert measured_loss(Single(0.0), single_batch()) == pytest.approx(0.6931, abs=5e-5)
    assert measured_loss(Single(0.5), single_batch()) == pytest.approx(0.4741, abs=5e-5)
    assert float(loss.numbers["feedback"]) == pytest.approx(0.2191, abs=5e-5)
    first_order = (
        0.5 * 0.5
    )  # the product of the gradients at 0; at .5 the labeled gradient is .3775
    assert 0.5 * (1 - 1 / (1 + math.exp(-0.5))) == pytest.approx(0.1888, abs=5e-5)
    assert 0.1888 < float(loss.numbers["feedback"]) < first_order
    assert [name for name, _ in one.taken] == ["student", "teacher"]
    assert loss.pseudo_labels.tolist() == [1]
    assert loss.accepted.tolist() == [1]


@pytest.mark.parametrize(("label", "towards"), [(1, 1), (0, -1)])
def test_the_teacher_is_pushed_towards_labels_that_helped(label, towards):
    """It says 1. With label 1 that helped the student, and with label 0 it harmed: the sign of old - new."""
    with_h, without = pair(), pair()
    MetaPseudoLabels(**ALONE).step(stepper(with_h), single_batch(label))
    MetaPseudoLabels(**ALONE, feedback=False).step(stepper(without), single_batch(label))
    moved = (with_h.teacher.theta - without.teacher.theta).item()
    assert moved * towards > 0
    gain = float(measured_loss(Single(0.0), single_batch(label))) - float(
        measured_loss(Single(0.5), single_batch(label))
    )
    assert moved == pytest.approx(gain / (1 + math.e), rel=1e-4)  # h (1 - p), p = sigmoid(1)


def test_each_step_moves_one_network():
    method, network = MetaPseudoLabels(), network_of(MetaPseudoLabels())
    before = snapshot(network)
    one = stepper(network, lr=0.1)
    inner, seen = one.descend, []

    def descend(total, name):
        inner(total, name)
        seen.append((name, snapshot(network)))

    one.descend = descend
    method.step(one, batch())
    (first, after_student), (second, after_teacher) = seen
    assert (first, second) == ("student", "teacher")
    moved = {k for k in before if not torch.equal(before[k], after_student[k])}
    assert moved
    assert all(key.startswith("student.") for key in moved)
    moved = {k for k in before if not torch.equal(after_student[k], after_teacher[k])}
    assert moved
    assert all(key.startswith("teacher.") for key in moved)


def test_the_student_never_learns_from_labels_itself():
    """Its step is the same whatever the labels are."""
    students = []
    for labels in (torch.arange(4), torch.zeros(4, dtype=torch.int64)):
        network = network_of(MetaPseudoLabels())
        MetaPseudoLabels().step(stepper(network), dataclasses.replace(batch(), labels=labels))
        students.append(snapshot(network.student))
    assert equal(*students)


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_the_student_learns_from_the_strong_view_whichever_view_is_labeled(view):
    """Its step equals a step down the cross-entropy of the strong view, and the weak view would move it elsewhere."""
    method, given = MetaPseudoLabels(label_view=view), batch()
    network, by_hand = network_of(method), network_of(method)
    labels = method.step(stepper(network, method, lr=0.1), given).pseudo_labels
    weak, strong = given.unlabeled
    before = snapshot(by_hand.student)
    for images, is_same in ((weak, False), (strong, True)):
        by_hand.student.load_state_dict(before)
        by_hand.student.zero_grad()
        F.cross_entropy(by_hand.student(images), labels).backward()
        torch.optim.SGD(by_hand.student.parameters(), lr=0.1).step()
        assert equal(snapshot(network.student), snapshot(by_hand.student)) == is_same


def test_a_ramp_of_0_leaves_a_supervised_teacher():
    method = MetaPseudoLabels(ramp_up=0.5, feedback=False, threshold=0)
    network = network_of(method)
    lesson = method.teach(network.teacher, batch(), START)
    plain = F.cross_entropy(network.teacher(batch().labeled[0]), batch().labels)
    assert torch.equal(lesson.loss, plain)
    quarter = dataclasses.replace(START, round=26)
    whole = method.teach(network.teacher, batch(), PROGRESS).loss - plain
    half = method.teach(network.teacher, batch(), quarter).loss - plain
    assert float(half.detach()) == pytest.approx(float(whole.detach()) / 2, rel=1e-4)


def test_uda_by_hand():
    """Weak logits (0, 1) at T = .5 are (0, 2): .8808 passes .88 and not .89."""
    network = pair(teacher=1.0)
    soft = torch.tensor([0.0, 2.0]).softmax(0)
    given = single_batch(labeled=0)
    expected = -(soft * torch.tensor([0.0, 1.0]).log_softmax(0)).sum()
    for threshold, passes in ((0.88, 1), (0.89, 0)):
        method = MetaPseudoLabels(unlabeled_weight=3, temperature=0.5, threshold=threshold)
        lesson = method.teach(network.teacher, given, PROGRESS)
        assert float(lesson.loss.detach()) == pytest.approx(3 * passes * float(expected), rel=1e-5)


def test_the_weak_view_carries_no_gradient():
    method, network = MetaPseudoLabels(threshold=0), network_of(MetaPseudoLabels())
    given = batch(labeled=0)
    views = tuple(view.requires_grad_() for view in given.unlabeled)
    method.teach(
        network.teacher, dataclasses.replace(given, unlabeled=views), PROGRESS
    ).loss.backward()
    assert views[0].grad is None
    assert views[1].grad.abs().sum() > 0


@pytest.mark.parametrize("view", ["weak", "strong"])
def test_labels_are_of_the_view_that_is_chosen(view):
    network = network_of(MetaPseudoLabels())
    lesson = MetaPseudoLabels(label_view=view).teach(network.teacher, batch(), PROGRESS)
    images = batch().unlabeled[("weak", "strong").index(view)]
    assert torch.equal(lesson.labels, network.teacher(images).argmax(1))
    other = batch().unlabeled[("strong", "weak").index(view)]
    assert not torch.equal(lesson.labels, network.teacher(other).argmax(1))


def test_sampled_labels_follow_the_prediction():
    method = MetaPseudoLabels(labels="sampled")
    given = single_batch(unlabeled=4000)
    labels = method.teach(Single(1.0), given, PROGRESS).labels
    assert float(labels.float().mean()) == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)
    assert (MetaPseudoLabels().teach(Single(1.0), given, PROGRESS).labels == 1).all()


def test_the_moving_mean_is_subtracted_and_stays_at_the_client():
    """After the first step the mean is .01 h, so .99 h is left."""
    method = MetaPseudoLabels(**ALONE, baseline_decay=0.99)
    (slot,) = method.slots()
    assert slot.scope == "client"
    state = {"baseline": method.init_slot("baseline", Fresh(linear(), SPEC, None))}
    with_mean, without, none = pair(), pair(), pair()
    loss = method.step(stepper(with_mean, method, state), single_batch())
    MetaPseudoLabels(**ALONE).step(stepper(without), single_batch())
    MetaPseudoLabels(**ALONE, feedback=False).step(stepper(none), single_batch())
    h = float(loss.numbers["feedback"])
    assert float(state["baseline"]["mean"]) == pytest.approx(0.01 * h, rel=1e-4)
    full = (without.teacher.theta - none.teacher.theta).item()
    assert (with_mean.teacher.theta - none.teacher.theta).item() == pytest.approx(0.99 * full, 1e-3)
    assert MetaPseudoLabels().slots() == ()


def test_a_student_that_waits_does_not_move():
    method = MetaPseudoLabels(wait=0.1)
    waiting = dataclasses.replace(START, round=10)
    network = network_of(method)
    before = snapshot(network)
    loss = method.step(stepper(network, progress=waiting), batch())
    assert equal(
        snapshot(network.student), {k[8:]: v for k, v in before.items() if k[:8] == "student."}
    )
    assert not equal(snapshot(network), before)
    assert loss.accepted.sum() == 0
    method.step(stepper(network, progress=dataclasses.replace(START, round=11)), batch())
    assert not torch.equal(network.student.head.weight, before["student.head.weight"])


def test_a_client_without_labels_has_no_feedback():
    """Its student still learns, and its teacher moves as with h = 0."""
    networks = []
    for feedback in (True, False):
        method = MetaPseudoLabels(feedback=feedback, threshold=0)
        networks.append(network_of(method))
        before = snapshot(networks[-1])
        loss = method.step(stepper(networks[-1], lr=0.1), batch(labeled=0))
        assert torch.isfinite(loss.total)
        assert not loss.numbers
        for part in ("student", "teacher"):
            key = f"{part}.head.weight"
            assert not torch.equal(before[key], networks[-1].state_dict()[key])
    assert equal(*map(snapshot, networks))
    assert MetaPseudoLabels().can_learn(0)


def test_the_losses_before_and_after_draw_the_same_dropout_masks(shard):  # noqa: F811
    """With a student that does not move, h is exactly 0, whatever dropout does."""
    numbers = []

    class Still(MetaPseudoLabels):
        def step(self, learner, batch):
            descend = learner.descend
            learner.descend = lambda t, name: descend(t, name) if name == "teacher" else None
            try:
                loss = super().step(learner, batch)
            finally:
                learner.descend = descend
            numbers.append(float(loss.numbers["feedback"]))
            return loss

    model = small_experiment(model={"dropout": 0.5}).model
    train_client(Still(), shard, model=model)
    assert numbers == [0.0] * 3


def test_the_student_is_judged():
    method = MetaPseudoLabels()
    network = network_of(method)
    assert method.classifier(network) is network.student
    images = batch().unlabeled[0]
    assert torch.equal(network(images), network.student(images))
    assert torch.equal(network.features(images), network.student.features(images))


def test_both_networks_train_and_travel_with_clipping_and_half_precision(shard):  # noqa: F811
    for train in (
        Train(local_steps=3, batch_size=8, clip_norm=0.1),
        Train(local_steps=3, batch_size=8, precision="bf16"),
    ):
        trained, report = train_client(MetaPseudoLabels(), shard, train)
        assert report.num_steps == 3
        assert math.isfinite(report.loss)
        assert all(torch.isfinite(t).all() for t in trained.values())
        assert {key.partition(".")[0] for key in trained} == {"student", "teacher"}
        assert math.isfinite(report.numbers["feedback"])


def test_a_teacher_after_another_phase_starts_from_that_phases_classifier():
    method = MetaPseudoLabels()
    assert method.comes_from("teacher.trunk.0.weight") == "trunk.0.weight"
    assert method.comes_from("trunk.0.weight") == "trunk.0.weight"


def test_the_work_of_a_step():
    """B labeled images and mu B unlabeled ones; the student's two losses and the weak views need no gradient."""
    assert MetaPseudoLabels().images_per_step(6, 12) == pytest.approx(6 + 24 + (12 + 12) / 3)
    assert MetaPseudoLabels(feedback=False).images_per_step(6, 12) == pytest.approx(6 + 24 + 4)
    assert METHODS.build("meta_pseudo_labels").kind == "meta_pseudo_labels"
