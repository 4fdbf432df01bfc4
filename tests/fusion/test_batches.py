"""Batches of several clients side by side: each client gets, bit for bit, the batches that it draws alone."""

import dataclasses

import pytest
import torch

from fedssl.augment.base import AUGMENTATIONS, Augmentation, LearnedAugmentation
from fedssl.augment.policy import Augment
from fedssl.core import rng
from fedssl.data.shard import as_float
from fedssl.fusion.batches import GroupLoader
from fedssl.methods.base import Views
from fedssl.training.batches import BatchLoader, default_pools
from tests.fused import SPEC, shards

DRAWN = [
    name for name in AUGMENTATIONS.names()
    if not issubclass(AUGMENTATIONS.get(name), LearnedAugmentation)
]  # fmt: skip
COLOR = dataclasses.replace(SPEC, shape=(3, 8, 6), mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))


class Own(Augmentation):
    """As a user writes it: one function."""

    def __call__(self, images, generator, *, flips):
        return as_float(images) * torch.rand(len(images), 1, 1, 1, generator=generator)


def check(own, views, augment, batch_size=3, steps=4):
    streams = [
        lambda purpose, c=c: rng.make_generator(1, purpose, client=c) for c in range(len(own))
    ]
    loaders = [
        iter(
            BatchLoader(shard, default_pools(shard), views, augment, {}, batch_size, steps, stream)
        )
        for shard, stream in zip(own, streams, strict=True)
    ]
    seen = 0
    for batch in GroupLoader(own, views, augment, batch_size, steps, streams):
        for i, alone in enumerate(map(next, loaders)):
            for name in ("labels", "labeled_ids", "unlabeled_ids"):
                assert torch.equal(getattr(batch, name)[i], getattr(alone, name)), name
            for name in ("labeled", "unlabeled"):
                views_of = getattr(batch, name), getattr(alone, name)
                for together, by_itself in zip(*views_of, strict=True):
                    assert torch.equal(together[i], by_itself), name
            ids = batch.unlabeled_ids[i]
            assert torch.equal(batch.hidden[i], own[i].labels[ids] < 0)
            assert torch.equal(batch.truth[i], own[i].truth[ids])
        seen += 1
    assert seen == steps


@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("spec", [SPEC, COLOR], ids=["gray", "color"])
@pytest.mark.parametrize("name", DRAWN)
def test_views_are_those_of_each_alone(name, spec, labeled):
    augment = Augment.model_validate({"weak": {"kind": name}, "strong": {"kind": name}})
    views = Views(("weak", "strong"), ("strong", "plain", "weak"), ratio=2)
    check(shards(labeled, spec=spec), views, augment)


@pytest.mark.parametrize("strong", [{"kind": "noise"}, {"kind": "randaugment"}])
@pytest.mark.parametrize(("batch_size", "steps", "ratio"), [(8, 40, 7), (200, 3, 6), (3, 400, 1)])
def test_however_many_steps_are_drawn_and_shown_at_once(batch_size, steps, ratio, strong):
    augment = Augment.model_validate({"strong": strong})
    views = Views(("weak",), ("weak", "strong"), ratio)
    check(shards()[:2], views, augment, batch_size, steps)


@pytest.mark.parametrize("views", [Views(), Views((), ("weak",)), Views(("plain",), ("plain",))])
def test_whatever_views_are_asked_for(views):
    check(shards(), views, Augment())


def test_an_augmentation_that_draws_while_it_works_is_called_for_each_client():
    check(shards(), Views(("weak",), ("weak", "strong")), Augment(strong=Own()))


def test_bytes_and_floats_are_not_put_into_one_batch():
    """Side by side, torch would take 255 for a float."""
    own = [shards()[0], shards(dtype=torch.float32)[1]]
    with pytest.raises(ValueError, match="different types"):
        check(own, Views(), Augment())
