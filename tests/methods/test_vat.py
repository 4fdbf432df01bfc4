"""Virtual adversarial training finds the direction that changes the predictions most."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from fedssl.methods.functional import entropy, kl_divergence
from fedssl.methods.vat import VAT
from fedssl.models.cnn import CNN
from tests.methods.examples import PROGRESS, batch_for, linear, stream


def convolutional(dtype):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CNN(widths=(8, 16), hidden=32).build((1, 8, 8), 10).to(dtype)


def direction(xi, dtype=torch.float32):
    network = convolutional(dtype)
    images = torch.randn(32, 1, 8, 8, generator=stream()).to(dtype)
    probs = network(images).softmax(1).detach()
    # The first direction is drawn in single precision for both, or they would start apart.
    first = torch.empty(images.shape).normal_(generator=stream(1)).to(dtype)
    with mock.patch.object(torch.Tensor, "normal_", return_value=first):
        return VAT(xi=xi).worst_direction(network, images, probs, stream(1))


def test_half_precision_finds_the_direction_too():
    truth = direction(1e-6, torch.float64)
    network = convolutional(torch.float32)
    images = torch.randn(32, 1, 8, 8, generator=stream())
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            probs = network(images).float().softmax(1).detach()
            found = VAT().worst_direction(network, images, probs, stream(1))
        cosine = (found.double() * truth).flatten(1).sum(1)
        assert float(cosine.median()) > 0.99


def test_more_power_iterations_find_a_worse_direction():
    network, images = linear(), torch.randn(64, 1, 4, 4, generator=stream())
    probs = network(images).softmax(1).detach()
    changes = []
    for count in (1, 4):
        push = VAT(power_iterations=count).worst_direction(network, images, probs, stream(1))
        changes.append(float(kl_divergence(probs, network(images + 0.1 * push)).mean().detach()))
    assert changes[1] > 1.02 * changes[0]


def test_the_push_has_the_length_it_should():
    assert torch.allclose(direction(1e-2).flatten(1).norm(dim=1), torch.ones(32), atol=1e-5)


def test_single_precision_finds_the_direction_that_double_precision_finds():
    """With our xi; with the paper's the push is rounded away, which is why it is not the default."""
    truth = direction(1e-6, torch.float64)

    def cosine(found):
        return float((found.double() * truth).flatten(1).sum(1).median())

    assert cosine(direction(VAT().xi)) > 0.99
    assert cosine(direction(1e-6)) < 0.5


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
    assert network.trunk[2].num_batches_tracked == 2  # the labeled and the clean unlabeled pass


def with_dropout(p=0.5):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CNN(widths=(8, 16), hidden=32, dropout=p).build((1, 8, 8), 10)


def found_under_one_mask(method, network, dtype=None):
    """Return the direction that the loss pushes in, and the one that a network with the loss's own mask has."""
    images = torch.randn(32, 1, 8, 8, generator=stream())
    given = replace(batch_for(method, labeled=0), unlabeled=(images,), generator=stream(1))
    pushes = []
    search = VAT.worst_direction

    def note(*args):
        pushes.append(search(*args))
        return pushes[-1]

    with torch.random.fork_rng(), mock.patch.object(VAT, "worst_direction", note):
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            method.loss(network, given, {}, PROGRESS)

    def logits_of(shown):
        torch.manual_seed(7)
        return network(shown)

    with torch.random.fork_rng():
        probs = logits_of(images).softmax(1).detach()
        expected = method.worst_direction(logits_of, images, probs, stream(1))
    return pushes[0], expected


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_all_passes_share_one_dropout_mask(dtype):
    found, expected = found_under_one_mask(VAT(), with_dropout(), dtype)
    cosine = (found * expected).flatten(1).sum(1)
    assert float(cosine.median()) > 0.9


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_push_changes_nothing_under_dropout(dtype):
    """Where the push has no length, the adversarial loss is 0: the masks of the passes are the same."""
    method = VAT(epsilon=1e-12, unlabeled_weight=1.0, entropy_weight=0.0)
    images = torch.randn(32, 1, 8, 8, generator=stream())
    given = replace(batch_for(method, labeled=0), unlabeled=(images,), generator=stream(1))
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        loss = method.loss(with_dropout(), given, {}, PROGRESS)
    assert abs(float(loss.total.detach())) < 1e-6


def test_the_search_starts_where_the_divergence_is_nothing():
    """With xi towards 0 the divergence under the pass that finds the direction is 0."""
    divergences = []

    def note(probs, logits):
        divergences.append(kl_divergence(probs, logits))
        return divergences[-1]

    method = VAT(xi=1e-12, power_iterations=2)
    given = replace(
        batch_for(method, labeled=0), unlabeled=(torch.randn(8, 1, 8, 8, generator=stream()),)
    )
    with mock.patch("fedssl.methods.vat.kl_divergence", note):
        method.loss(with_dropout(), given, {}, PROGRESS)
    assert len(divergences) == 3
    for search in divergences[:2]:
        assert float(search.detach().abs().max()) < 1e-6
