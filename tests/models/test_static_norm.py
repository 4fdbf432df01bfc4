"""Static batch normalization: the batch in training, measured statistics in evaluation, exact averages over clients."""

import pytest
import torch
from torch import nn

from fedssl.core import rng
from fedssl.models.cnn import CNN
from fedssl.models.convnet13 import ConvNet13
from fedssl.models.static_norm import StaticBatchNorm, measure_statistics


@pytest.fixture(autouse=True)
def _seeded():
    with rng.seeded_torch(0):
        yield


def images(count, seed=0, shape=(3, 8, 8)):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def layers_of(network):
    return [module for module in network.modules() if isinstance(module, StaticBatchNorm)]


def buffers_of(network):
    return [(layer.mean.clone(), layer.mean_square.clone()) for layer in layers_of(network)]


def test_training_is_batch_normalization_that_tracks_nothing():
    ours, torchs = StaticBatchNorm(3), nn.BatchNorm2d(3)
    with torch.no_grad():
        for layer in (ours, torchs):
            layer.weight.copy_(torch.tensor([1.0, 2.0, 3.0]))
            layer.bias.copy_(torch.tensor([0.0, -1.0, 5.0]))
    before = {name: buffer.clone() for name, buffer in ours.named_buffers()}
    torch.testing.assert_close(ours(images(4)), torchs(images(4)))
    for name, buffer in ours.named_buffers():
        assert torch.equal(buffer, before[name])


def test_it_is_the_identity_until_measured():
    layer = StaticBatchNorm(3).eval()
    torch.testing.assert_close(layer(images(4)), images(4), rtol=1e-4, atol=1e-4)


def test_evaluation_normalizes_by_what_was_measured_however_the_data_is_cut():
    layer = StaticBatchNorm(3)
    everything = images(20)
    expected = nn.BatchNorm2d(3)(everything)
    measure_statistics(layer, everything.split([1, 12, 7]))
    torch.testing.assert_close(layer.eval()(everything), expected)


def test_averaged_buffers_of_two_clients_are_the_statistics_of_both_exactly():
    """With weights n_k, in every layer; their variances would not average: the clients' means lie apart."""
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), StaticBatchNorm(8), nn.ReLU(), nn.Conv2d(8, 4, 3), StaticBatchNorm(4)
    )
    mine = [images(6, seed=1), images(3, seed=2)]
    theirs = [images(30, seed=3) * 0.5 - 4]
    measure_statistics(network, mine)
    first = buffers_of(network)
    measure_statistics(network, theirs)
    second = buffers_of(network)
    measure_statistics(network, mine + theirs)
    for (mean, square), (m1, s1), (m2, s2) in zip(buffers_of(network), first, second, strict=True):
        torch.testing.assert_close((9 * m1 + 30 * m2) / 39, mean)
        torch.testing.assert_close((9 * s1 + 30 * s2) / 39, square)
    (mean, square), (m1, s1), (m2, s2) = buffers_of(network)[0], first[0], second[0]
    averaged_variance = (9 * (s1 - m1**2) + 30 * (s2 - m2**2)) / 39
    assert ((square - mean**2) / averaged_variance).max() > 1.5


def test_deeper_layers_see_batches_normalized_by_themselves():
    """What the buffers were before must not show in what they become."""
    network = CNN(norm="static", widths=(4, 4)).build((3, 8, 8), 5)
    measure_statistics(network, [images(5), images(9, seed=1)])
    expected = buffers_of(network)
    for layer in layers_of(network):
        layer.mean.fill_(7.0)
        layer.mean_square.fill_(90.0)
    measure_statistics(network, [images(5), images(9, seed=1)])
    for (mean, square), (m, s) in zip(buffers_of(network), expected, strict=True):
        assert torch.equal(mean, m)
        assert torch.equal(square, s)


def test_measuring_leaves_no_trace_but_the_buffers():
    network = ConvNet13(width=8, norm="static").build((3, 8, 8), 5)
    network.head = nn.Sequential(network.head, nn.BatchNorm1d(5))
    network.train()
    network.trunk[0].eval()
    modes = [module.training for module in network.modules()]
    statics = {id(b) for layer in layers_of(network) for b in layer.buffers()}
    rest = [b for b in (*network.buffers(), *network.parameters()) if id(b) not in statics]
    before = [tensor.clone() for tensor in rest]
    stream = torch.get_rng_state()  # dropout would move it
    measure_statistics(network, [images(4)])
    assert [module.training for module in network.modules()] == modes
    assert all(torch.equal(tensor, b) for tensor, b in zip(rest, before, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(layer._forward_pre_hooks for layer in layers_of(network))


def test_a_pass_that_fails_puts_the_modes_back():
    network = nn.Sequential(nn.Dropout(), StaticBatchNorm(3)).train()
    with pytest.raises(RuntimeError):
        measure_statistics(network, [images(2), images(2, shape=(5, 8, 8))])
    assert all(module.training for module in network.modules())
    assert torch.equal(network[1].mean, torch.zeros(3))


def test_without_such_a_layer_no_batch_is_asked_for():
    def batches():
        raise AssertionError("a pass was made")
        yield

    measure_statistics(CNN(norm="group").build((3, 8, 8), 5), batches())


def test_without_an_image_the_buffers_stay():
    layer = StaticBatchNorm(3)
    measure_statistics(layer, [images(5)])
    before = buffers_of(layer)[0]
    measure_statistics(layer, [])
    measure_statistics(layer, [images(0)])
    assert torch.equal(layer.mean, before[0])
    assert torch.equal(layer.mean_square, before[1])


def test_one_image_of_one_pixel_becomes_the_bias():
    layer = StaticBatchNorm(3)
    nn.init.constant_(layer.bias, 2.0)
    one = images(1, shape=(3, 1, 1)).requires_grad_()
    out = layer(one)
    torch.testing.assert_close(out, torch.full_like(out, 2.0), rtol=0, atol=1e-3)
    out.sum().backward()
    assert one.grad.isfinite().all()
    measure_statistics(layer, [one.detach()])
    assert layer.eval()(one).isfinite().all()


def test_a_constant_channel_has_no_variance_below_zero():
    """E[x^2] - E[x]^2 of 0.1 and of 1234.567 rounds to either side of zero in single precision."""
    layer = StaticBatchNorm(2)
    constant = torch.tensor([0.1, 1234.567]).view(1, 2, 1, 1).expand(7, 2, 3, 3)
    measure_statistics(layer, [constant])
    layer.mean_square.mul_(1 - 1e-6)
    assert layer.eval()(constant).isfinite().all()


def test_reduced_precision_is_measured_in_single():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), StaticBatchNorm(4))
    with torch.autocast("cpu", torch.bfloat16):
        measure_statistics(network, [images(4)])
        with torch.no_grad():
            seen = network[0](images(4))
    assert seen.dtype == torch.bfloat16
    torch.testing.assert_close(network[1].mean, seen.float().mean((0, 2, 3)))
