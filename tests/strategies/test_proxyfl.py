"""ProxyFL at the server: tuned rows of the classifier, which array they are, and the same bits in any order."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fedssl.clients.client_app import app
from fedssl.core.errors import InputError
from fedssl.engine.local_grid import Apps
from fedssl.engine.serial_grid import SerialGrid
from fedssl.exchange import protocol
from fedssl.exchange.census import Census, Cohorts
from fedssl.exchange.replies import Reply
from fedssl.exchange.sums import as_type
from fedssl.server.app import serve
from fedssl.strategies.proxyfl import (
    ProxyFL,
    own_class_nearest,
    proxies_in,
    slope_by_client,
    slope_by_proxy,
    tune,
    widest_gap,
)
from tests.helpers import small_experiment

VARIANTS = ["code", "paper"]
HEAD = "head.weight"


def stream(seed=0):
    return np.random.default_rng(seed)


def skewed_clients(num_clients=6, num_classes=5, width=16, spread=0.15):
    """Return proxies (M, C, d) around one center a class, and an outlier, whose proxies are those of the next class."""
    draws = stream(1)
    centers = draws.normal(size=(num_classes, width)) / np.sqrt(width)
    clients = centers + spread * draws.normal(size=(num_clients, num_classes, width))
    clients[-1] = np.roll(clients[-1], 1, axis=0)
    return clients


def reply(proxies, size=10, node=1):
    arrays = {"trunk.w": np.full(3, node, np.float32), HEAD: proxies.astype(np.float32)}
    metrics = {protocol.NUM_EXAMPLES: float(size), protocol.NUM_LABELED: 0.0}
    return Reply(node, metrics, arrays={protocol.ARRAYS: arrays})


def concluded(replies, **settings):
    """Return the next global arrays and the strategy's numbers of the first round."""
    like = {name: np.zeros_like(a) for name, a in replies[0].arrays[protocol.ARRAYS].items()}
    strategy = ProxyFL(**settings).build(Cohorts(Census.unknown(9), 9, seed=0))
    found = strategy.conclude(1, like, dict(enumerate(replies)))
    return found, strategy.numbers()


# ---- the gradients ----


def test_the_codes_gradient_is_that_of_its_loss():
    clients = skewed_clients()
    rows, classes = clients.reshape(-1, 16), np.tile(np.arange(5), 6)
    tuned = torch.from_numpy(clients.mean(0)).requires_grad_()
    distances = torch.linalg.vector_norm(torch.from_numpy(rows)[:, None] - tuned, dim=2)
    labels = torch.from_numpy(classes)
    F.cross_entropy(-(distances + 0.7 * F.one_hot(labels, 5)), labels).backward()
    found = slope_by_proxy(rows, classes, tuned.detach().numpy(), margin=0.7)
    np.testing.assert_allclose(found, tuned.grad.numpy(), atol=1e-14)


def test_the_papers_gradient_is_that_of_equation_2():
    clients = skewed_clients()
    tuned = torch.from_numpy(clients.mean(0)).requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for client in torch.from_numpy(clients):
        for c in range(5):
            closeness = [torch.exp(-(tuned[c] - client[other]).norm()) for other in range(5)]
            total = total - torch.log(closeness[c] / sum(closeness))
    total.backward()
    found = slope_by_client(clients, tuned.detach().numpy())
    np.testing.assert_allclose(found, tuned.grad.numpy(), atol=1e-13)


def test_the_margin_is_the_distance_of_the_loneliest_proxy_to_its_neighbor():
    assert widest_gap(np.array([[0.0], [1.0], [5.0]])) == 4
    assert widest_gap(np.array([[3.0, 4.0]])) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_equal_proxies_make_no_nan(variant):
    """One client, whose proxies are the mean, and clients whose classes are all the same."""
    one = skewed_clients(1)
    same = np.ones((3, 5, 16))
    for clients in (one, same):
        tuned = tune(clients.mean(0), clients, ProxyFL(variant=variant), stream())
        assert np.isfinite(tuned).all()
    assert own_class_nearest(one, tune(one[0], one, ProxyFL(variant=variant), stream())) == 1


# ---- tuning ----


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_epoch_is_the_plain_average(variant):
    replies = [reply(proxies, 10 + i, i) for i, proxies in enumerate(skewed_clients())]
    found, numbers = concluded(replies, variant=variant, epochs=0)
    models = [r.arrays[protocol.ARRAYS] for r in replies]
    weights = [10 + i for i in range(6)]
    for name, array in found.items():
        mean = np.average([model[name].astype(np.float64) for model in models], 0, weights)
        np.testing.assert_array_equal(array, as_type(mean, array))
    assert numbers["proxy_shift"] == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_after_tuning_the_proxy_of_its_own_class_is_the_nearest_to_each_clients_proxy(variant):
    clients = skewed_clients(spread=0.1)[:-1]
    tuned = tune(clients.mean(0), clients, ProxyFL(variant=variant), stream())
    assert own_class_nearest(clients, tuned) == 1


def test_tuning_finds_a_class_again_that_an_outlier_took_away():
    """One client's proxy of class 0 is far beyond class 1: for the others' class 0, the mean of class 1 is nearer."""
    clients = 0.3 * np.eye(4) + 0.02 * stream(4).normal(size=(6, 4, 4))
    clients[5, 0] = 8 * clients[5, 1]
    others, mean = clients[:5], clients.mean(0)
    assert own_class_nearest(others, mean) == 0.75
    assert own_class_nearest(others, tune(mean, clients, ProxyFL(), stream())) == 1


@pytest.mark.parametrize("variant", VARIANTS)
def test_tuning_pulls_the_proxies_out_of_the_reach_of_an_outlier(variant):
    """Five of six clients agree: the tuned proxies are closer to theirs than the mean is."""
    clients = skewed_clients(spread=0.02)

    def distance(proxies):
        return np.linalg.norm(clients[:-1] - proxies, axis=2).mean()

    settings = ProxyFL(variant=variant, epochs=20)
    tuned = tune(clients.mean(0), clients, settings, stream())
    assert distance(tuned) < distance(clients.mean(0))


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_the_rows_of_the_head_are_tuned(variant):
    replies = [reply(proxies, 10, i) for i, proxies in enumerate(skewed_clients())]
    plain, _ = concluded(replies, variant=variant, epochs=0)
    tuned, numbers = concluded(replies, variant=variant)
    assert plain["trunk.w"].tobytes() == tuned["trunk.w"].tobytes()
    shift = np.linalg.norm(tuned[HEAD].astype(np.float64) - plain[HEAD])
    assert shift > 0.01
    assert numbers["proxy_shift"] == pytest.approx(shift, rel=1e-3)
    assert tuned[HEAD].dtype == np.float32


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_order_of_the_replies_changes_no_bit(variant):
    replies = [reply(proxies, 10 + i, i) for i, proxies in enumerate(skewed_clients())]
    strategy = ProxyFL(variant=variant).build(Cohorts(Census.unknown(9), 9, seed=0))
    like = {name: np.zeros_like(a) for name, a in replies[0].arrays[protocol.ARRAYS].items()}
    first = strategy.conclude(3, like, dict(enumerate(replies)))
    second = strategy.conclude(3, like, dict(reversed(list(enumerate(replies)))))
    assert all(first[name].tobytes() == second[name].tobytes() for name in like)


def test_every_round_shuffles_anew_by_the_seed():
    replies = [reply(proxies, 10, i) for i, proxies in enumerate(skewed_clients())]
    like = {name: np.zeros_like(a) for name, a in replies[0].arrays[protocol.ARRAYS].items()}
    found = {}
    for seed, number in ((0, 1), (0, 2), (1, 1)):
        strategy = ProxyFL(epochs=3).build(Cohorts(Census.unknown(9), 9, seed=seed))
        again = ProxyFL(epochs=3).build(Cohorts(Census.unknown(9), 9, seed=seed))
        arrays = strategy.conclude(number, like, dict(enumerate(replies)))[HEAD]
        assert (
            arrays.tobytes()
            == again.conclude(number, like, dict(enumerate(replies)))[HEAD].tobytes()
        )
        found[seed, number] = arrays.tobytes()
    assert len(set(found.values())) == 3


def test_clients_without_images_do_not_count():
    clients = skewed_clients()
    replies = [reply(proxies, 10, i) for i, proxies in enumerate(clients)]
    idle = [*replies, reply(100 + clients[0], 0, 6)]
    first, second = concluded(replies)[0], concluded(idle)[0]
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)
    kept, numbers = concluded([reply(clients[0], 0)])
    assert not any(array.any() for array in kept.values())
    assert numbers == {}


# ---- which array ----


@pytest.mark.parametrize("prefix", ["", "classifier.", "student.classifier."])
def test_the_heads_weight_is_found_wherever_the_classifier_is(prefix):
    shapes = {
        "trunk.head.weight": (3, 3), "trunk.0.weight": (4, 3), "head.bias": (5,), "second.weight": (4, 3),
        "overhead.weight": (3, 3), "head.weight": (5, 3),
    }  # fmt: skip
    arrays = {f"{prefix}{name}": np.zeros(shape) for name, shape in shapes.items()}
    assert proxies_in(arrays) == f"{prefix}head.weight"


@pytest.mark.parametrize(
    "names", [[], ["trunk.0.weight"], ["first.head.weight", "second.head.weight"]]
)
def test_without_exactly_one_head_there_is_nothing_to_tune(names):
    with pytest.raises(InputError, match=r"strategy.kind: is 'proxyfl'(.|\n)*one classifier"):
        proxies_in({name: np.zeros((2, 2)) for name in names})
    with pytest.raises(InputError):
        proxies_in({"head.weight": np.zeros((2, 2, 1, 1))})


def test_two_classifiers_are_refused_before_anybody_trains():
    class Untouched(SerialGrid):
        def stream(self, *args, **kwargs):
            raise AssertionError("a client was asked to train")

    experiment = small_experiment(method="dividemix", strategy="proxyfl")
    with pytest.raises(InputError, match=r"the network has 2 of them"):
        serve(experiment, Untouched(Apps(app), 6), [])


# ---- a federation ----


def model_of(strategy, **settings):
    """Return the global arrays after a round of six clients."""
    experiment = small_experiment(
        strategy=strategy, rounds=1, train={"local_steps": 1}, federation={"sample": 6}, **settings
    )
    outcome = serve(experiment, SerialGrid(Apps(app), 6), [])
    assert outcome.rounds[-1].clients_ok == 6
    return outcome.model.arrays


@pytest.mark.parametrize("method", ["fixmatch", "proxyfl"])
def test_tuning_moves_the_proxies_of_a_federation_and_nothing_else(method):
    plain = model_of("fedavg", method=method)
    untuned = model_of({"kind": "proxyfl", "epochs": 0}, method=method)
    tuned = model_of({"kind": "proxyfl", "epochs": 5}, method=method)
    for name, array in plain.items():
        assert array.tobytes() == untuned[name].tobytes()
        assert (array.tobytes() == tuned[name].tobytes()) == (name != proxies_in(plain))
