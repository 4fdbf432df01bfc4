"""FedLabel: the surer model labels an image, and a second loss where both models name the same class."""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fedssl.core.errors import InputError
from fedssl.methods import functional as pieces
from fedssl.methods.base import FORWARD, METHODS, Progress
from fedssl.methods.fedlabel import FedLabel, alike, sureness
from fedssl.methods.functional import mean_where
from tests.methods.examples import PROGRESS, batch_for, linear, state_of, stream

MEASURES = ["variance", "entropy"]


class Scripted(torch.nn.Module):
    """A network that predicts given probabilities for the weak view, as its weights, and others for other images.

    Args:
        weak: Probabilities of the weak view, (B, C); these are the weights that a received copy replaces.
        strong: Logits of every later pass, (B, C).
    """

    def __init__(self, weak, strong):
        super().__init__()
        self.weak = torch.nn.Parameter(torch.tensor(weak).log())
        self.strong = torch.nn.Parameter(torch.tensor(strong))

    def forward(self, images):
        return self.weak + 0 * images if (images == 0).all() else self.strong + 0 * images


SCRIPT = {
    "the local model is surer": ([0.9, 0.06, 0.04], [0.2, 0.6, 0.2], (0, 1, False)),
    "the received model is surer": ([0.4, 0.3, 0.3], [0.1, 0.8, 0.1], (1, 1, False)),
    "only the received model is confident": ([0.34, 0.33, 0.33], [0.0, 0.25, 0.75], (2, 1, False)),
    "nobody is confident": ([0.4, 0.35, 0.25], [0.3, 0.36, 0.34], (0, 0, False)),
    "both agree": ([0.7, 0.2, 0.1], [0.9, 0.05, 0.05], (0, 1, True)),
}
"""The own prediction, the received model's prediction, and what follows: the label, whether it counts, and agreement."""


def scripted(names=tuple(SCRIPT), **settings):
    """Return the method, and the arguments of its loss with which the models predict as the script says."""
    given = [SCRIPT[name] for name in names]
    strong = torch.randn(len(given), 3, generator=stream(3)).tolist()
    network = Scripted([row[0] for row in given], strong)
    received = Scripted([row[1] for row in given], strong)
    method = FedLabel(**{"threshold": 0.5, "warm_up": 0.0, **settings})
    views = (torch.zeros(len(given), 3), torch.ones(len(given), 3))
    batch = replace(batch_for(method, labeled=0, unlabeled=len(given)), unlabeled=views)
    return method, (network, batch, {"received": pieces.snapshot(received)}, PROGRESS)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", SCRIPT)
def test_the_surer_model_gives_the_label_if_it_reaches_the_threshold(name, measure):
    label, accepted, agreement = SCRIPT[name][2]
    method, arguments = scripted((name,), measure=measure)
    loss = method.loss(*arguments)
    assert loss.pseudo_labels.tolist() == [label]
    assert loss.accepted.tolist() == [accepted]
    assert loss.numbers["agreement"] == agreement


def test_the_loss_is_a_plain_loop_over_the_images():
    """CE is a mean over the accepted images; the divergence is a mean over those on which both models agree."""
    method, arguments = scripted(consistency_weight=0.3, unlabeled_weight=2.0)
    strong = arguments[0].strong.detach().double().log_softmax(1)
    learned, apart = [], []
    for (local, received, (label, accepted, agreement)), logs in zip(
        SCRIPT.values(), strong, strict=True
    ):
        if accepted:
            learned.append(-float(logs[label]))
        if accepted and agreement:
            mean = 1 / 3
            variances = [sum((p - mean) ** 2 for p in probs) for probs in (local, received)]
            divergence = sum(
                q * math.log(q / p) for p, q in zip(local, received, strict=True) if q > 0
            )
            apart.append(min(variances) / max(variances) * divergence)
    expected = 2.0 * (sum(learned) / len(learned) + 0.3 * sum(apart) / len(apart))
    assert (len(learned), len(apart)) == (4, 1)
    loss = method.loss(*arguments)
    assert float(loss.total.detach()) == pytest.approx(expected, rel=1e-5)
    assert loss.numbers["received_share"] == pytest.approx(3 / 5)


def test_the_second_loss_moves_the_own_weak_prediction_to_the_received_one():
    """KL(received || own) has the gradient own - received in the own logits, times the weight."""
    name = "both agree"
    method, arguments = scripted((name,), consistency_weight=0.3)
    method.loss(*arguments).total.backward()
    network = arguments[0]
    local, received = (torch.tensor([probs]) for probs in SCRIPT[name][:2])
    share = alike(sureness(local, "variance"), sureness(received, "variance"))
    assert torch.allclose(network.weak.grad, 0.3 * share * (local - received), atol=1e-6)
    assert network.strong.grad.abs().sum() > 0


def test_without_agreement_the_weak_view_gets_no_gradient():
    """The own prediction that makes the label is a constant."""
    method, arguments = scripted(("the local model is surer",))
    method.loss(*arguments).total.backward()
    assert arguments[0].weak.grad.abs().sum() == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_a_tie_goes_to_the_own_model(measure):
    own, other = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([[0.1, 0.3, 0.6]])
    assert torch.equal(sureness(own, measure), sureness(other, measure))
    nothing = [[0.0, 0.0, 0.0]]
    method, (_, batch, _, _) = scripted(("both agree",), measure=measure)
    state = {"received": pieces.snapshot(Scripted(other.tolist(), nothing))}
    loss = method.loss(Scripted(own.tolist(), nothing), batch, state, PROGRESS)
    assert loss.pseudo_labels.tolist() == [0]


@pytest.mark.parametrize("measure", MEASURES)
def test_the_surest_prediction_is_one_class_and_the_least_sure_is_even(measure):
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    half = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    even = torch.full((1, 4), 0.25)
    values = [float(sureness(probs, measure)) for probs in (one, half, even)]
    assert values[0] > values[1] > values[2] >= 0
    known = {"variance": [1 / 4, 1 / 12, 0], "entropy": [1e5, 1 / math.log(2), 1 / math.log(4)]}
    assert values == pytest.approx(known[measure], rel=1e-3, abs=1e-9)


def test_two_models_that_know_nothing_differ_by_nothing():
    """Both variances are 0, and 0 / 0 is not NaN."""
    zeros = torch.zeros(3)
    assert alike(zeros, zeros).tolist() == [0, 0, 0]
    assert alike(torch.tensor([0.1]), torch.tensor([0.4])).tolist() == pytest.approx([0.25])
    for measure in MEASURES:
        network = linear()
        with torch.no_grad():
            network.head.weight.zero_()
            network.head.bias.zero_()
        method = FedLabel(threshold=0, warm_up=0, measure=measure)
        state = state_of(method, copy.deepcopy(network))
        loss = method.loss(network, batch_for(method), state, PROGRESS)
        assert torch.isfinite(loss.total)
        loss.total.backward()
        assert all(torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_mean_over_nobody_is_nothing():
    values = torch.tensor([1.0, 2.0, 6.0])
    assert mean_where(values, torch.zeros(3)) == 0
    assert mean_where(values, torch.tensor([0.0, 1.0, 1.0])) == 4
    method, arguments = scripted(("nobody is confident",))
    total = method.loss(*arguments).total
    assert total == 0
    total.backward()
    assert all((p.grad == 0).all() for p in arguments[0].parameters())


@pytest.mark.parametrize(("round", "counts"), [(1, 0), (5, 0), (6, 1), (100, 1)])
def test_the_first_rounds_learn_the_labels_alone(round, counts):
    method = FedLabel(threshold=0, warm_up=0.05)
    network, given = linear(), batch_for(method)
    loss = method.loss(network, given, state_of(method, linear(1)), Progress(round, 100, 0, 10))
    assert loss.accepted.tolist() == [counts] * 12
    supervised = F.cross_entropy(network(given.labeled[0]), given.labels)
    assert torch.equal(loss.total, supervised) != bool(counts)


def test_the_work_of_a_step():
    """Two views with gradients, and the received model's weak view without."""
    assert FedLabel().images_per_step(8, 16) == pytest.approx(8 + 2 * 16 + 16 * FORWARD)


@pytest.mark.parametrize(
    ("field", "value"), [("measure", "margin"), ("threshold", 1.1), ("warm_up", -0.1)]
)
def test_settings_that_mean_nothing_are_refused(field, value):
    with pytest.raises(InputError, match=field):
        METHODS.build({"kind": "fedlabel", field: value})
