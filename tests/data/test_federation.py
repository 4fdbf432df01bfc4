"""Federations: labels are drawn once for all clients, shards hide their labels, and splits do not overlap."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.core.errors import InputError
from fedssl.data.federation import Deal, draw_federation
from fedssl.data.labels.at_clients import AtClients
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.sources.digits import Digits

DIGITS = Digits().dataset(0)


def draw(clients=10, alpha=0.5, per_class=4, seed=0, data=DIGITS, **deal):
    deal = {
        "partition": Dirichlet(alpha=alpha),
        "labels": AtClients(per_class=per_class),
        **deal,
    }
    return draw_federation(data, Deal(clients=clients, **deal), seed)


@given(per_class=st.integers(1, 100), clients=st.integers(1, 200), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_exactly_per_class_labels_of_every_class(per_class, clients, seed):
    federation = draw(clients, per_class=per_class, seed=seed)
    labels = DIGITS.train.labels[federation.labeled]
    assert np.bincount(labels, minlength=10).tolist() == [per_class] * 10
    again = draw(clients, per_class=per_class, seed=seed)
    assert np.array_equal(federation.labeled, again.labeled)
    assert np.array_equal(federation.owner, again.owner)


def test_shards_are_disjoint_and_complete():
    federation = draw()
    rows = np.concatenate([federation.rows(client) for client in range(10)])
    assert sorted(rows) == list(range(len(DIGITS.train)))
    assert federation.sizes.sum() == len(DIGITS.train)
    assert federation.labeled_sizes.sum() == 40
    both = federation.class_counts(labeled=True) + federation.class_counts(labeled=False)
    assert np.array_equal(both.sum(1), federation.sizes)


def test_a_shard_holds_the_labels_and_beside_them_the_truth():
    federation = draw()
    for client in range(10):
        shard = federation.shard(client)
        rows = federation.rows(client)
        truth = torch.from_numpy(DIGITS.train.labels[rows])
        seen = shard.labels >= 0
        assert torch.equal(shard.truth, truth)
        assert torch.equal(shard.labels[seen], truth[seen])
        assert torch.equal(shard.labeled, seen.nonzero().squeeze(1))
        assert torch.equal(shard.images, torch.from_numpy(DIGITS.train.images[rows]))


def test_held_out_parts_add_up_to_the_whole():
    federation = draw(clients=25)
    parts = [federation.held_out_at(client)[1] for client in range(25)]
    assert sum(len(part) for part in parts) == len(DIGITS.held_out)
    counts = sum(torch.bincount(part, minlength=10) for part in parts)
    assert counts.tolist() == np.bincount(DIGITS.held_out.labels, minlength=10).tolist()


def test_train_test_and_validation_do_not_overlap():
    plain = Digits().dataset(3)
    tuned = Digits(validation=0.2).dataset(3)
    assert (len(plain.train), len(plain.held_out)) == (1437, 360)
    assert (len(tuned.train), len(tuned.held_out)) == (1150, 287)
    assert plain.held_out_name == "test"
    assert tuned.held_out_name == "validation"

    def keys(images):
        return sorted(
            image.tobytes() + bytes([label])
            for image, label in zip(images.images, images.labels, strict=False)
        )

    assert sorted(keys(tuned.train) + keys(tuned.held_out)) == keys(plain.train)


def test_the_seed_decides_the_split():
    assert not np.array_equal(
        Digits().dataset(0).held_out.images, Digits().dataset(1).held_out.images
    )
    assert np.array_equal(Digits().dataset(1).held_out.images, Digits().dataset(1).held_out.images)


def test_more_labels_than_there_are():
    with pytest.raises(
        InputError, match=r"per_class: is 500, but class \d has \d+ training images; the smallest"
    ):
        draw(per_class=500)
    assert draw(per_class="all").labeled.all()


def test_more_clients_than_images():
    with pytest.raises(InputError, match=r"federation.clients: is 2000, but there are 1437"):
        draw(clients=2000)
    assert (draw(clients=1437).sizes == 1).all()
