"""Every partition is disjoint, complete, reproducible, above the minimum size, and ends at any K and alpha."""

import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedssl.core.errors import InputError
from fedssl.data.partitions.base import (
    PARTITIONS,
    Draws,
    Examples,
    class_shares,
    deal_by_shares,
    dirichlet_shares,
    fill_up,
)
from fedssl.data.partitions.classes import Classes
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.partitions.flwr import Flwr
from fedssl.data.partitions.iid import IID
from fedssl.data.partitions.natural import Natural
from fedssl.data.partitions.quantity import Quantity
from fedssl.data.partitions.shards import Shards


def never(examples, clients):
    return False


def too_few_values(examples, clients):
    return len(np.unique(examples.columns["writer"])) < clients


def too_few_for(shards):
    return lambda examples, clients: clients * shards > len(examples)


def classes_do_not_fit(classes):
    def refuses(examples, clients):
        counts = np.bincount(examples.labels)
        counts = counts[counts > 0]
        slots = clients * classes
        return classes > len(counts) or slots < len(counts) or slots > counts.min() * len(counts)

    return refuses


TABLE = {
    "dirichlet": [({"alpha": alpha}, never) for alpha in (1e-300, 1e-9, 0.001, 0.5, 1e6, 1e308)],
    "iid": [({}, never)],
    "shards": [({"shards": shards}, too_few_for(shards)) for shards in (1, 2, 7, 10**13)],
    "classes": [({"classes": n}, classes_do_not_fit(n)) for n in (1, 2, 3, 10, 11)],
    "quantity": [
        ({}, never),
        ({"sigma": 1e3}, never),
        ({"sigma": 1e308}, never),
        ({"sizes": "power"}, never),
        ({"sizes": "power", "exponent": 1e-9}, never),
        ({"sizes": "power", "exponent": 1e308}, never),
    ],
    "natural": [({"column": "writer"}, too_few_values)],
    "flwr:DirichletPartitioner": [
        ({"options": {"alpha": 1.0, "min_partition_size": 0}}, lambda e, k: k > len(e))
    ],
    "flwr:IidPartitioner": [({}, never)],
    "flwr:ContinuousPartitioner": [
        (
            {"options": {"strictness": 0.5, "partition_by": "writer"}},
            lambda e, k: np.std(e.columns["writer"]) == 0,
        )
    ],
    "flwr:NaturalIdPartitioner": [
        (
            {"options": {"partition_by": "writer"}},
            lambda e, k: len(np.unique(e.columns["writer"])) != k,
        )
    ],
}
"""Settings to try of every kind, and when each refuses examples (those that it is shown) and a number of clients."""

EVERY = [
    pytest.param(PARTITIONS.build({"kind": kind, **fields}), refuses, id=f"{kind} {fields}")
    for kind, rows in TABLE.items()
    for fields, refuses in rows
]

FITTING = {
    "dirichlet": {"alpha": 0.5},
    "classes": {"classes": 2},
    "flwr:DirichletPartitioner": {"options": {"alpha": 0.3, "min_partition_size": 0}},
    "flwr:NaturalIdPartitioner": {"options": {"partition_by": "group"}},
}
"""Settings that fit `some_examples` and 10 clients, where the first of the table do not."""

ONE_EACH = [
    pytest.param(PARTITIONS.build({"kind": kind, **FITTING.get(kind, TABLE[kind][0][0])}), id=kind)
    for kind in TABLE
]


def some_labels(size, seed=0):
    return np.random.default_rng(seed).integers(0, 10, size)


def some_examples(size, seed=0, unknown=0.0):
    """Ten classes, of which a share is unknown, and about half as many writers as examples, in ten groups."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, size)
    labels[generator.random(size) < unknown] = -1
    writers = generator.integers(-3, size // 2 + 1, size)
    return Examples(labels, 10, {"writer": writers, "group": writers % 10})


def deal(partition, examples, clients, seed=0, deal_seed=None):
    return partition.deal_to(
        examples,
        clients,
        Draws(
            np.random.default_rng([seed, 0]),
            np.random.default_rng([seed if deal_seed is None else deal_seed, 1]),
        ),
    )


def deal_held_out(partition, held_out, examples, owner, clients, seed=0):
    return partition.assign_held_out(
        held_out,
        examples,
        owner,
        clients,
        Draws(np.random.default_rng([seed, 0]), np.random.default_rng([seed, 2])),
    )


def refused(partition, refuses, examples, clients):
    if clients * partition.min_size > len(examples):
        return True
    known = examples.labels >= 0
    if not partition.by_class or known.all():
        return refuses(examples, clients)
    return not known.any() or refuses(examples.take(known), clients)


def check(partition, refuses, examples, clients, seed):
    if refused(partition, refuses, examples, clients):
        with pytest.raises(InputError, match=r"^federation\."):
            deal(partition, examples, clients, seed)
        return
    owner = deal(partition, examples, clients, seed)
    assert owner.shape == (len(examples),)  # every example has one owner: disjoint and complete
    assert owner.dtype == np.int64
    assert owner.min() >= 0
    assert owner.max() < clients
    assert np.bincount(owner, minlength=clients).min() >= partition.min_size
    assert np.array_equal(owner, deal(partition, examples, clients, seed))


def test_every_partition_is_in_the_table():
    assert {kind.partition(":")[0] for kind in TABLE} == set(PARTITIONS.names())


@pytest.mark.parametrize(("partition", "refuses"), EVERY)
def test_partitions_are_complete_and_nobody_is_below_the_minimum(partition, refuses):
    slow = isinstance(partition, Flwr)

    @given(
        size=st.integers(1, 40 if slow else 400),
        crowding=st.floats(0, 1) | st.just(1.0),
        unknown=st.just(0.0) | st.floats(0, 1),
        min_size=st.integers(1, 5),
        seed=st.integers(0, 2**20),
    )
    @settings(max_examples=15 if slow else 40, deadline=None)
    def holds(size, crowding, unknown, min_size, seed):
        at_least = partition.model_copy(update={"min_size": min_size})
        examples = some_examples(size, seed, unknown)
        check(at_least, refuses, examples, max(1, round(crowding * size / min_size)), seed)

    holds()


@pytest.mark.parametrize(("partition", "refuses"), EVERY)
@pytest.mark.parametrize("clients", [1, 3, 60])
@pytest.mark.parametrize("unknown", [0, 0.5, 1])
def test_one_client_some_and_as_many_as_there_are_images(partition, refuses, clients, unknown):
    check(partition, refuses, some_examples(60, unknown=unknown), clients, seed=0)


LAWLESS = {"iid", "flwr:IidPartitioner", "flwr:NaturalIdPartitioner"}
"""Kinds whose law draws nothing: evenly, or by a fixed rule."""

INDIVISIBLE = {"natural", "flwr:NaturalIdPartitioner"}
"""Kinds that leave no choice among examples."""


@pytest.mark.parametrize("partition", ONE_EACH)
def test_another_seed_of_either_stream_gives_another_answer(partition):
    examples = some_examples(300)
    owner = deal(partition, examples, 10, 0, 0)
    same = np.array_equal(owner, deal(partition, examples, 10, 1, 0))
    assert same == (partition.kind in LAWLESS)
    same = np.array_equal(owner, deal(partition, examples, 10, 0, 1))
    assert same == (partition.kind in INDIVISIBLE)


@pytest.mark.parametrize("partition", ONE_EACH)
def test_sizes_are_the_laws_and_not_the_deals(partition):
    examples = some_examples(300)
    sizes = [np.bincount(deal(partition, examples, 10, 0, other), minlength=10) for other in (1, 2)]
    assert np.array_equal(*sizes)


@pytest.mark.parametrize("partition", ONE_EACH)
def test_held_out_examples_have_one_owner_each(partition):
    examples = some_examples(300, unknown=0.1)
    owner = deal(partition, examples, 10)
    owner[::7] = -1  # nobody's
    for size in (0, 1, 200):
        held_out = some_examples(size, seed=5)
        held_out_owner = deal_held_out(partition, held_out, examples, owner, 10)
        assert held_out_owner.shape == (size,)
        assert held_out_owner.min(initial=0) >= 0
        assert held_out_owner.max(initial=0) < 10
        again = deal_held_out(partition, held_out, examples, owner, 10)
        assert np.array_equal(held_out_owner, again)


@pytest.mark.parametrize("partition", [IID(), Quantity(), Quantity(sizes="power")])
def test_partitions_that_do_not_look_at_classes(partition):
    examples = some_examples(300)
    others = Examples(np.full(300, -1), 10)
    assert np.array_equal(deal(partition, examples, 10), deal(partition, others, 10))


@pytest.mark.parametrize("partition", [Dirichlet(alpha=0.1), Shards(), Classes()])
def test_unknown_classes_are_dealt_in_proportion(partition):
    examples = some_examples(20_000, unknown=0.5)
    owner = deal(partition, examples, 8)
    known, unknown = (
        np.bincount(owner[rows], minlength=8) / rows.sum()
        for rows in (examples.labels >= 0, examples.labels < 0)
    )
    assert np.allclose(known, unknown, atol=2e-3)


def test_too_many_clients_name_the_minimum():
    with pytest.raises(InputError, match=r"clients: is 4, but there are 19 .*min_size = 5"):
        deal(IID(min_size=5), some_examples(19), 4)


def test_classes_that_nobody_knows():
    with pytest.raises(InputError, match=r"kind: 'shards' deals by class, and no class is known"):
        deal(Shards(), Examples(np.full(30, -1), 10), 3)


# Dirichlet


@pytest.mark.parametrize("alpha", [1e-9, 0.001, 0.1, 1, 1e6])
@pytest.mark.parametrize("clients", [1, 3, 1000, 5000])
def test_extreme_dirichlet(alpha, clients):
    owner = deal(Dirichlet(alpha=alpha), some_examples(5000), clients)
    assert np.bincount(owner, minlength=clients).min() >= 1


def test_alpha_means_what_it_says():
    examples = some_examples(20_000)

    def skew(alpha):
        owner = deal(Dirichlet(alpha=alpha), examples, 10)
        counts = np.zeros((10, 10))
        np.add.at(counts, (owner, examples.labels), 1)
        mixes = counts / counts.sum(1, keepdims=True)
        return np.abs(mixes - counts.sum(0) / counts.sum()).sum(1).mean() / 2

    skews = [skew(alpha) for alpha in (0.05, 0.5, 5, 1000)]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.5
    assert skews[-1] < 0.05


def test_dirichlet_shares_follow_the_law():
    """E[share] = 1/K and Var[share] = (K-1)/(K^2 (K alpha + 1)), over 4,000 draws."""
    shares = dirichlet_shares(0.5, 10, 4000, np.random.default_rng(0))
    assert np.allclose(shares.sum(1), 1)
    assert abs(shares.mean() - 0.1) < 1e-9
    assert abs(shares.var() / (9 / (100 * 6)) - 1) < 0.05


@pytest.mark.parametrize("alpha", [1e-300, 1e-9])
def test_a_vanishing_alpha_leaves_all_to_one_drawn_uniformly(alpha):
    shares = dirichlet_shares(alpha, 4, 4000, np.random.default_rng(0))
    assert np.allclose(shares.max(1), 1)
    assert np.allclose(np.bincount(shares.argmax(1)) / 4000, 0.25, atol=0.03)


def test_a_huge_alpha_leaves_the_same_to_all():
    assert np.allclose(dirichlet_shares(1e308, 1000, 3, np.random.default_rng(0)), 1e-3)


# What each of the others promises


def test_iid_sizes_differ_by_one_at_most():
    sizes = np.bincount(deal(IID(), some_examples(1437), 100), minlength=100)
    assert set(sizes) == {14, 15}


@pytest.mark.parametrize(("shards", "size"), [(2, 1200), (5, 3000)])
def test_shards_come_in_the_number_that_is_asked_for(shards, size):
    """Sixty images a piece: each client has pieces of the sorted order as wholes, and so many of them."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(10), size // 10))
    owner = deal(Shards(shards=shards), Examples(labels, 10), 10)
    counts = np.zeros((10, 10), dtype=np.int64)
    np.add.at(counts, (owner, labels), 1)
    assert (counts.sum(1) == 60 * shards).all()
    assert (counts % 60 == 0).all()  # each class is 2 or 5 pieces, none across two classes
    assert ((counts > 0).sum(1) <= shards).all()
    assert counts.max() > 60 or (counts > 0).sum(1).max() == shards


def test_shards_differ_by_one_at_most():
    sizes = np.bincount(deal(Shards(shards=1), some_examples(1437), 100), minlength=100)
    assert set(sizes) == {14, 15}


@given(
    classes=st.integers(1, 10),
    clients=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    gap=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_clients_hold_as_many_classes_as_is_said(classes, clients, seed, gap):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), np.arange(40, 60, 2)))
    if gap:  # a class that has no examples does not count
        labels = labels[labels != 4]
    examples, present = Examples(labels, 10), 9 if gap else 10
    if classes > present or clients * classes < present:
        with pytest.raises(InputError, match=r"^federation\.partition\.classes: is"):
            deal(Classes(classes=classes), examples, clients, seed)
        return
    owner = deal(Classes(classes=classes), examples, clients, seed)
    counts = np.zeros((clients, 10), dtype=np.int64)
    np.add.at(counts, (owner, labels), 1)
    assert ((counts > 0).sum(1) == classes).all()
    holders = (counts > 0).sum(0)[np.unique(labels)]
    assert holders.max() - holders.min() <= 1
    for cls in np.unique(labels):
        held = counts[counts[:, cls] > 0, cls]
        assert held.max() - held.min() <= 1


def test_any_two_classes_meet_equally_often():
    """2 of 5 classes, 20,000 clients: each of 10 pairs is a tenth, give or take five standard deviations."""
    labels = np.repeat(np.arange(5), 8000)
    owner = deal(Classes(classes=2), Examples(labels, 5), 20_000)
    pairs = np.zeros((20_000, 5), dtype=np.int64)
    pairs[owner, labels] = 1
    _, counts = np.unique(pairs, axis=0, return_counts=True)
    assert len(counts) == 10
    assert np.abs(counts / 20_000 - 0.1).max() < 5 * np.sqrt(0.1 * 0.9 / 20_000)


def test_what_does_not_come_out_even_goes_to_holders_at_random():
    """Ten holders a class of 15 images: five of them have two, and these are not the first five everywhere."""
    labels = np.repeat(np.arange(10), 15)
    owner = deal(Classes(classes=1), Examples(labels, 10), 100)
    sizes = np.bincount(owner, minlength=100)
    of_class = np.empty(100, dtype=np.int64)
    of_class[owner] = labels
    more = [sizes[of_class == cls].tolist() for cls in range(10)]
    assert all(sorted(held) == [1] * 5 + [2] * 5 for held in more)
    assert len({tuple(held) for held in more}) > 5


def test_a_class_with_fewer_images_than_holders_is_named():
    labels = np.repeat([0, 1, 2], [100, 3, 100])
    with pytest.raises(InputError, match=r"up to 4 clients .* class 1 has 3 images"):
        deal(Classes(classes=1), Examples(labels, 3), 12)
    named = Examples(labels, 3, class_names=("rod", "ring", "disc")).take(labels >= 0)
    with pytest.raises(InputError, match=r"class ring has 3 images"):
        deal(Classes(classes=1), named, 12)


def test_power_law_sizes():
    sizes = np.bincount(deal(Quantity(sizes="power", exponent=1.5), some_examples(50_000), 20))
    ranks = np.arange(1, 21) ** -1.5
    assert np.allclose(sorted(sizes, reverse=True), 50_000 * ranks / ranks.sum(), atol=1)
    assert list(sizes) != sorted(sizes, reverse=True)  # ranks are dealt at random


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.0])
def test_lognormal_sizes(sigma):
    """The logarithm of shares has the standard deviation sigma, over 4,000 clients, and nothing of a tail is cut."""
    logs = np.log(Quantity(sigma=sigma).shares(4000, np.random.default_rng(0)))
    assert abs(logs.std() / sigma - 1) < 0.05
    assert abs(((logs - logs.mean()) ** 3).mean() / sigma**3) < 0.2


def test_extreme_quantities_leave_one_client_all_but_the_minimum():
    for fields in ({"sigma": 1e300}, {"sizes": "power", "exponent": 1e300}):
        sizes = np.bincount(deal(Quantity(min_size=3, **fields), some_examples(1000), 20))
        assert sorted(sizes) == [3] * 19 + [943]


def test_values_of_a_column_stay_together():
    examples = some_examples(2000)
    writers = examples.columns["writer"]
    owner = deal(Natural(column="writer"), examples, 37)
    pairs = np.unique(np.stack([writers, owner]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]
    num_values = np.bincount(pairs[1], minlength=37)
    assert num_values.max() - num_values.min() <= 1


def test_held_out_examples_go_where_their_value_is():
    examples = some_examples(2000)
    writers = examples.columns["writer"]
    partition = Natural(column="writer")
    owner = deal(partition, examples, 37)
    home = dict(zip(writers, owner, strict=True))
    unseen = np.full(74, 10**12)
    codes = np.concatenate([np.random.default_rng(1).permutation(writers), unseen])
    held_out = Examples(np.zeros(len(codes), np.int64), 10, {"writer": codes})
    held_out_owner = deal_held_out(partition, held_out, examples, owner, 37, seed=9)
    assert held_out_owner[:2000].tolist() == [home[code] for code in codes[:2000]]
    assert (np.bincount(held_out_owner[2000:], minlength=37) == 2).all()  # 74 over 37 clients


def test_a_value_of_which_single_images_were_moved_is_at_home_where_most_are():
    writers = np.repeat([0, 1, 2], [50, 2, 7])
    examples = Examples(np.zeros(59, np.int64), 1, {"writer": writers})
    partition = Natural(column="writer", min_size=10)
    owner = deal(partition, examples, 3)
    assert np.bincount(owner).min() == 10
    home = [np.bincount(owner[writers == writer]).argmax() for writer in range(3)]
    assert sorted(home) == [0, 1, 2]
    assert deal_held_out(partition, examples, examples, owner, 3).tolist() == [
        home[writer] for writer in writers
    ]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("wrter", r"column: there is no column 'wrter'; did you mean 'writer'\?"),
        ("hospital", "there is no column 'hospital'; one of: group, writer"),
        ("group", "'group' has 10 values for 11 clients"),
    ],
)
def test_columns_that_will_not_do(column, message):
    with pytest.raises(InputError, match=message):
        deal(Natural(column=column), some_examples(300), 11)


def test_data_without_columns():
    with pytest.raises(InputError, match=r"there is no column 'writer'; this data has no columns"):
        deal(Natural(column="writer"), Examples(some_labels(30), 10), 3)


# Flower's partitioners


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ShardPartitioner", {"shard_size": 10, "keep_incomplete_shard": True}),
        ("SizePartitioner", {"partition_sizes": [20, 30, 70]}),
        ("LinearPartitioner", {}),
        ("SquarePartitioner", {}),
        ("ExponentialPartitioner", {}),
        ("PathologicalPartitioner", {"num_classes_per_partition": 10}),
        ("InnerDirichletPartitioner", {"partition_sizes": [20, 30, 70], "alpha": 5}),
        ("GroupedNaturalIdPartitioner", {"partition_by": "group", "group_size": 4}),
    ],
)
def test_flowers_partitioners_run_without_a_word(name, options, capfd):
    examples = some_examples(120)
    owner = deal(Flwr(name=name, options=options), examples, 3)
    assert set(owner) == {0, 1, 2}
    if name == "SizePartitioner":
        assert np.bincount(owner).tolist() == [20, 30, 70]
        assert not (np.diff(owner) >= 0).all()  # examples are shuffled first
    if name == "GroupedNaturalIdPartitioner":
        homes = np.unique(np.stack([examples.columns["group"], owner]), axis=1)
        assert homes.shape[1] == 10
    assert capfd.readouterr() == ("", "")


def test_flowers_progress_bar_is_not_shown(capfd):
    examples = some_examples(120)
    partition = Flwr(name="NaturalIdPartitioner", options={"partition_by": "group"})
    assert np.array_equal(deal(partition, examples, 10), examples.columns["group"])
    assert capfd.readouterr() == ("", "")


def test_a_distribution_is_an_array():
    options = {
        "distribution_array": [[1, 3]] * 10,
        "num_unique_labels_per_partition": 2,
        "preassigned_num_samples_per_label": 1,
    }
    labels = np.repeat(np.arange(10), 20)
    owner = deal(Flwr(name="DistributionPartitioner", options=options), Examples(labels, 10), 10)
    counts = class_shares(Examples(labels, 10), owner, 10)
    assert ((counts > 0).sum(0) == 2).all()  # two classes a client


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("flwr:DirichletPartitoner", {}, r"kind: .* did you mean 'DirichletPartitioner'\?"),
        ("flwr:Partitioner", {}, r"has no partitioner 'Partitioner'"),
        ("flwr:VerticalEvenPartitioner", {}, "it splits columns, not images"),
        ("flwr:VerticalSizePartitioner", {}, "it splits columns, not images"),
        ("flwr:IdToSizeFncPartitioner", {}, "it needs a function"),
        (
            "flwr:DirichletPartitioner",
            {"alfa": 1},
            r"options\.alfa: .* does not take it; did you mean 'alpha'\?",
        ),
        ("flwr:DirichletPartitioner", {}, r"options\.alpha: is missing"),
        ("flwr:DirichletPartitioner", {"alpha": "x"}, "refuses: The given alpha format"),
        (
            "flwr:DirichletPartitioner",
            {"alpha": 0.1, "min_partition_size": 40},
            "refuses: The max number of attempts",
        ),
        ("flwr:SizePartitioner", {"partition_sizes": [60, 60]}, "makes 2 parts for 3 clients"),
        ("flwr:IidPartitioner", {"num_partitions": 4}, "makes 4 parts for 3 clients"),
        (
            "flwr:SizePartitioner",
            {"partition_sizes": [50, 50, 15]},
            "leaves out 5 of 120 images and repeats 0; every image must be dealt once",
        ),
        (
            "flwr:NaturalIdPartitioner",
            {"partition_by": "wrter"},
            r"partition_by: there is no column 'wrter'; did you mean 'writer'\?",
        ),
    ],
)
def test_what_flowers_partitioners_refuse(kind, options, message, capfd):
    with pytest.raises(InputError, match=message):
        deal(PARTITIONS.build({"kind": kind, "options": options}), some_examples(120), 3)
    assert capfd.readouterr() == ("", "")


def test_flower_datasets_may_be_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(InputError, match=r"pip install 'fedssl\[flwr-datasets\]'"):
        deal(Flwr(name="IidPartitioner"), some_examples(30), 3)


def test_a_flower_partition_is_a_section_like_any_other():
    section = {"kind": "flwr:ShardPartitioner", "min_size": 2, "options": {"shard_size": 10}}
    partition = PARTITIONS.build(section)
    assert partition.to_dict() == section
    assert isinstance(partition.options["shard_size"], int)
    assert hash(partition) == hash(PARTITIONS.build(section))


def test_flower_is_shown_unknown_classes_unless_it_deals_by_them():
    assert Flwr(name="DirichletPartitioner", options={"alpha": 1}).by_class
    assert not Flwr(name="NaturalIdPartitioner", options={"partition_by": "writer"}).by_class
    assert not Flwr(name="IidPartitioner").by_class


# What they are made of


def test_held_out_examples_follow_the_same_law():
    partition = Dirichlet(alpha=0.1)
    examples = Examples(np.zeros(5000, np.int64), 10)
    owner = deal(partition, examples, 8)
    held_out_owner = deal_held_out(partition, examples, examples, owner, 8)
    assert np.array_equal(np.bincount(owner, minlength=8), np.bincount(held_out_owner, minlength=8))
    assert not np.array_equal(owner, held_out_owner)


def test_class_shares_count_what_is_somebodys_and_known():
    examples = Examples(np.array([0, 0, 0, 0, 1, -1]), 3)
    shares = class_shares(examples, np.array([0, 0, 0, 1, -1, 1]), 2)
    assert shares.tolist() == [[0.75, 0.25], [0.5, 0.5], [0.5, 0.5]]


def test_shares_are_cut_exactly():
    labels = np.repeat([0, 1], [10, 20])
    shares = np.array([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]])
    owner = deal_by_shares(labels, shares, np.random.default_rng(0))
    assert np.bincount(owner[labels == 0], minlength=3).tolist() == [5, 3, 2]
    assert np.bincount(owner[labels == 1], minlength=3).tolist() == [0, 0, 20]


@given(
    st.lists(st.tuples(st.integers(-1, 6), st.booleans()), min_size=7, max_size=200),
    st.booleans(),
    st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_filling_up_moves_no_more_than_is_missing(examples, any_may_move, min_size):
    owner, movable = (np.array(column) for column in zip(*examples, strict=True))
    may_move = (owner >= 0) & (True if any_may_move else movable)
    before = np.bincount(owner[owner >= 0], minlength=7)
    missing = np.maximum(0, min_size - before).sum()
    spare = np.minimum(before - min_size, np.bincount(owner[may_move], minlength=7))
    given_movable = None if any_may_move else movable
    if np.maximum(spare, 0).sum() < missing:
        with pytest.raises(InputError, match=rf"min_size: is {min_size}, and too few images"):
            fill_up(owner, 7, min_size, np.random.default_rng(0), given_movable)
        return
    filled = fill_up(owner, 7, min_size, np.random.default_rng(0), given_movable)
    again = fill_up(owner, 7, min_size, np.random.default_rng(0), given_movable)
    assert np.array_equal(filled, again)
    moved = filled != owner
    after = np.bincount(filled[filled >= 0], minlength=7)
    assert after.min() >= min_size
    assert moved.sum() == missing
    assert may_move[moved].all()
    assert (after >= np.minimum(before, min_size)).all()


def test_filling_up_thins_large_clients_and_does_not_cut_them():
    """A thousand clients without anything take from one of 8,000 and eight of 1,000 examples: about half from the one."""
    sizes = np.array([0] * 1000 + [8000] + [1000] * 8)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    filled = fill_up(owner, len(sizes), 1, np.random.default_rng(0))
    after = np.bincount(filled, minlength=len(sizes))
    assert (after[:1000] == 1).all()
    given = sizes[1000:] - after[1000:]
    assert given.sum() == 1000
    assert 420 < given[0] < 580
    assert given[1:].min() > 20
    given_rows = np.flatnonzero(filled[owner == 1000] != 1000)
    assert given_rows.max() - given_rows.min() > 6000  # from anywhere, not from one end


def test_filling_up_draws_nothing_where_nothing_is_missing():
    generator = np.random.default_rng(0)
    fill_up(np.arange(10) % 5, 5, 2, generator)
    assert generator.random() == np.random.default_rng(0).random()


# A hundred thousand clients

CROWD = """
import os, sys
if os.fork():  # a child's peak would count from its parent's, were it the first program of its process
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
import resource, time
import numpy as np
from fedssl.data.partitions.base import Draws, Examples
from fedssl.data.partitions.dirichlet import Dirichlet

examples = Examples(np.random.default_rng(0).integers(0, 10, 1_000_000), 10)
draws = Draws(np.random.default_rng(1), np.random.default_rng(2))
start = time.process_time()
owner = Dirichlet(alpha=0.1).deal_to(examples, 100_000, draws)
seconds = time.process_time() - start
assert np.bincount(owner, minlength=100_000).min() >= 1
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_hundred_thousand_clients_take_seconds_and_little_memory():
    done = subprocess.run(
        [sys.executable, "-c", CROWD], capture_output=True, text=True, check=True, timeout=120
    )
    seconds, peak = (float(number) for number in done.stdout.split())
    assert seconds < 5
    assert peak * (1 if sys.platform == "darwin" else 1024) < 1e9


@pytest.mark.parametrize(
    "partition",
    [
        IID(),
        Dirichlet(alpha=1e-9),
        Shards(),
        Classes(),
        Classes(classes=3),
        Quantity(),
        Quantity(sizes="power", exponent=10),
        Natural(column="writer"),
    ],
    ids=repr,
)
def test_every_law_deals_to_a_hundred_thousand_clients(partition):
    examples = some_examples(1_000_000)
    start = time.process_time()
    owner = deal(partition, examples, 100_000)
    assert time.process_time() - start < 5
    assert np.bincount(owner, minlength=100_000).min() >= 1
