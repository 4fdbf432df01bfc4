"""Small networks and batches for tests of losses."""

import torch
from torch import nn

from fedssl.data.shard import ImageSpec, Shard
from fedssl.methods.base import METHODS, Batch, Fresh, Learner, Progress, Views
from fedssl.models.base import Classifier

SPEC = ImageSpec((1, 4, 4), 10, (0.5,), (0.5,), flips=False)
PROGRESS = Progress(round=5, num_rounds=5, step=9, num_steps=10)
NUM_EXAMPLES = 12


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(seed=0, classes=10, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        trunk = [nn.Flatten(), nn.Linear(16, 8), nn.ReLU()]
        head = nn.Linear(8, classes)
        if norm:
            trunk.insert(2, nn.BatchNorm1d(8))
        return Classifier(nn.Sequential(*trunk), head, 8)


def network_of(method, seed=0, norm=False):
    with torch.random.fork_rng():
        torch.manual_seed(seed + 100)
        return method.network(lambda: linear(seed, norm=norm))


def batch(views=None, labeled=4, unlabeled=NUM_EXAMPLES, seed=0):
    """Return a batch of random images in the views asked for; labeled and unlabeled examples are rows 0, 1, ..."""
    generator = stream(seed)
    views = views or Views(("weak",), ("weak", "strong"))

    def draw(n):
        return torch.randn(n, 1, 4, 4, generator=generator)

    return Batch(
        labeled=tuple(draw(labeled) for _ in views.labeled),
        labels=torch.arange(labeled) % 10,
        labeled_ids=torch.arange(labeled),
        unlabeled=tuple(draw(unlabeled) for _ in views.unlabeled),
        unlabeled_ids=torch.arange(unlabeled),
        generator=stream(seed + 1),
    )


NEEDS_EARLIER_PHASE = {"distill", "fine_tune", "noisy_student"}
"""Methods that go on from the network of an earlier phase; `tests/methods/test_earlier.py` is about them."""

FIRST_METHODS = [name for name in METHODS.names() if name not in NEEDS_EARLIER_PHASE]
"""Methods that a first phase can have."""

PAIRED = {"semifl"}
"""Methods that mix each unlabeled image with a labeled one, so that both batches have the same size."""


def batch_for(method, **kwargs):
    if method.kind in PAIRED:
        kwargs["labeled"] = kwargs.get("unlabeled", NUM_EXAMPLES)
    return batch(method.views(), **kwargs)


def shard():
    labels = torch.full((NUM_EXAMPLES,), -1)
    labels[:4] = torch.arange(4)
    images = torch.zeros(NUM_EXAMPLES, 1, 4, 4, dtype=torch.uint8)
    return Shard(images, labels, torch.zeros_like(labels), SPEC)


def state_of(method, network):
    return {
        slot.name: method.init_slot(
            slot.name, Fresh(network, SPEC, None if slot.scope == "server" else shard())
        )
        for slot in method.slots()
    }


class Watched(Classifier):
    """Keep the images of every pass through a classifier's trunk, and whether the pass built a graph."""

    def __init__(self, inner):
        super().__init__(inner.trunk, inner.head, inner.width)
        self.seen, self.passes = [], []
        self.trunk.register_forward_hook(self._note)

    def _note(self, trunk, inputs, output):
        self.seen.append(inputs[0].detach().clone())
        graph = torch.is_grad_enabled() and output.requires_grad
        self.passes.append((len(inputs[0]), graph))

    @property
    def images_in_graph(self):
        return sum(count for count, graph in self.passes if graph)

    @property
    def images_outside(self):
        return sum(count for count, graph in self.passes if not graph)


def learner(network, state, own=None, progress=PROGRESS):
    """Return a learner whose descents move nothing; `own` is its shard."""

    def refuse(*args, **kwargs):
        raise AssertionError("this learner has no training loop behind it")

    return Learner(
        network=network,
        optimizers={},
        state=state,
        shard=shard() if own is None else own,
        progress=progress,
        stream=lambda purpose: stream(),
        descend=lambda total, name: None,
        gradients=refuse,
        show=refuse,
        batches=refuse,
    )
