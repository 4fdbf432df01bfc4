"""Find a client's data from its node's config: a part of a simulated federation, or files of the client's own."""

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
from fedssl.data.sources.own_images import reading_of
from fedssl.data.target import Reading
from fedssl.data.terms import Terms
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings


class LocalData(Protocol):
    """The data that one client holds."""

    @property
    def client(self) -> int:
        """The client's number."""

    @property
    def spec(self) -> ImageSpec:
        """What the images of all clients have in common."""

    @property
    def num_examples(self) -> int:
        """Number of training images, labeled and unlabeled."""

    @property
    def num_labeled(self) -> int:
        """Number of labeled training images."""

    def shard(self) -> Shard:
        """Return the client's training images, on the CPU; the caller must not write to them."""

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return the (images, labels) to evaluate on: uint8 (n, C, H, W) and int64 (n,); n may be 0."""


@dataclass(frozen=True)
class SimulatedData:
    """A client's part of a simulated federation.

    Args:
        client: The client's number.
        federation: The client's federation; it derives from the seed, so it is the same in every process.
    """

    client: int
    federation: Federation

    @property
    def spec(self) -> ImageSpec:
        """The spec of the federation's data set."""
        return self.federation.data.spec

    @property
    def num_examples(self) -> int:
        """Number of training images that were dealt to the client; no image is read."""
        return int(self.federation.sizes[self.client])

    @property
    def num_labeled(self) -> int:
        """Number of labeled training images that were dealt to the client; no image is read."""
        return int(self.federation.labeled_sizes[self.client])

    def shard(self) -> Shard:
        """Return the client's training images as the client sees them."""
        return self.federation.shard(self.client)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return those of the federation's held-out images that were dealt to the client."""
        return self.federation.held_out_at(self.client)


@dataclass(frozen=True)
class PrivateData:
    """A client's own images, which nobody else has.

    Args:
        client: The client's number.
        terms: The federation's terms, which the images were prepared to fit.
        prepared: The prepared images in this machine's cache.
    """

    client: int
    terms: Terms
    prepared: Prepared

    @property
    def spec(self) -> ImageSpec:
        """The spec that the server sent."""
        return self.terms.spec

    @property
    def num_examples(self) -> int:
        """Number of training images; held-out images do not count."""
        return len(self._part("train")[1])

    @property
    def num_labeled(self) -> int:
        """Number of training images with a label."""
        return int((self._part("train")[1] >= 0).sum())

    def shard(self) -> Shard:
        """Return the training images; nobody knows their true classes, so no pseudo-label is judged."""
        images, labels = self._part("train")
        return Shard(images, labels, truth=torch.full_like(labels, -1), spec=self.spec)

    def held_out(self) -> tuple[Tensor, Tensor]:
        """Return the images of the data's part ``test``; no images if there is no such part."""
        return self._part("test")

    def _part(self, name: str) -> tuple[Tensor, Tensor]:
        """Return the (images, labels) of a part, mapped from the cache; the caller must only read them."""
        part = self.prepared.part(name)
        if part is None:
            shape = (0, *self.spec.shape)
            return torch.empty(shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)
        return torch.from_numpy(part.images), torch.from_numpy(part.labels)


def local_data(experiment: ClientSettings, terms: Terms | None, context: Context) -> LocalData:
    """Return the data of the node that a context belongs to.

    Args:
        experiment: Says whether clients bring private data.
        terms: The federation's terms from the request; needed only if clients bring private data.
        context: The node's context; its config holds the client's number and the path of its data.

    Raises:
        ValueError: The node has no ``partition-id``, or one beyond the experiment's clients.
        InputError: The client should bring data and has none, or has data and should bring none, or its data cannot be
            used; names the client and the path.
    """
    number = context.node_config.get(protocol.PARTITION_ID)
    clients = experiment.federation.clients
    if not isinstance(number, int) or not 0 <= number < clients:
        raise ValueError(
            f"node config has {protocol.PARTITION_ID} = {number!r} (fedssl deploy join: --number), but the experiment's "
            f"{clients} clients have the numbers 0 to {clients - 1}"
        )
    path = context.node_config.get(protocol.DATA_PATH)
    if experiment.federation.private:
        return _private_data(number, path, terms, reading_of(experiment.data), context)
    if path is not None:
        raise InputError(
            f"client {number}: {protocol.DATA_PATH}",
            f"is {path!r}, but the experiment does not ask clients for data of their own",
            "set federation.private = true in the experiment file, "
            f"or take {protocol.DATA_PATH} out of the node config (fedssl deploy init and join: --data)",
        )
    return SimulatedData(number, simulated_federation(experiment))


def _private_data(
    client: int, path: object, terms: Terms | None, reading: Reading, context: Context
) -> PrivateData:
    # Imported here because workers of simulations do not need it.
    from fedssl.data.private import prepare_private

    where = f"client {client}: "
    if not isinstance(path, str) or not path:
        raise InputError(
            f"{where}{protocol.DATA_PATH}",
            f"is {path!r}, but the experiment says federation.private = true",
            "name a folder of images or an .npz file in the node config (fedssl deploy init and join: --data)",
        )
    if terms is None:
        raise InputError(
            f"{where}{protocol.IMAGES}",
            "is not in the request, so this client cannot know the federation's image shape and classes",
            "let the server run fedssl.server.app, which sends it",
        )
    skip = _skips(where, context.node_config.get(protocol.BAD_IMAGES))
    try:
        return PrivateData(client, terms, prepare_private(path, terms, reading, skip=skip))
    except InputError as error:
        raise error.within(where) from None


def _skips(where: str, policy: object) -> bool:
    if policy not in (None, "refuse", "skip"):
        raise InputError(f"{where}{protocol.BAD_IMAGES}", f"is {policy!r}", "one of: refuse, skip")
    return policy == "skip"


def simulated_federation(experiment: ClientSettings) -> Federation:
    """Return the federation that an experiment describes; it is drawn once in each process."""
    return _draw(experiment.data, experiment.federation.deal, experiment.seed)


@functools.lru_cache(maxsize=2)
def _draw(data: Source, deal: Deal, seed: int) -> Federation:
    return draw_federation(data.dataset(seed), deal, seed, reading_of(data))
