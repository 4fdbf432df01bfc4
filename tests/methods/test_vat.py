"""Virtual adversarial training finds the direction that matters."""

import pytest
import torch

from fedssl.methods.functional import entropy, kl_divergence
from fedssl.methods.vat import VAT
from tests.methods.examples import PROGRESS, batch_for, linear, stream


def test_the_push_has_the_length_it_should():
    network, images = linear(), torch.randn(12, 1, 4, 4, generator=stream())
    probs = network(images).softmax(1).detach()
    direction = VAT().worst_direction(network, images, probs, stream(1))
    assert torch.allclose(direction.flatten(1).norm(dim=1), torch.ones(12), atol=1e-5)


def test_a_push_as_small_as_the_papers_is_rounded_away():
    """Why the default xi is not 1e-6: in single precision some images get no direction at all."""
    network, images = linear(), torch.randn(12, 1, 4, 4, generator=stream())
    probs = network(images).softmax(1).detach()
    direction = VAT(xi=1e-6).worst_direction(network, images, probs, stream(1))
    assert direction.isfinite().all()
    assert direction.flatten(1).norm(dim=1).min() < 0.5


def test_the_direction_beats_chance():
    """The push changes predictions several times as much as random ones of its length do."""
    network, images = linear(), torch.randn(64, 1, 4, 4, generator=stream())
    probs = network(images).softmax(1).detach()
    direction = VAT(power_iterations=3).worst_direction(network, images, probs, stream(1))

    def change(push):
        return float(kl_divergence(probs, network(images + 0.1 * push)).mean().detach())

    randoms = []
    for seed in range(5):
        push = torch.randn(64, 16, generator=stream(seed + 5))
        push = torch.nn.functional.normalize(push, dim=1).view(64, 1, 4, 4)
        randoms.append(change(push))
    assert change(direction) > 3 * sum(randoms) / 5


def test_the_loss_is_the_sum_of_its_terms():
    method = VAT(unlabeled_weight=2.0, entropy_weight=3.0)
    network, given = linear(), batch_for(VAT(), labeled=0)
    images = given.unlabeled[0]
    logits = network(images)
    probs = logits.softmax(1).detach()
    push = 6 * method.worst_direction(network, images, probs, stream(1))
    adversarial = kl_divergence(probs, network(images + push)).mean()
    expected = 2 * adversarial + 3 * entropy(logits).mean()
    found = method.loss(network, given, {}, PROGRESS).total
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)


def test_no_gradient_into_the_clean_prediction():
    """Without the entropy term, the gradient is that of a plain distance to fixed targets."""
    method = VAT(unlabeled_weight=1.0, entropy_weight=0.0)
    network, given = linear(), batch_for(VAT(), labeled=0)
    images = given.unlabeled[0]
    method.loss(network, given, {}, PROGRESS).total.backward()
    ours = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    probs = network(images).softmax(1).detach()
    push = 6 * method.worst_direction(network, images, probs, stream(1))
    kl_divergence(probs, network(images + push)).mean().backward()
    for mine, p in zip(ours, network.parameters(), strict=True):
        assert torch.allclose(mine, p.grad, atol=1e-6)


def test_looking_for_the_direction_leaves_batch_statistics_alone():
    method, network = VAT(), linear(norm=True).train()
    given = batch_for(VAT())
    method.loss(network, given, {}, PROGRESS)
    assert network[2].num_batches_tracked == 2  # the labeled and the clean unlabeled pass
