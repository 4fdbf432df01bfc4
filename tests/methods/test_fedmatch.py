"""FedMatch: two halves of the weights that never move each other, a vote with helpers, and an answer to a noise image."""

import copy
import math

import pytest
import torch
from torch import nn

from fedssl.core.errors import InputError
from fedssl.methods.base import Fresh
from fedssl.methods.fedmatch import FedMatch, noise_image, vote
from fedssl.methods.functional import predict, snapshot
from fedssl.methods.sigma_psi import SigmaAlone, SigmaPsi, key_of_psi
from fedssl.models.cnn import CNN
from fedssl.training.network import build_network
from tests.methods.examples import SPEC, batch, batch_for, learner, linear, state_of

LR = 0.1


def halves(network):
    """Return the parameters of sigma and of psi."""
    return (
        {n: p.detach().clone() for n, p in network.named_parameters() if n.startswith(half)}
        for half in ("sigma.", "psi.")
    )


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def training(method, network, **kwargs):
    """Return a learner whose descents take steps with momentum and with weight decay."""
    one = learner(network, state_of(method, network), **kwargs)

    def make(parameters):
        return torch.optim.SGD(parameters, lr=LR, momentum=0.9, weight_decay=0.1)

    one.optimizers = method.optimizers(network, make)

    def descend(total, name):
        one.optimizers[name].zero_grad()
        if total.requires_grad:
            total.backward()
            one.optimizers[name].step()

    one.descend = descend
    return one


def network_for(method, norm=False):
    return method.network(lambda: linear(norm=norm))


# the two halves


def test_psi_begins_as_a_share_of_sigma_and_the_classifier_is_their_sum():
    plain = linear(norm=True).eval()
    network = SigmaPsi(copy.deepcopy(plain), share=0.2, cutoff=0.0).eval()
    for name, sigma in network.sigma.named_parameters():
        assert torch.allclose(network.state_dict()[key_of_psi(name)], 0.2 * sigma)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter *= 1.2
    images = batch().unlabeled[0]
    assert torch.allclose(network(images), plain(images), atol=1e-5)
    assert torch.allclose(network.features(images), plain.features(images), atol=1e-5)


def test_running_statistics_exist_once():
    network = network_for(FedMatch(), norm=True).train()
    names = [name for name, _ in network.named_buffers()]
    assert names
    assert all(name.startswith("sigma.") for name in names)
    before = snapshot(network)
    network(batch().unlabeled[0])
    assert not torch.equal(
        before["sigma.trunk.2.running_mean"], network.sigma.trunk[2].running_mean
    )


@pytest.mark.parametrize("norm", [False, True])
def test_a_labeled_step_moves_sigma_only_and_an_unlabeled_step_psi_only(norm):
    method = FedMatch(threshold=0)
    network = network_for(method, norm)
    one, given = training(method, network), batch_for(method)
    sigma, psi = halves(network)
    one.descend(method.labeled_loss(network, given), "sigma")
    moved, still = halves(network)
    assert same(psi, still)
    assert not any(torch.equal(moved[name], sigma[name]) for name in sigma)
    one.descend(method.unlabeled_loss(network, given, {}).total, "psi")
    again, after = halves(network)
    assert same(moved, again)
    assert not any(torch.equal(after[name], psi[name]) for name in psi)


def test_gradients_of_a_loss_reach_one_half_only():
    """The losses themselves hold the other half constant, whatever optimizer follows."""
    method = FedMatch(threshold=0)
    for half in ("sigma", "psi"):
        network = network_for(method)
        given = batch_for(method)
        helpers = {
            n: torch.stack([p.detach() + 1] * 2) for n, p in network.sigma.named_parameters()
        }
        if half == "sigma":
            method.labeled_loss(network, given).backward()
        else:
            method.unlabeled_loss(network, given, helpers).total.backward()
        reached = {n.split(".")[0] for n, p in network.named_parameters() if p.grad is not None}
        assert reached == {half}


def test_a_step_takes_sigma_first_and_a_client_without_labels_leaves_sigma_alone():
    method = FedMatch(threshold=0)
    network = network_for(method)
    sigma, psi = halves(network)
    given = batch_for(method)
    loss = method.step(training(method, network), given)
    moved = snapshot(network)
    assert not any(torch.equal(moved[n], old) for n, old in (sigma | psi).items())
    by_hand = network_for(method)
    one = training(method, by_hand)
    first = method.labeled_loss(by_hand, given)
    one.descend(first, "sigma")
    second = method.unlabeled_loss(by_hand, given, {}).total
    one.descend(second, "psi")
    assert same(moved, snapshot(by_hand))
    assert float(loss.total.detach()) == pytest.approx(float((first + second).detach()))
    network = network_for(method)
    method.step(training(method, network), batch_for(method, labeled=0))
    assert same(sigma, snapshot(network))


def test_small_entries_of_psi_count_in_training_and_not_in_evaluation():
    network = SigmaPsi(linear(), share=0.2, cutoff=1e9)
    images = batch().unlabeled[0]
    network.train()
    assert not torch.equal(network(images), network.sigma(images))
    network.eval()
    assert torch.equal(network(images), network.sigma(images))
    assert SigmaPsi(linear(), 0.2, 0.0).eval().weights().keys() == network.weights().keys()


def test_the_server_trains_sigma_with_the_whole_classifier():
    method = FedMatch(labels="server")
    network = network_for(method)
    part = method.labeled_part(network)
    assert isinstance(part, SigmaAlone)
    assert {id(p) for p in part.parameters()} == {id(p) for p in network.sigma.parameters()}
    images = batch().unlabeled[0]
    assert torch.equal(part(images), network(images))
    part(images).sum().backward()
    assert all(p.grad is None for p in network.psi.parameters())
    assert all(p.grad is not None for p in network.sigma.parameters())
    names = [name for name, _ in network.named_parameters() if method.is_sent_back(name)]
    assert names == [name for name, _ in network.psi.named_parameters(prefix="psi")]
    assert all(map(FedMatch().is_sent_back, network.state_dict()))


def test_labels_at_the_server_ask_clients_for_none():
    method = FedMatch(labels="server")
    assert method.views().labeled == ()
    network = network_for(method)
    sigma, _ = halves(network)
    one = training(method, network)
    method.step(one, batch(method.views()))
    assert same(sigma, snapshot(network))
    assert method.images_per_step(5, 50) == pytest.approx(50 * (2 + 2 / 3))
    assert FedMatch().images_per_step(5, 50) == pytest.approx(5 + 50 * (2 + 2 / 3))


# the vote


def rows(*classes, confidence=0.6, num_classes=4):
    """Return predictions of one model for several images: a class and its probability each."""
    probs = torch.full((len(classes), num_classes), (1 - confidence) / (num_classes - 1))
    probs[range(len(classes)), list(classes)] = confidence
    return probs


def test_the_vote():
    """(1, 1, 2) is 1; three different votes tie, and the lowest class wins, or the most confident one."""
    models = [rows(1, 3), rows(1, 1), rows(2, 2, confidence=0.9)]
    assert vote(models).tolist() == [1, 1]
    assert vote(models, "confidence").tolist() == [1, 2]
    assert vote([rows(3)]).tolist() == [3]


def test_confidence_never_outweighs_a_vote():
    models = [rows(0, confidence=0.26), rows(0, confidence=0.26), rows(3, confidence=1.0)]
    assert vote(models, "confidence").tolist() == [0]


# the unlabeled loss


class Fixed(nn.Module):
    """Give the logits that images of two pixels are, plus a bias."""

    def __init__(self, bias):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, images):
        return images.flatten(1) + self.bias


def test_the_unlabeled_loss_by_hand():
    """Local p = (3/4, 1/4). Helpers say (1/2, 1/2) and (1/4, 3/4): both others vote 0 and 1, so 0 wins. p(strong) = 1/2.

    The second image, of probabilities 1/2, is not confident and does not count.
    """
    ln3 = math.log(3)
    network = SigmaPsi(Fixed([0.0, 0.0]), 0.0, 0.0)  # type: ignore[arg-type]
    method = FedMatch(threshold=0.7, consistency_weight=2.0, l1_weight=0.5, l2_weight=3.0)
    seen = torch.tensor([[ln3, 0.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    given = batch(method.views(), unlabeled=2)
    given = given.__class__(**{**vars(given), "unlabeled": (seen, torch.zeros(2, 1, 1, 2))})
    helpers = {"bias": torch.tensor([[-ln3, 0.0], [-2 * ln3, 0.0]])}
    found = method.unlabeled_loss(network, given, helpers)
    assert found.votes[0] == 0
    assert found.confident.tolist() == [1, 0]

    def kl(q):
        return sum(a * math.log(a / b) for a, b in zip(q, (0.75, 0.25), strict=True))

    expected = math.log(2) + (kl((0.5, 0.5)) + kl((0.25, 0.75))) / 2
    assert float(found.total.detach()) == pytest.approx(2 * expected, rel=1e-5)
    with torch.no_grad():
        network.psi["bias"] += torch.tensor([1.0, -2.0])
        network.sigma.bias += 1.0
    penalty = (
        method.unlabeled_loss(network, given, {}).total
        - method.model_copy(update={"l1_weight": 0.0, "l2_weight": 0.0})
        .unlabeled_loss(network, given, {})
        .total
    )
    assert float(penalty.detach()) == pytest.approx(0.5 * 3 + 3 * (0 + 9), rel=1e-5)


@pytest.mark.parametrize("labeled", [0, 4])
def test_nobody_confident_is_no_nan(labeled):
    method = FedMatch(threshold=1.0)
    network = network_for(method)
    given = batch_for(method, labeled=labeled)
    helpers = {n: p.detach()[None] for n, p in network.sigma.named_parameters()}
    found = method.unlabeled_loss(network, given, helpers)
    assert not found.confident.any()
    assert torch.isfinite(found.total)
    assert float(found.total.detach()) == pytest.approx(float(method._penalty(network).detach()))
    method.step(training(method, network), given)
    assert all(torch.isfinite(p).all() for p in network.parameters())


# helpers


def psi_of(networks):
    """Return what the strategy sends: psi of helpers, stacked."""
    names = [n for n in networks[0].state_dict() if n.startswith("psi.")]
    return {n: torch.stack([network.state_dict()[n] for network in networks]) for n in names}


def helped(method, network, helpers):
    one = training(method, network)
    one.extra = {"helpers": psi_of(helpers)} if helpers else {}
    method.begin(one)
    return one


def test_a_helper_is_the_received_sigma_and_its_psi_for_the_whole_round():
    method = FedMatch(threshold=0)
    network, other = network_for(method), method.network(lambda: linear(5))
    one = helped(method, network, [other])
    whole = copy.deepcopy(network)
    whole.psi.load_state_dict(other.psi.state_dict())
    images = batch().unlabeled[0]
    (found,) = method._predictions_of(one.state["helpers"], network, images)
    assert torch.allclose(found, predict(whole, images), atol=1e-6)
    method.step(one, batch_for(method))
    (later,) = method._predictions_of(one.state["helpers"], network, images)
    assert torch.equal(found, later)


def test_without_helpers_their_term_is_zero_and_the_client_votes_alone():
    method = FedMatch(threshold=0)
    network, given = network_for(method), batch_for(method)
    one = helped(method, network, [])
    assert one.state["helpers"] == {}
    found = method.unlabeled_loss(network, given, one.state["helpers"])
    assert torch.equal(found.votes, predict(network, given.unlabeled[0]).argmax(1))
    own = {n: w.detach()[None] for n, w in network.weights().items()}
    alone = method.unlabeled_loss(network, given, own)  # a helper that is the client itself
    assert float(found.total.detach()) == pytest.approx(float(alone.total.detach()), rel=1e-6)


def test_more_helpers_than_wanted_are_refused():
    method = FedMatch(num_helpers=1)
    network = network_for(method)
    with pytest.raises(InputError, match=r"method.num_helpers: is 1, but the strategy sends 2"):
        helped(method, network, [network, network])


# the answer to the noise image


def test_the_noise_image_is_the_same_everywhere_and_lies_in_the_range_of_images():
    first, second = noise_image(SPEC, torch.device("cpu")), noise_image(SPEC, torch.device("cpu"))
    assert torch.equal(first, second)
    pixels = first * SPEC.std[0] + SPEC.mean[0]
    assert pixels.min() >= 0
    assert pixels.max() <= 1
    assert len(pixels.unique()) == pixels.numel()  # no heaps at the ends


def test_a_client_answers_with_the_weights_that_it_has_trained():
    method = FedMatch(threshold=0)
    network = network_for(method, norm=True)
    one = training(method, network)
    before = method.init_slot("outputs", Fresh(network, SPEC, None))["probs"]
    assert before.tolist() == [0.0] * SPEC.num_classes
    method.step(one, batch_for(method))
    method.end(one)
    expected = predict(copy.deepcopy(network).eval(), noise_image(SPEC, torch.device("cpu")))[0]
    assert torch.equal(one.state["outputs"]["probs"], expected)
    assert network.training


def test_it_cannot_follow_a_phase_whose_weights_are_no_halves():
    with pytest.raises(InputError, match="two halves, and the last phase gives no such halves"):
        FedMatch().check_carried([], ["sigma.head.weight"])
    FedMatch().check_carried(["sigma.head.weight"], [])


def test_a_real_model_has_halves_too():
    model = CNN(widths=(4,), hidden=8, norm="batch")
    network = build_network(model, FedMatch(), SPEC, 0).eval()
    assert network(torch.zeros(2, 1, 4, 4)).shape == (2, 10)
    network = network.train()
    assert network(torch.randn(2, 1, 4, 4)).requires_grad
