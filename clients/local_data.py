"""From a node's config to this client's data: a part of a simulated federation, or files of its own."""

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from flwr.app import Context
from torch import Tensor

from fedssl.core.errors import InputError
from fedssl.data.cache import Prepared
from fedssl.data.federation import Deal, Federation, draw_federation
from fedssl.data.shard import ImageSpec, Shard
from fedssl.data.sources.base import Source
from fedssl.data.terms import Terms
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings


class LocalData(Protocol):
    """What one client holds."""

    @property
    def client(self) -> int:
        """Its number."""

    @property
    def spec(self) -> ImageSpec:
        """What its images have in common with everybody's."""

    @property
    def num_examples(self) -> int:
        """Training images."""

    @property
    def num_labeled(self) -> int:
        """Labeled ones among them."""

    def shard(self) -> Shard:
        """Return its training images, on the CPU; not to be written to."""

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return (images, labels) that it evaluates on: uint8 (n, C, H, W) and int64 (n,); n may be 0."""


@dataclass(frozen=True)
class SimulatedData:
    """A client's part of a simulated federation.

    Args:
        client: Its number.
        federation: The federation it is part of; the same in every process, for it derives from the seed.
    """

    client: int
    federation: Federation

    @property
    def spec(self) -> ImageSpec:
        """The data set's."""
        return self.federation.data.spec

    @property
    def num_examples(self) -> int:
        """As dealt; no image is read."""
        return int(self.federation.sizes[self.client])

    @property
    def num_labeled(self) -> int:
        """As dealt; no image is read."""
        return int(self.federation.labeled_sizes[self.client])

    def shard(self) -> Shard:
        """Return its images as it sees them."""
        return self.federation.shard(self.client)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return the federation's held-out images that were dealt to it."""
        return self.federation.held_out_at(self.client)


@dataclass(frozen=True)
class PrivateData:
    """A client's own images, which nobody else has.

    Args:
        client: Its number.
        terms: What they were made to fit.
        prepared: They, in this machine's cache.
    """

    client: int
    terms: Terms
    prepared: Prepared

    @property
    def spec(self) -> ImageSpec:
        """The server's."""
        return self.terms.spec

    @property
    def num_examples(self) -> int:
        """Images in all, but for those to evaluate on."""
        return len(self._part("train")[1])

    @property
    def num_labeled(self) -> int:
        """Those with a label."""
        return int((self._part("train")[1] >= 0).sum())

    def shard(self) -> Shard:
        """Return its images; nobody knows the truth about unlabeled ones, so pseudo-labels are never judged."""
        images, labels = self._part("train")
        return Shard(images, labels, torch.full_like(labels, -1), self.spec)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return the images of its own part ``test``; none if it has no such part."""
        return self._part("test")

    def _part(self, name: str) -> tuple[Tensor, Tensor]:
        """Return (images, labels), mapped from the cache: whoever trains on them only reads."""
        part = self.prepared.part(name)
        if part is None:
            shape = (0, *self.spec.shape)
            return torch.empty(shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        return torch.from_numpy(part.images), torch.from_numpy(part.labels)


def local_data(experiment: ClientSettings, terms: Terms | None, context: Context) -> LocalData:
    """Return the data of the node that a context belongs to.

    Args:
        experiment: Says whether clients bring their own.
        terms: What the server sent of the federation's images, if they do.
        context: Its config says who the client is and where its data lies.

    Raises:
        ValueError: The node has no ``partition-id``, or one beyond the experiment's clients.
        InputError: It should bring data and does not, should not and does, or what it brings cannot be used; names the
            client and the path.
    """
    number = context.node_config.get(protocol.PARTITION_ID)
    clients = experiment.federation.clients
    if not isinstance(number, int) or not 0 <= number < clients:
        raise ValueError(
            f"node config has {protocol.PARTITION_ID} = {number!r}; the experiment has {clients} clients"
        )
    path = context.node_config.get(protocol.DATA_PATH)
    if experiment.federation.private:
        return _private_data(number, path, terms, context)
    if path is not None:
        raise InputError(
            f"client {number}: {protocol.DATA_PATH}",
            f"is {path!r}, but the experiment does not ask clients for data of their own",
            "set federation.private = true in the experiment file, or take it out of the node config",
        )
    return SimulatedData(number, simulated_federation(experiment))


def _private_data(client: int, path: object, terms: Terms | None, context: Context) -> PrivateData:
    from fedssl.data.private import (
        prepare_private,  # imported here: workers of simulations need none
    )

    where = f"client {client}: "
    if not isinstance(path, str) or not path:
        raise InputError(
            f"{where}{protocol.DATA_PATH}",
            f"is {path!r}, but the experiment says federation.private = true",
            "name a folder of images or an .npz file in the node config",
        )
    if terms is None:
        raise InputError(
            f"{where}{protocol.IMAGES}",
            "is not in the request, so that nothing is known of the federation's images",
            "let the server run fedssl.server.app",
        )
    skip = _skips(where, context.node_config.get(protocol.BAD_IMAGES))
    try:
        return PrivateData(client, terms, prepare_private(path, terms, skip=skip))
    except InputError as error:
        raise error.within(where) from None


def _skips(where: str, policy: object) -> bool:
    if policy not in (None, "refuse", "skip"):
        raise InputError(f"{where}{protocol.BAD_IMAGES}", f"is {policy!r}", "one of: refuse, skip")
    return policy == "skip"


def simulated_federation(experiment: ClientSettings) -> Federation:
    """Return the federation an experiment describes; drawn once a process."""
    return _draw(experiment.data, experiment.federation.deal, experiment.seed)


@functools.lru_cache(maxsize=2)
def _draw(data: Source, deal: Deal, seed: int) -> Federation:
    return draw_federation(data.dataset(seed), deal, seed)
