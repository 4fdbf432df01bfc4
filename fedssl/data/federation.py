"""The federation as drawn: which client holds which image, and which images carry a label."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, field_validator, model_validator

from fedssl.core import rng
from fedssl.core.errors import InputError
from fedssl.core.registry import Section
from fedssl.core.rng import SERVER
from fedssl.data.features.base import FEATURE_SKEWS, FeatureSkew
from fedssl.data.images import Dataset, Images, Mask, Rows
from fedssl.data.label_noise.base import LABEL_NOISES, LabelNoise
from fedssl.data.labels.at_clients import AtClients
from fedssl.data.labels.base import LABEL_SPLITS, LabelSplit, Pool
from fedssl.data.partitions.base import PARTITIONS, Draws, Partition, examples_of, fill_up
from fedssl.data.partitions.dirichlet import Dirichlet
from fedssl.data.shard import Shard
from fedssl.data.sites import Site, check_names, held_out_of, join_sites, prepare_sites
from fedssl.data.target import Reading

HELD_BACK, NOBODY = -2, -3
"""Numbers that take the place of a client, beside the server's: `HELD_BACK` owns the images whose labels are kept for validation,
and `NOBODY` owns images that are not dealt because clients or sites bring their own."""

UNLABELED_PARTITIONS = PARTITIONS.at("federation.unlabeled_partition", None)


class Deal(Section):
    """The part of the ``[federation]`` section that decides which client holds which images and labels."""

    clients: int = Field(10, ge=1, description="K, the number of all clients")
    partition: Annotated[Partition, PARTITIONS] = Field(
        Dirichlet(), description="law that deals images to clients"
    )
    unlabeled_partition: Annotated[Partition, UNLABELED_PARTITIONS] | None = Field(
        None,
        description="law that deals unlabeled images to clients; unset: partition deals all images",
    )
    labels: Annotated[LabelSplit, LABEL_SPLITS] = Field(
        AtClients(),
        description="law that says which images keep their label, and whether clients or the server hold them",
    )
    label_noise: Annotated[LabelNoise, LABEL_NOISES] | None = Field(
        None,
        description="law that says how many of the given labels are wrong, and how; unset: all are right",
    )
    features: Annotated[FeatureSkew, FEATURE_SKEWS] | None = Field(
        None,
        description="law by which the same class looks different at every client; unset: images are not changed",
    )
    private: bool = Field(
        False,
        description="whether clients bring their own images, which data-path in each node's config names; "
        "for deployments only",
    )
    sites: dict[str, Site] | None = Field(
        None,
        description="named clients, each with a folder or npz file of its own, as NAME = 'folder:PATH': a simulation of clients "
        "with private images; clients is then the number of sites, and they are numbered in the order of their names",
    )

    @model_validator(mode="before")
    @classmethod
    def _count_sites(cls, value: Any) -> Any:
        """Set the number of clients to the number of sites, unless it is given."""
        sites = value.get("sites") if isinstance(value, dict) else None
        return {"clients": len(sites), **value} if isinstance(sites, dict) and sites else value

    @field_validator("sites")
    @classmethod
    def _sort_sites(cls, value: dict[str, Site] | None) -> dict[str, Site] | None:
        """Return the sites in the order of their names, so that equal settings number clients alike."""
        if value is None:
            return None
        check_names(value)
        return dict(sorted(value.items()))

    @model_validator(mode="after")
    def _check_deal(self) -> "Deal":
        if self.labels.at_server and self.unlabeled_partition is not None:
            raise ValueError(
                f"labels.kind = {self.labels.kind!r} leaves clients without labels, so partition deals all their "
                "images; drop unlabeled_partition"
            )
        if self.sites is not None and self.private:
            raise ValueError(
                "private = true is a deployment whose clients bring their images, and sites simulates one; drop one of them "
                "(fedssl deploy run takes a file with sites as it is)"
            )
        if self.sites is not None and self.clients != len(self.sites):
            raise ValueError(
                f"clients = {self.clients}, but sites names {len(self.sites)}, and each is one client; drop clients"
            )
        if self.private:
            self._check_own("private = true: clients bring")
        if self.sites is not None:
            self._check_own("sites: each site brings")
        return self

    def _check_own(self, beginning: str) -> None:
        """Refuse settings that would change images or labels which clients bring: only their owner has them."""
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
                f"{beginning} {'its' if self.sites else 'their'} own images and labels, which {' and '.join(meaningless)} "
                f"cannot change; drop {'it' if len(meaningless) == 1 else 'them'} (labels may only be at_server)"
            )


@dataclass(frozen=True)
class Federation:
    """A data set dealt to K clients.

    Args:
        data: The data set.
        owner: Client of each training image, int64 (N,); -1 at the server, -2 held back for validation, -3 not used
            because clients bring their own images.
        given: Label that the owner of an image gets with it, int64 (N,); -1 if there is none. Under label noise it may
            differ from the true class.
        held_out: Images that the global model is evaluated on.
        held_out_name: ``"test"`` or ``"validation"``.
        held_out_owner: Client of each held-out image, for evaluation at the clients, int64 (M,); -3 if clients bring
            their own images.
        num_clients: K, the number of clients.
        features: Law by which images look different at every client; None leaves images unchanged.
        seed: The experiment's seed.
        sites: Names of the sites, in the order of their numbers; none if clients are no sites.
        site_held_out: Images that each site evaluates on; none if clients are no sites.
        here: The training images that belong to no site, which are the first rows; None if clients are no sites.
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
    sites: tuple[str, ...] = ()
    site_held_out: tuple[Images, ...] = ()
    here: Images | None = None

    @property
    def labeled(self) -> Mask:
        """Whether each training image carries a label, (N,)."""
        return self.given >= 0

    @property
    def train_here(self) -> Images:
        """The training images that the simulator or the server itself has: all but those of sites, the first rows."""
        return self.data.train if self.here is None else self.here

    @property
    def labeled_here(self) -> Mask:
        """Whether each training image carries a label and is one of `train_here`, (N,)."""
        return self.labeled & (np.arange(len(self.owner)) < len(self.train_here))

    def rows(self, client: int) -> Rows:
        """Return the training rows of a client, ascending; the place of a row in this array is the example's id."""
        order, starts = self._by_client
        return order[starts[client] : starts[client + 1]]

    def shard(self, client: int) -> Shard:
        """Return the examples of one client, with the images as the client sees them."""
        rows = self.rows(client)
        shard = self._shard(rows)
        images = self._as_client_sees(shard.images, client, "train")
        return Shard(images, shard.labels, shard.truth, shard.spec)

    def server_shard(self) -> Shard:
        """Return the labeled images that the server holds; the shard is empty if the clients hold the labels."""
        return self._shard(self.server_rows)

    def held_out_at(self, client: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (images, labels) of the held-out examples of one client, with the images as the client sees them."""
        if self.sites:
            own = self.site_held_out[client]
            return torch.from_numpy(own.images), torch.from_numpy(own.labels)
        order, starts = self._held_out_by_client
        rows = order[starts[client] : starts[client + 1]]
        images = torch.from_numpy(self.held_out.read(rows))
        labels = torch.from_numpy(self.held_out.labels[rows])
        return self._as_client_sees(images, client, "held-out"), labels

    def images_as_seen(self, rows: Rows) -> torch.Tensor:
        """Return the training images in some rows as their owners see them, uint8 (n, C, H, W)."""
        images = torch.from_numpy(self.data.train.read(rows))
        if self.features is None:
            return images
        owner = self.owner[rows]
        for client in np.unique(owner[owner >= 0]).tolist():
            (places,) = np.nonzero(owner == client)
            ids = np.searchsorted(self.rows(client), rows[places])
            images[torch.from_numpy(places)] = self.shard(client).images[torch.from_numpy(ids)]
        return images

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
    def held_out_sizes(self) -> Rows:
        """Number of held-out images of each client, (K,)."""
        if self.sites:
            return np.array([len(images) for images in self.site_held_out], dtype=np.int64)
        return np.diff(self._held_out_by_client[1])

    @cached_property
    def server_rows(self) -> Rows:
        """Rows of the training images that the server holds, ascending."""
        return np.flatnonzero(self.owner == SERVER)

    @cached_property
    def held_back_rows(self) -> Rows:
        """Rows of the training images whose labels are held back for validation, ascending."""
        return np.flatnonzero(self.owner == HELD_BACK)

    @property
    def num_wrong_labels(self) -> int:
        """Number of given labels that differ from the true class."""
        return int((self.labeled & (self.given != self.data.train.labels)).sum())

    def class_counts(self, *, labeled: bool) -> npt.NDArray[np.int64]:
        """Count the training images of each client by true class, (K, num_classes); unknown classes do not count.

        Args:
            labeled: Whether to count the labeled images or the unlabeled ones.
        """
        classes = self.data.spec.num_classes
        truth = self.data.train.labels
        rows = (self.labeled == labeled) & (self.owner >= 0) & (truth >= 0)
        cells = self.owner[rows] * classes + truth[rows]
        counts = np.bincount(cells, minlength=self.num_clients * classes)
        return counts.reshape(self.num_clients, classes)

    @cached_property
    def _by_client(self) -> tuple[Rows, Rows]:
        return _sort_by_client(self.owner, self.num_clients)

    @cached_property
    def _held_out_by_client(self) -> tuple[Rows, Rows]:
        return _sort_by_client(self.held_out_owner, self.num_clients)

    def _shard(self, rows: Rows) -> Shard:
        return Shard(
            images=torch.from_numpy(self.data.train.read(rows)),
            labels=torch.from_numpy(self.given[rows]),
            truth=torch.from_numpy(self.data.train.labels[rows]),
            spec=self.data.spec,
        )

    def _as_client_sees(self, images: torch.Tensor, client: int, part: str) -> torch.Tensor:
        """Return images as a client sees them; `part` (train or held-out) names the stream of their noise."""
        if self.features is None:
            return images
        return self.features.apply(
            images,
            law=rng.make_numpy_generator(self.seed, "features/law", client=client),
            noise=rng.make_generator(self.seed, f"features/{part}", client=client),
        )


def draw_federation(
    data: Dataset, deal: Deal, seed: int, reading: Reading | None = None
) -> Federation:
    """Deal a data set to clients and choose its labels; the same seed gives the same federation.

    Args:
        data: The data set.
        deal: How it is dealt.
        seed: The experiment's seed.
        reading: How the files of sites become images of 8 bits; None: as a `Reading` does by default.

    Raises:
        InputError: There are fewer training images than clients, or fewer labels than asked for, or a law cannot deal
            these images.
    """
    labels, train = deal.labels, data.train
    num_classes = data.spec.num_classes
    owner, labeled = _deal_and_label(data, deal, seed)
    given = np.where(labeled, train.labels, -1)
    if deal.label_noise is not None:
        noise = rng.make_numpy_generator(seed, "labels/noise")
        given[labeled] = deal.label_noise.corrupt(given[labeled], num_classes, noise)
    held_out, held_out_name = data.held_out, data.held_out_name
    brings_own = deal.private or deal.sites is not None
    stream = rng.make_numpy_generator(seed, "labels/validation")
    kept_back = labels.draw_validation_rows(train.labels, labeled, stream)
    if len(kept_back):
        # Validation uses the given labels, noise included: in reality nobody knows better ones.
        held_out = dataclasses.replace(train.take(kept_back), labels=given[kept_back])
        held_out_name = "validation"
        owner[kept_back], given[kept_back] = HELD_BACK, -1
        owner = owner if brings_own else _fill_up(owner, given, deal, seed)
    if brings_own:
        held_out_owner = np.full(len(held_out), NOBODY)
    else:
        held_out_owner = deal.partition.assign_held_out(
            examples_of(held_out, data),
            examples_of(train, data),
            owner,
            deal.clients,
            _make_draws(seed, "law", "held-out"),
        )
    federation = Federation(
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
    if deal.sites is None:
        return federation
    return _with_sites(federation, deal.sites, reading or Reading())


def _with_sites(federation: Federation, sites: dict[str, Site], reading: Reading) -> Federation:
    """Return a federation whose clients are sites: every label that a site's folders give is given.

    The server's own training images stay the first rows.
    """
    prepared = prepare_sites(sites, federation.data, reading)
    data, numbers = join_sites(federation.data, sites, prepared)
    labels = data.train.labels[len(federation.owner) :]
    return dataclasses.replace(
        federation,
        data=data,
        owner=np.concatenate([federation.owner, numbers]),
        given=np.concatenate([federation.given, labels]),
        sites=tuple(sites),
        site_held_out=held_out_of(prepared),
        here=federation.data.train,
    )


def _deal_and_label(data: Dataset, deal: Deal, seed: int) -> tuple[Rows, Mask]:
    """Return the owner of each training image, and whether the image is to carry a label."""
    train, labels = data.train, deal.labels
    examples = examples_of(train, data)

    def draw_labels(owner: Rows | None) -> Mask:
        pool = Pool(
            labels=train.labels,
            labelable=train.labelable,
            owner=owner,
            num_classes=data.spec.num_classes,
            num_clients=deal.clients,
            class_names=data.class_names,
        )
        return labels.draw(pool, rng.make_numpy_generator(seed, "labels"))

    if deal.private or deal.sites is not None:
        labeled = draw_labels(None) if labels.at_server else np.full(len(train), False)
        return np.where(labeled, SERVER, NOBODY), labeled
    if labels.at_server:
        labeled = draw_labels(None)
        if labeled.all():
            problem = "leave nothing to the clients: every image is labeled, and at the server"
            raise InputError("federation.labels", problem, "label fewer")
        owner = np.full(len(train), SERVER)
        rest = examples.take(~labeled)
        owner[~labeled] = deal.partition.deal_to(
            rest, deal.clients, _make_draws(seed, "law", "train")
        )
        return owner, labeled
    owner = deal.partition.deal_to(examples, deal.clients, _make_draws(seed, "law", "train"))
    labeled = draw_labels(owner)
    if deal.unlabeled_partition is not None:
        if labeled.all():
            problem = "has nothing to deal: every image carries a label"
            raise InputError("federation.unlabeled_partition", problem, "drop it, or label fewer")
        draws = _make_draws(seed, "unlabeled-law", "unlabeled")
        rest = examples.take(~labeled)
        try:
            owner[~labeled] = deal.unlabeled_partition.deal_to(rest, deal.clients, draws)
        except InputError as error:
            raise _blame_unlabeled_partition(error) from None
        owner = _fill_up(owner, np.where(labeled, train.labels, -1), deal, seed)
    return owner, labeled


def _make_draws(seed: int, law: str, deal: str) -> Draws:
    return Draws(
        rng.make_numpy_generator(seed, f"partition/{law}"),
        rng.make_numpy_generator(seed, f"partition/{deal}"),
    )


def _fill_up(owner: Rows, given: Rows, deal: Deal, seed: int) -> Rows:
    """Give every client its minimum once more, after images were taken from clients or dealt anew.

    Only unlabeled images move, so that no client gets a label that the law did not give it. If every image carries a
    label, all clients have labels anyway, and labeled images move.
    """
    unlabeled = (given < 0) & (owner >= 0)
    movable = unlabeled if unlabeled.any() else None
    stream = rng.make_numpy_generator(seed, "partition/fill")
    return fill_up(owner, deal.clients, deal.partition.min_size, stream, movable)


def _blame_unlabeled_partition(error: InputError) -> InputError:
    """Return an error of a partition as an error of ``federation.unlabeled_partition``, about unlabeled images."""
    field, problem, remedy = (
        text.replace("federation.partition", "federation.unlabeled_partition").replace(
            "training images to deal", "unlabeled images to deal"
        )
        for text in (error.field, error.problem, error.remedy)
    )
    return InputError(field, problem, remedy)


def _sort_by_client(owner: Rows, num_clients: int) -> tuple[Rows, Rows]:
    """Return all rows sorted by client, negative owners first, and the place where each client starts, (K + 1,)."""
    order = np.argsort(owner, kind="stable")
    return order, np.searchsorted(owner[order], np.arange(num_clients + 1))
