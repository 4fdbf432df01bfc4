"""A federation as drawn: which client holds which image, and which of them carry a label."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, model_validator

from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.core.registry import Section
from fedssl.data.features.base import FEATURE_SKEWS, FeatureSkew
from fedssl.data.images import Dataset, Images, Mask, Rows
from fedssl.data.label_noise.base import LABEL_NOISES, LabelNoise
from fedssl.data.labels.at_clients import AtClients
from fedssl.data.labels.base import LABEL_SPLITS, LabelSplit, Pool
from fedssl.data.partitions.base import PARTITIONS, Draws, Partition, examples_of, fill_up
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.shard import Shard

SERVER, HELD_BACK, NOBODY = -1, -2, -3
"""Owners that are no clients: of labeled images at the server, of labels kept for validation, and of images that are
not dealt because clients bring their own."""

UNLABELED_PARTITIONS = PARTITIONS.at("federation.unlabeled_partition", None)


class Deal(Section):
    """What decides who holds what: the part of the ``[federation]`` section that data depends on."""

    clients: int = Field(10, ge=1, description="K, clients in all")
    partition: Annotated[Partition, PARTITIONS] = Field(
        Dirichlet(), description="how images fall to clients"
    )
    unlabeled_partition: Annotated[Partition, UNLABELED_PARTITIONS] | None = Field(
        None, description="how images without a label fall to clients; unset: like those with one"
    )
    labels: Annotated[LabelSplit, LABEL_SPLITS] = Field(
        AtClients(), description="which images keep their label, and who holds them"
    )
    label_noise: Annotated[LabelNoise, LABEL_NOISES] | None = Field(
        None, description="how many of the given labels are wrong, and in what way; unset: none"
    )
    features: Annotated[FeatureSkew, FEATURE_SKEWS] | None = Field(
        None, description="how the same class looks different at every client; unset: it does not"
    )
    private: bool = Field(
        False,
        description="whether clients bring images of their own, as data-path in each node's config names them; "
        "for deployments",
    )

    @model_validator(mode="after")
    def _check_deal(self) -> "Deal":
        if self.labels.at_server and self.unlabeled_partition is not None:
            raise ValueError(
                f"labels.kind = {self.labels.kind!r} leaves clients without labels, so partition deals all they hold; "
                "drop unlabeled_partition"
            )
        if self.private:
            self._check_private()
        return self

    def _check_private(self) -> None:
        """Refuse what would change images or labels that only their owner has."""
        at_server = self.labels.at_server
        simulated = {
            "partition": self.partition != Dirichlet(),
            "unlabeled_partition": self.unlabeled_partition is not None,
            "labels": not at_server and self.labels != AtClients(),
            "label_noise": not at_server and self.label_noise is not None,
            "features": self.features is not None,
        }
        meaningless = [name for name, is_set in simulated.items() if is_set]
        if meaningless:
            raise ValueError(
                f"private = true: clients bring their own images and labels, which {' and '.join(meaningless)} "
                f"cannot change; drop {'it' if len(meaningless) == 1 else 'them'} (labels may only be at_server)"
            )


@dataclass(frozen=True)
class Federation:
    """A data set dealt to K clients.

    Args:
        data: The data set.
        owner: Client of each training image, int64 (N,); -1 at the server, -2 held back for validation, -3 not used,
            for clients bring their own.
        given: Label that whoever holds an image is given with it, int64 (N,); -1 without. Under label noise it need
            not be the true one.
        held_out: What the global model is evaluated on.
        held_out_name: ``"test"`` or ``"validation"``.
        held_out_owner: Client of each held-out image, for evaluation at the clients.
        num_clients: K.
        features: How clients see differently, if they do.
        seed: The experiment's.
    """

    data: Dataset
    owner: Rows
    given: Rows
    held_out: Images
    held_out_name: Literal["test", "validation"]
    held_out_owner: Rows
    num_clients: int
    features: FeatureSkew | None
    seed: int

    @property
    def labeled(self) -> Mask:
        """Whether each training image carries a label, (N,)."""
        return self.given >= 0

    def rows(self, client: int) -> Rows:
        """Return a client's training rows, ascending: an example's place here is its id."""
        order, starts = self._by_client
        return order[starts[client] : starts[client + 1]]

    def shard(self, client: int) -> Shard:
        """Return what one client holds, as it sees it."""
        rows = self.rows(client)
        shard = self._shard(rows)
        images = self._seen(shard.images, client, "train")
        return Shard(images, shard.labels, shard.hidden_labels, shard.spec)

    def server_shard(self) -> Shard:
        """Return the labeled images that the server holds; empty unless labels are there."""
        return self._shard(self.server_rows)

    def held_out_at(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (images, labels) of the held-out examples dealt to one client by its own mix."""
        order, starts = self._held_out_by_client
        rows = order[starts[client] : starts[client + 1]]
        images = torch.from_numpy(self.held_out.read(rows))
        labels = torch.from_numpy(self.held_out.labels[rows])
        return self._seen(images, client, "held-out"), labels

    @cached_property
    def sizes(self) -> Rows:
        """Number of training images of each client, (K,)."""
        return np.diff(self._by_client[1])

    @cached_property
    def labeled_sizes(self) -> Rows:
        """Number of labeled training images of each client, (K,)."""
        at_clients = self.owner[self.labeled & (self.owner >= 0)]
        return np.bincount(at_clients, minlength=self.num_clients)

    @cached_property
    def server_rows(self) -> Rows:
        """Training images that the server holds, ascending."""
        return np.flatnonzero(self.owner == SERVER)

    @cached_property
    def held_back_rows(self) -> Rows:
        """Training images whose labels are held back for validation, ascending."""
        return np.flatnonzero(self.owner == HELD_BACK)

    @property
    def num_wrong_labels(self) -> int:
        """Number of given labels that are not the true ones."""
        return int((self.labeled & (self.given != self.data.train.labels)).sum())

    def class_counts(self, *, labeled: bool) -> npt.NDArray[np.int64]:
        """Count labeled or unlabeled training images by client and true class, (K, num_classes); known classes only."""
        classes = self.data.spec.num_classes
        truth = self.data.train.labels
        rows = (self.labeled == labeled) & (self.owner >= 0) & (truth >= 0)
        cells = self.owner[rows] * classes + truth[rows]
        counts = np.bincount(cells, minlength=self.num_clients * classes)
        return counts.reshape(self.num_clients, classes)

    @cached_property
    def _by_client(self) -> tuple[Rows, Rows]:
        return _by_client(self.owner, self.num_clients)

    @cached_property
    def _held_out_by_client(self) -> tuple[Rows, Rows]:
        return _by_client(self.held_out_owner, self.num_clients)

    def _shard(self, rows: Rows) -> Shard:
        truth, given = self.data.train.labels[rows], self.given[rows]
        return Shard(
            images=torch.from_numpy(self.data.train.read(rows)),
            labels=torch.from_numpy(given),
            hidden_labels=torch.from_numpy(np.where(given >= 0, -1, truth)),
            spec=self.data.spec,
        )

    def _seen(self, images: torch.Tensor, client: int, part: str) -> torch.Tensor:
        """Return images as a client sees them."""
        if self.features is None:
            return images
        return self.features.apply(
            images,
            law=rng.numpy_generator(self.seed, "features/law", client=client),
            noise=rng.generator(self.seed, f"features/{part}", client=client),
        )


def draw_federation(data: Dataset, deal: Deal, seed: int) -> Federation:
    """Deal a data set to clients and choose its labels; the same answer for the same seed.

    Raises:
        InputError: More clients than training images, more labels than there are, or a law that these images do not
            allow.
    """
    labels, train = deal.labels, data.train
    num_classes = data.spec.num_classes
    owner, labeled = _deal_and_label(train, num_classes, deal, seed)
    given = np.where(labeled, train.labels, -1)
    if deal.label_noise is not None:
        noise = rng.numpy_generator(seed, "labels/noise")
        given[labeled] = deal.label_noise.corrupt(given[labeled], num_classes, noise)
    held_out, held_out_name = data.held_out, data.held_out_name
    stream = rng.numpy_generator(seed, "labels/validation")
    kept_back = labels.draw_validation_rows(train.labels, labeled, stream)
    if len(kept_back):
        # As whoever labeled them says: truth beyond that is not to be had.
        held_out = dataclasses.replace(train.take(kept_back), labels=given[kept_back])
        held_out_name = "validation"
        owner[kept_back], given[kept_back] = HELD_BACK, -1
        owner = owner if deal.private else _fill_up(owner, given, deal, seed)
    if deal.private:
        held_out_owner = np.full(len(held_out), NOBODY)
    else:
        held_out_owner = deal.partition.assign_held_out(
            examples_of(held_out, num_classes),
            examples_of(train, num_classes),
            owner,
            deal.clients,
            _draws(seed, "law", "held-out"),
        )
    return Federation(
        data=data,
        owner=owner,
        given=given,
        held_out=held_out,
        held_out_name=held_out_name,
        held_out_owner=held_out_owner,
        num_clients=deal.clients,
        features=deal.features,
        seed=seed,
    )


def _deal_and_label(train: Images, num_classes: int, deal: Deal, seed: int) -> tuple[Rows, Mask]:
    """Return the owner of each training image, and whether it is to carry a label."""
    examples, labels = examples_of(train, num_classes), deal.labels

    def drawn_labels(owner: Rows | None) -> Mask:
        pool = Pool(train.labels, train.labelable, owner, num_classes, deal.clients)
        return labels.draw(pool, rng.numpy_generator(seed, "labels"))

    if deal.private:
        labeled = drawn_labels(None) if labels.at_server else np.full(len(train), False)
        return np.where(labeled, SERVER, NOBODY), labeled
    if labels.at_server:
        labeled = drawn_labels(None)
        if labeled.all():
            problem = "leave nothing to the clients: every image is labeled, and at the server"
            raise InputError("federation.labels", problem, "label fewer")
        owner = np.full(len(train), SERVER)
        rest = examples.take(~labeled)
        owner[~labeled] = deal.partition.deal_to(rest, deal.clients, _draws(seed, "law", "train"))
        return owner, labeled
    owner = deal.partition.deal_to(examples, deal.clients, _draws(seed, "law", "train"))
    labeled = drawn_labels(owner)
    if deal.unlabeled_partition is not None:
        if labeled.all():
            problem = "has nothing to deal: every image carries a label"
            raise InputError("federation.unlabeled_partition", problem, "drop it, or label fewer")
        draws = _draws(seed, "unlabeled-law", "unlabeled")
        rest = examples.take(~labeled)
        try:
            owner[~labeled] = deal.unlabeled_partition.deal_to(rest, deal.clients, draws)
        except InputError as error:
            raise _about_unlabeled(error) from None
        owner = _fill_up(owner, np.where(labeled, train.labels, -1), deal, seed)
    return owner, labeled


def _draws(seed: int, law: str, deal: str) -> Draws:
    return Draws(
        rng.numpy_generator(seed, f"partition/{law}"),
        rng.numpy_generator(seed, f"partition/{deal}"),
    )


def _fill_up(owner: Rows, given: Rows, deal: Deal, seed: int) -> Rows:
    """Give every client its minimum once more, after images have been taken or dealt anew.

    A label must not move to where none is meant to be; where there are only labels, they are everywhere anyway.
    """
    unlabeled = (given < 0) & (owner >= 0)
    movable = unlabeled if unlabeled.any() else None
    stream = rng.numpy_generator(seed, "partition/fill")
    return fill_up(owner, deal.clients, deal.partition.min_size, stream, movable)


def _about_unlabeled(error: InputError) -> InputError:
    """Return what a partition says of the images it was to deal, where these are the unlabeled ones."""
    field, problem, remedy = (
        text.replace("federation.partition", "federation.unlabeled_partition").replace(
            "training images to deal", "unlabeled images to deal"
        )
        for text in (error.field, error.problem, error.remedy)
    )
    return InputError(field, problem, remedy)


def _by_client(owner: Rows, num_clients: int) -> tuple[Rows, Rows]:
    """Return rows sorted by client, those that are nobody's first, and where each client's begin, (K + 1,)."""
    order = np.argsort(owner, kind="stable")
    return order, np.searchsorted(owner[order], np.arange(num_clients + 1))
