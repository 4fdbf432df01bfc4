"""Methods that go on from the network of an earlier phase: the teacher of distillation, and fine-tuning."""

import math

import pytest
import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core.errors import InputError
from fedssl.methods.base import FORWARD, METHODS, Fresh
from fedssl.methods.distill import ANSWERS, Distill, distillation_loss
from fedssl.methods.earlier import TEACHER, teacher_logits, teacher_weights
from fedssl.methods.fine_tune import FineTune, body_and_output
from fedssl.methods.functional import snapshot
from fedssl.methods.simclr import SimCLR
from fedssl.methods.supervised import Supervised
from fedssl.models.base import as_classifier
from fedssl.models.cnn import CNN
from fedssl.training.loop import fit
from fedssl.training.network import NetworkSection, build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe
from tests.methods.examples import (
    NEEDS_EARLIER_PHASE,
    PROGRESS,
    SPEC,
    batch,
    learner,
    linear,
    shard,
    stream,
)

MODEL = CNN(widths=(4,), hidden=8)


def previous_of(method=None, model=MODEL):
    return NetworkSection.of(model, method or Supervised(), None)


def built(method, previous):
    return build_network(MODEL, method, SPEC, 0, previous=previous)


# distillation


def test_distillation_by_hand():
    """t = [0, 0], s = [ln 3, 0]: p_t = [.5, .5], p_s = [.75, .25], CE = -(ln .75 + ln .25) / 2 = .8370."""
    student = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss = distillation_loss(torch.zeros(1, 2), student, 1.0)
    loss.backward()
    assert loss.item() == pytest.approx(0.8370, abs=5e-5)
    assert student.grad.tolist() == [[pytest.approx(0.25), pytest.approx(-0.25)]]


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_a_student_that_answers_as_its_teacher_does_not_move(tau):
    logits = torch.tensor([[1.5, -0.25, 0.5], [0.0, 2.0, 0.0]])
    student = logits.clone().requires_grad_()
    distillation_loss(logits, student, tau).backward()
    assert torch.count_nonzero(student.grad) == 0


def test_the_gradient_keeps_its_size_at_high_temperatures():
    """For large tau it tends to (z_s - z_t) / C over centered logits (Hinton et al. 2015, equation 4)."""
    teacher, student = torch.zeros(1, 2), torch.tensor([[0.5, -0.5]], requires_grad=True)
    distillation_loss(teacher, student, 1000.0).backward()
    assert student.grad[0].tolist() == pytest.approx([0.25, -0.25], abs=1e-3)


def test_no_gradient_flows_into_the_teacher():
    teacher = torch.zeros(2, 3, requires_grad=True)
    distillation_loss(teacher, torch.ones(2, 3, requires_grad=True), 2.0).backward()
    assert teacher.grad is None


def test_temperature_softens_the_teacher():
    """tau = 2, t = [2 ln 3, 0]: p_t = [.75, .25]; s = 0: CE = ln 2, times 4."""
    loss = distillation_loss(torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2), 2.0)
    assert loss.item() == pytest.approx(4 * math.log(2))


def distilling(method=None, norm=True):
    """Return a learner in whose phase slot is a teacher of known weights, and that teacher."""
    method = method or Distill()
    teacher = linear(seed=7, norm=norm).eval()
    network = linear(seed=8, norm=norm)
    held = teacher_weights("distill", Fresh(network, SPEC, None, teacher))
    own = learner(network, {TEACHER: held, ANSWERS: {}})
    own.previous = linear(seed=9, norm=norm).eval()
    return method, own, teacher


def test_the_teacher_is_asked_in_evaluation_mode_and_does_not_change():
    method, own, teacher = distilling()
    before = snapshot(own.previous), {k: v.clone() for k, v in own.state[TEACHER].items()}
    given = batch(method.views())
    answers = teacher_logits(own, given.unlabeled[0])
    assert torch.equal(answers, teacher(given.unlabeled[0]))
    assert not answers.requires_grad
    one = teacher_logits(own, given.unlabeled[0][:1])
    assert torch.allclose(
        one[0], answers[0]
    )  # batch statistics would make one image's answer 0 / 0
    assert teacher_logits(own, given.unlabeled[0][:0]).shape == (0, 10)
    for kept, now in zip(before, (snapshot(own.previous), own.state[TEACHER]), strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_a_step_asks_the_teacher_about_the_students_own_view():
    method, own, teacher = distilling()
    given = batch(method.views())
    loss = method.step(own, given)
    expected = distillation_loss(teacher(given.unlabeled[0]), own.network(given.unlabeled[0]), 1.0)
    assert loss.total.item() == pytest.approx(expected.item(), rel=1e-5)


def test_labels_have_the_weight_that_the_teacher_leaves_them():
    method, own, teacher = distilling(Distill(distill_weight=0.25, temperature=2.0), norm=False)
    given = batch(method.views())
    assert method.views().labeled == ("weak",)
    total = method.step(own, given).total
    images, labeled = given.unlabeled[0], given.labeled[0]
    distilled = distillation_loss(teacher(images), own.network(images), 2.0)
    supervised = nn.functional.cross_entropy(own.network(labeled), given.labels)
    assert total.item() == pytest.approx(
        float((0.25 * distilled + 0.75 * supervised).detach()), rel=1e-5
    )
    assert Distill().views().labeled == ()


def test_the_teachers_passes_count_as_passes_without_gradients():
    assert Distill().images_per_step(8, 21) == pytest.approx(21 * (1 + FORWARD))
    assert Distill(distill_weight=0.5).images_per_step(8, 21) == pytest.approx(
        8 + 21 * (1 + FORWARD)
    )


def test_a_student_starts_from_scratch_or_as_a_copy_of_its_teacher():
    student = built(Distill(), previous_of())
    assert Distill().comes_from("trunk.0.weight") is None
    assert student.state_dict().keys() == built(Supervised(), None).state_dict().keys()
    copied = Distill(start="teacher")
    deeper = NetworkSection.of(MODEL, FineTune(), previous_of(SimCLR()))
    network = built(copied, deeper)
    assert any(name.startswith("head.layer.") for name in network.state_dict())
    assert all(copied.comes_from(name) == name for name in network.state_dict())
    assert all(parameter.requires_grad for parameter in network.parameters())


# fine-tuning


def test_it_goes_on_from_the_first_layer_of_the_projection_head():
    """SimCLR v2: the layer stays, with its normalization and its ReLU, and the output layer starts at 0."""
    before = previous_of(SimCLR(projection=(12, 6)))
    network = built(FineTune(), before)
    layer, output = network.head.layer, network.head.output
    assert [type(part).__name__ for part in layer] == ["Linear", "BatchNorm", "ReLU"]
    assert output.weight.shape == (10, 12)
    assert torch.count_nonzero(output.weight) == torch.count_nonzero(output.bias) == 0
    assert torch.count_nonzero(network(torch.randn(3, 1, 4, 4))) == 0
    names = {name: FineTune().comes_from(name) for name in network.state_dict()}
    last = before.build(SPEC, 0)
    trunk = {name for name in last.classifier.state_dict() if name.startswith("trunk.")}
    layers = {name for name in last.network.state_dict() if name.startswith("projection.0.")}
    sources = {s[0] if isinstance(s, tuple) else s for s in names.values()}
    assert sources - {None} == trunk | layers
    assert {name for name, source in names.items() if source is None} == {
        "head.output.weight", "head.output.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("start", "before"), [("backbone", SimCLR()), (None, Supervised()), ("backbone", Supervised())]
)
def test_it_goes_on_from_the_features(start, before):
    network = built(FineTune(start=start), previous_of(before))
    assert isinstance(network.head, nn.Linear)
    assert torch.count_nonzero(network.head.weight) == torch.count_nonzero(network.head.bias) == 0
    assert FineTune().comes_from("head.weight") is None
    assert FineTune().comes_from("trunk.0.weight") == "trunk.0.weight"


def test_without_a_projection_head_there_is_no_layer_of_it():
    with pytest.raises(InputError, match=r"method\.start.*no projection head"):
        built(FineTune(start="projection"), previous_of())


class Scaled(nn.Module):
    """A network that scales what its last linear layer returns, so that the layer does not make the logits."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 10)

    def forward(self, images):
        return 2 * self.linear(images.flatten(1))


@pytest.mark.parametrize("start", ["backbone", "projection", None])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_without_an_output_layer_is_refused_by_its_name(start, frozen):
    """Nothing would start at 0, and a frozen network would have nothing to train."""
    method, before = FineTune(start=start, frozen=frozen), previous_of(SimCLR()).build(SPEC, 0)
    with pytest.raises(InputError, match=r"^model\.kind.*a Scaled without an output layer"):
        method.network_after(lambda: as_classifier(Scaled(), SPEC.shape), before)


def test_a_frozen_network_learns_by_its_output_layer_alone():
    method = FineTune(frozen=True, start="projection")
    network = built(method, previous_of(SimCLR(projection=(12, 6))))
    (optimizer,) = method.optimizers(network, lambda p: torch.optim.SGD(p, lr=0.1)).values()
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    output = body_and_output(network)[1]
    assert trained == {id(p) for p in output.parameters()}
    network.train()
    own = learner(network, {})
    method.begin(own)
    before = snapshot(network)
    loss = method.loss(network, batch(method.views()), {}, PROGRESS).total
    loss.backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all((p.grad is not None) == (id(p) in trained) for p in network.parameters())
    assert FineTune(frozen=True).images_per_step(9, 0) == pytest.approx(9 * FORWARD)
    empty = method.loss(network, batch(method.views(), labeled=0), {}, PROGRESS)
    assert float(empty.total) == 0


@pytest.mark.parametrize("norm", ["static", "batch"])
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_a_round_of_a_frozen_network_moves_its_output_layer_alone(norm, ema_decay):
    """Statistics of the trunk and of the projection head's layer stay as the last phase measured them."""
    method, model = FineTune(frozen=True), CNN(norm=norm, widths=(4,), hidden=8)
    before = previous_of(SimCLR(projection=(12, 6)), model)
    network = build_network(model, method, SPEC, 0, previous=before)
    own, start = shard(), snapshot(network)
    own.images.random_(generator=stream())
    train = Train(local_steps=3, batch_size=4, ema_decay=ema_decay)
    report = fit(
        network, own, Recipe(method, train, Augment()), {},
        seed=0, server_round=1, client=0, phase_round=1, phase_rounds=1,
    )  # fmt: skip
    assert report.num_steps == 3
    moved = {n for n, t in network.state_dict().items() if not torch.equal(t, start[n])}
    assert moved == {"head.output.weight", "head.output.bias"}


def test_the_whole_network_learns():
    method = FineTune()
    network = built(method, previous_of(SimCLR(projection=(12, 6))))
    with torch.no_grad():
        network.head.output.weight.normal_()
    method.loss(network, batch(method.views()), {}, PROGRESS).total.backward()
    assert all(p.grad is not None for p in network.parameters())


# both


@pytest.mark.parametrize("kind", sorted(NEEDS_EARLIER_PHASE))
def test_none_of_them_can_be_the_first_phase(kind):
    method = METHODS.build(kind)
    phase = [slot.name for slot in method.slots() if slot.scope == "phase"]
    with pytest.raises(InputError, match=r"method\.kind.*first phase.*\[\[phases\]\]"):
        _ = [
            method.init_slot(name, Fresh(linear(), SPEC, None)) for name in phase
        ] or method.network(linear)
