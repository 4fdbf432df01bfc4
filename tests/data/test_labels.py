"""Every label split: exact counts of every class, at the right places, reproducible; refusals name the field."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedssl.core.errors import InputError
from fedssl.core.rng import SERVER
from fedssl.data.federation import HELD_BACK, Deal, draw_federation
from fedssl.data.images import Dataset, Images
from fedssl.data.label_noise.pair import Pair
from fedssl.data.label_noise.symmetric import Symmetric
from fedssl.data.labels.at_clients import AtClients
from fedssl.data.labels.at_server import AtServer
from fedssl.data.labels.base import LABEL_SPLITS, Pool
from fedssl.data.labels.every_client import EveryClient
from fedssl.data.labels.skewed import Skewed
from fedssl.data.labels.some_clients import SomeClients
from fedssl.data.partitions.classes import Classes
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.partitions.iid import IID
from fedssl.data.shard import ImageSpec

SETTINGS = {
    "at_clients": {},
    "at_server": {},
    "some_clients": {"labeled_clients": 3},
    "skewed": {"alpha": 0.2},
    "every_client": {},
}
"""What each kind is tested with."""

WHOLE = [kind for kind in SETTINGS if kind != "every_client"]
"""The kinds whose amounts count labels of the whole federation, and not of each client."""

CLASSES = 5


def dataset(truth, labelable=None):
    """Return blank images of the given classes, -1 where unknown."""
    truth = np.asarray(truth)
    pool = np.zeros((len(truth), 1, 2, 2), np.uint8)
    images = Images(pool, truth, truth >= 0 if labelable is None else labelable)
    spec = ImageSpec((1, 2, 2), CLASSES, (0.5,), (0.5,), flips=False)
    names = tuple("abcde")
    return Dataset(images, images.take(np.arange(CLASSES)), "test", spec, names)


def balanced(size, seed=0):
    return np.random.default_rng(seed).permutation(np.arange(size) % CLASSES)


def split(kind, **amounts):
    return LABEL_SPLITS.build({"kind": kind, **SETTINGS[kind], **amounts})


def draw(labels, truth, clients=6, seed=0, partition=None, **deal):
    partition = IID() if partition is None else partition
    deal = Deal(clients=clients, partition=partition, labels=labels, **deal)
    data = truth if isinstance(truth, Dataset) else dataset(truth)
    return draw_federation(data, deal, seed)


def counts(federation):
    truth = federation.data.train.labels[federation.labeled]
    return np.bincount(truth, minlength=CLASSES).tolist()


def test_every_kind_is_tested():
    assert set(SETTINGS) == set(LABEL_SPLITS.names())


@pytest.mark.parametrize("kind", WHOLE)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_counts_are_exact_and_everything_is_reproducible(kind, data):
    truth = balanced(data.draw(st.integers(150, 400)), seed=1)
    clients = data.draw(st.integers(3, 12))
    per_class = data.draw(
        st.one_of(st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * CLASSES)), "per_class"
    )
    seed = data.draw(st.integers(0, 2**40))
    federation = draw(split(kind, per_class=per_class), truth, clients, seed)
    wanted = list(per_class) if isinstance(per_class, tuple) else [per_class] * CLASSES
    assert counts(federation) == wanted
    assert (federation.given[federation.labeled] == truth[federation.labeled]).all()
    at_server = federation.owner == SERVER
    assert at_server.sum() == (sum(wanted) if kind == "at_server" else 0)
    held = np.concatenate([federation.rows(c) for c in range(clients)])
    assert sorted([*held, *federation.server_rows]) == list(range(len(truth)))
    assert federation.sizes.min() >= 1
    again = draw(split(kind, per_class=per_class), truth, clients, seed)
    assert np.array_equal(federation.given, again.given)
    assert np.array_equal(federation.owner, again.owner)


@pytest.mark.parametrize("kind", SETTINGS)
def test_another_seed_labels_other_images(kind):
    truth = balanced(300)
    first, second = (draw(split(kind, per_class=3), truth, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.labeled, second.labeled)


@pytest.mark.parametrize("kind", WHOLE)
@given(fraction=st.floats(0.01, 1), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_fraction_is_that_share_of_every_class(kind, fraction, seed):
    truth = balanced(200)
    # Of three clients, `some_clients` labels all; the server must leave them something.
    fraction = min(fraction, 0.9) if kind == "at_server" else fraction
    federation = draw(split(kind, fraction=fraction), truth, 3, seed)
    assert counts(federation) == [max(1, round(fraction * 40))] * CLASSES


def test_labels_at_the_server_are_those_that_clients_would_have():
    truth = balanced(300)
    clients = draw(AtClients(per_class=4), truth)
    server = draw(AtServer(per_class=4), truth)
    assert np.array_equal(clients.labeled, server.labeled)
    shard = server.server_shard()
    assert len(shard) == 4 * CLASSES
    assert (shard.labels >= 0).all()
    assert server.labeled_sizes.sum() == 0
    assert all((server.shard(c).labels == -1).all() for c in range(6))
    assert len(clients.server_shard()) == 0


def test_all_labels_at_the_server_leave_clients_nothing():
    with pytest.raises(
        InputError, match=r"federation.labels: leave nothing to the clients.*label fewer"
    ):
        draw(AtServer(per_class="all"), balanced(50))


@given(labeled_clients=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_some_clients_are_labeled_wholly_and_the_others_not_at_all(labeled_clients, seed):
    federation = draw(SomeClients(labeled_clients=labeled_clients), balanced(120), 6, seed)
    share = federation.labeled_sizes / federation.sizes
    assert sorted(share) == [0] * (6 - labeled_clients) + [1] * labeled_clients


def test_some_clients_with_too_little_of_a_class_say_so():
    truth = balanced(100)
    with pytest.raises(
        InputError,
        match=r"per_class: is 20, but class [a-e] has \d+ training images at the 1 labeled",
    ):
        draw(SomeClients(labeled_clients=1, per_class=20), truth)
    with pytest.raises(InputError, match=r"labeled_clients: is 9, but there are 6 clients"):
        draw(SomeClients(labeled_clients=9), truth)


@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=8),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_every_client_labels_its_share_of_its_images_class_by_class(sizes, fraction, seed):
    """No class is further from its share than one label, and no client is without a label."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    truth = np.random.default_rng(seed).integers(0, CLASSES, len(owner))
    pool = Pool(truth, np.ones(len(owner), bool), owner, CLASSES, len(sizes))
    mask = EveryClient(fraction=fraction).draw(pool, np.random.default_rng(seed))
    for client, size in enumerate(sizes):
        own = owner == client
        count = max(1, round(fraction * size))
        assert mask[own].sum() == count
        there, labeled = (
            np.bincount(truth[own & chosen], minlength=CLASSES) for chosen in (True, mask)
        )
        assert (np.abs(labeled - count * there / size) < 1).all()
    again = EveryClient(fraction=fraction).draw(pool, np.random.default_rng(seed))
    assert np.array_equal(mask, again)


@pytest.mark.parametrize("wanted", [3, (0, 1, 2, 3, 40), "all"])
def test_every_client_labels_as_many_of_a_class_as_it_has(wanted):
    federation = draw(
        EveryClient(per_class=wanted), balanced(200), 10, partition=Dirichlet(alpha=0.3)
    )
    labeled = federation.class_counts(labeled=True)
    there = labeled + federation.class_counts(labeled=False)
    assert (there == 0).any()
    assert np.array_equal(labeled, there if wanted == "all" else np.minimum(there, wanted))
    default = draw(EveryClient(), balanced(200), 10, partition=Dirichlet(alpha=0.3))
    assert np.array_equal(default.class_counts(labeled=True), np.minimum(there, 4))


def test_every_client_labels_nothing_that_is_not_for_labeling():
    """The share is of the images that may be labeled; a client with no such image has no label."""
    truth = np.concatenate([balanced(60), np.full(40, -1)])
    owner = np.repeat([0, 1, 1, 2], [30, 30, 20, 20])
    pool = Pool(truth, truth >= 0, owner, CLASSES, 3)
    mask = EveryClient(fraction=0.1).draw(pool, np.random.default_rng(0))
    assert np.bincount(owner[mask], minlength=3).tolist() == [3, 3, 0]
    nobody = Pool(truth, np.zeros(100, bool), owner, CLASSES, 3)
    assert not EveryClient(fraction=0.1).draw(nobody, np.random.default_rng(0)).any()


def test_every_client_refuses_a_list_of_another_length_and_takes_validation_labels_off():
    with pytest.raises(InputError, match=r"per_class: lists 2 numbers, but there are 5 classes"):
        draw(EveryClient(per_class=(1, 2)), balanced(50))
    federation = draw(EveryClient(fraction=0.2, validation=0.5), balanced(300))
    assert len(federation.held_back_rows) + federation.labeled.sum() == 60
    assert not federation.labeled[federation.held_back_rows].any()


def test_a_small_alpha_leaves_labels_to_few_clients():
    truth = balanced(4000)

    def top_share(alpha):
        shares = []
        for seed in range(10):
            sizes = draw(Skewed(alpha=alpha, per_class=20), truth, 20, seed).labeled_sizes
            shares.append(sizes.max() / sizes.sum())
        return np.mean(shares)

    shares = [top_share(alpha) for alpha in (1e-6, 0.1, 1, 1e6)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == 1  # one client has enough images of every class, and gets every label
    assert shares[-1] < 0.15


def test_a_clients_weight_does_not_grow_with_its_size():
    """Two clients of equal weight, one ten times the other's size: each gets half of the labels."""
    truth = np.arange(11000) % CLASSES
    sizes = []
    for seed in range(20):
        labels = Skewed(alpha=1e9, per_class=20)
        owner = (np.arange(11000) >= 1000).astype(np.int64)
        pool = Pool(truth, np.ones(11000, bool), owner, CLASSES, 2)
        mask = labels.draw(pool, np.random.default_rng(seed))
        sizes.append(np.bincount(owner[mask], minlength=2))
    small, large = np.mean(sizes, axis=0)
    assert abs(small / (small + large) - 0.5) < 0.05


def test_labeled_and_unlabeled_images_may_follow_different_partitions():
    """Labels of two classes a client, unlabeled images of all: the regime of Long et al. (FedSiam), 2020."""
    truth = balanced(2000)
    federation = draw(
        AtClients(per_class=40),
        truth,
        10,
        partition=Classes(classes=2),
        unlabeled_partition=IID(),
    )
    labeled = federation.class_counts(labeled=True)
    unlabeled = federation.class_counts(labeled=False)
    assert ((labeled > 0).sum(1) <= 2).all()
    assert (unlabeled > 0).all()
    sizes = unlabeled.sum(1)
    assert sizes.max() - sizes.min() <= 1
    assert counts(federation) == [40] * CLASSES


def test_with_labels_at_the_server_there_is_one_partition():
    with pytest.raises(ValidationError, match="drop unlabeled_partition"):
        Deal(labels=AtServer(), unlabeled_partition=IID())


def test_images_of_unknown_class_are_dealt_and_never_labeled():
    truth = np.concatenate([balanced(200), np.full(300, -1)])
    for partition in (IID(), Dirichlet(alpha=0.5)):
        federation = draw(AtClients(per_class="all"), truth, 5, partition=partition)
        assert federation.sizes.sum() == 500
        assert counts(federation) == [40] * CLASSES
        shard = federation.shard(0)
        unknown = federation.data.train.labels[federation.rows(0)] == -1
        assert (shard.labels.numpy()[unknown] == -1).all()
        assert np.array_equal(shard.truth.numpy() == -1, unknown)


def test_images_that_are_not_for_labeling_have_a_hidden_truth():
    truth = balanced(300)
    labelable = np.arange(300) < 100
    federation = draw(AtClients(per_class="all"), dataset(truth, labelable))
    assert federation.labeled.sum() == 100
    shard = federation.shard(0)
    assert np.array_equal(shard.labels.numpy() >= 0, labelable[federation.rows(0)])
    assert np.array_equal(shard.truth.numpy(), truth[federation.rows(0)])
    with pytest.raises(InputError, match=r"per_class: is 30, but class a has 22 training images"):
        draw(AtClients(per_class=30), dataset(truth, labelable))


def test_classes_without_names_are_called_by_their_numbers():
    pool = Pool(balanced(20), np.ones(20, bool), None, CLASSES, 2)
    with pytest.raises(InputError, match=r"class 0 has 4 .* smallest class, 0, has 4"):
        AtServer(per_class=9).draw(pool, np.random.default_rng(0))


def test_the_smallest_class_is_called_by_its_name():
    names = ("boot", "coat", "dress", "shirt", "bag")
    truth = np.array([1, 1, 1, 0, 0, 2, 2, 3, 3, 3, 4, 4])
    pool = Pool(truth, np.ones(len(truth), bool), None, len(names), 2, names)
    with pytest.raises(InputError, match=r"class boot has 2 .* smallest class, boot, has 2"):
        AtServer(per_class=9).draw(pool, np.random.default_rng(0))


@pytest.mark.parametrize("kind", WHOLE)
@given(validation=st.floats(0.2, 0.8), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_held_back_labels_are_evaluated_on_and_trained_on_by_nobody(kind, validation, seed):
    truth = balanced(300)
    federation = draw(split(kind, per_class=5, validation=validation), truth, seed=seed)
    back = federation.held_back_rows
    each = round(validation * 5)
    assert np.bincount(truth[back], minlength=CLASSES).tolist() == [each] * CLASSES
    assert counts(federation) == [5 - each] * CLASSES
    assert (federation.owner[back] == HELD_BACK).all()
    assert federation.held_out_name == "validation"
    assert np.array_equal(federation.held_out.rows, back)
    trained = np.concatenate([*(federation.rows(c) for c in range(6)), federation.server_rows])
    assert sorted([*trained, *back]) == list(range(300))
    assert federation.sizes.min() >= 1
    if kind == "some_clients":
        assert (federation.labeled_sizes > 0).sum() <= 3


def test_a_client_that_loses_its_only_image_to_validation_gets_another():
    truth = balanced(60)
    federation = draw(AtClients(per_class="all", validation=0.5), truth, clients=30)
    assert federation.sizes.min() >= 1
    with pytest.raises(InputError, match=r"min_size: is 1, and too few images may be moved"):
        draw(AtClients(per_class="all", validation=0.5), truth, clients=60)


@pytest.mark.parametrize("validation", [0.01, 0.99])
def test_a_validation_split_of_none_or_of_all_labels_is_refused(validation):
    with pytest.raises(
        InputError, match=r"federation.labels.validation: is 0.\d+, which is \d+ of 20"
    ):
        draw(AtClients(per_class=4, validation=validation), balanced(300))


@pytest.mark.parametrize("noise", [Symmetric(rate=0.3), Pair(rate=0.3)], ids=lambda n: n.kind)
def test_wrong_labels_are_counted_and_the_truth_stays(noise):
    truth = balanced(500)
    clean = draw(AtClients(per_class=40), truth)
    noisy = draw(AtClients(per_class=40), truth, label_noise=noise)
    assert np.array_equal(clean.labeled, noisy.labeled)
    assert noisy.num_wrong_labels == round(0.3 * 200)
    assert clean.num_wrong_labels == 0
    assert np.array_equal(noisy.data.train.labels, truth)
    wrong = 0
    for client in range(6):
        shard, rows = noisy.shard(client), noisy.rows(client)
        assert np.array_equal(shard.labels.numpy(), noisy.given[rows])
        assert np.array_equal(shard.truth.numpy(), truth[rows])
        wrong += int((shard.labels != shard.truth)[shard.labeled].sum())
    assert wrong == noisy.num_wrong_labels


def test_labels_held_back_are_as_wrong_as_the_others():
    """What is evaluated on is what there is: the given labels, of which the same draw made some wrong."""
    truth = balanced(500)
    labels = AtClients(per_class=40, validation=0.5)
    federation = draw(labels, truth, label_noise=Pair(rate=0.25))
    back = federation.held_back_rows
    wrong = (federation.held_out.labels != truth[back]).sum()
    assert wrong + federation.num_wrong_labels == 50
    assert 10 <= wrong <= 40
    test = draw(AtClients(per_class=40), truth, label_noise=Pair(rate=0.25)).held_out
    assert np.array_equal(test.labels, truth[:CLASSES])


def test_an_unlabeled_partition_has_a_law_of_its_own():
    """The same section twice is not the same mix twice."""
    truth = balanced(5000)
    law = Dirichlet(alpha=0.1)
    federation = draw(AtClients(per_class=500), truth, 10, partition=law, unlabeled_partition=law)
    labeled = federation.class_counts(labeled=True).ravel()
    unlabeled = federation.class_counts(labeled=False).ravel()
    assert abs(np.corrcoef(labeled, unlabeled)[0, 1]) < 0.5


@given(min_size=st.integers(1, 30), alpha=st.floats(0.01, 1), seed=st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_everybody_has_the_minimum_under_two_partitions(min_size, alpha, seed):
    federation = draw(
        AtClients(per_class=4),
        balanced(400),
        10,
        seed,
        partition=IID(min_size=min_size),
        unlabeled_partition=Dirichlet(alpha=alpha),
    )
    assert federation.sizes.min() >= min_size
    assert counts(federation) == [4] * CLASSES


def test_what_an_unlabeled_partition_refuses_is_said_of_it():
    wanted = Dirichlet(min_size=1000)
    with pytest.raises(InputError) as error:
        draw(AtClients(), balanced(100), unlabeled_partition=wanted)
    said = str(error.value)
    assert "80 unlabeled images to deal" in said
    assert "federation.unlabeled_partition.min_size = 1000" in said


def test_an_unlabeled_partition_of_nothing_is_refused():
    with pytest.raises(InputError, match=r"unlabeled_partition: has nothing to deal"):
        draw(AtClients(per_class="all"), balanced(100), unlabeled_partition=IID())


def test_fewer_labels_than_labeled_clients_are_refused():
    with pytest.raises(InputError, match=r"labeled_clients: is 6, but there are 5 labels"):
        draw(SomeClients(labeled_clients=6, per_class=1), balanced(100))


def test_amounts_that_contradict_each_other_or_mean_nothing_are_refused():
    for wrong, said in {
        "drop one": {"per_class": 4, "fraction": 0.1},
        "at least one label": {"per_class": 0},
        "greater than 0": {"fraction": 0.0},
    }.items():
        with pytest.raises(ValidationError, match=wrong):
            AtClients(**said)
    with pytest.raises(InputError, match=r"per_class: lists 2 numbers, but there are 5 classes"):
        draw(AtClients(per_class=(1, 2)), balanced(50))
    assert counts(draw(AtClients(per_class=(0, 1, 2, 3, 4)), balanced(50))) == [0, 1, 2, 3, 4]


def test_the_default_is_four_labels_of_each_class():
    assert counts(draw(AtClients(), balanced(100))) == [4] * CLASSES
