"""The sections ``[federation]``, ``[server]``, ``[record]`` and ``[engine]`` of the experiment file."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator, model_validator

from fedssl.core.errors import InputError
from fedssl.core.registry import Section
from fedssl.data.federation import Deal
from fedssl.methods.base import METHODS, Method
from fedssl.methods.supervised import Supervised
from fedssl.metrics.evaluators.base import EVALUATORS, Evaluator
from fedssl.metrics.evaluators.classifier import OwnClassifier
from fedssl.training.optimization import Train
from fedssl.training.optimizers.base import OPTIMIZERS
from fedssl.training.schedules.base import SCHEDULES

SERVER_METHODS = METHODS.at("server.method", "supervised")
SERVER_OPTIMIZERS = OPTIMIZERS.at("server.train.optimizer", OPTIMIZERS.default)
SERVER_SCHEDULES = SCHEDULES.at("server.train.schedule", SCHEDULES.default)


class FederationSection(Deal):
    """The ``[federation]`` section: the clients, and which images and labels they hold."""

    sample: int = Field(
        5,
        ge=1,
        description="m, clients sampled each round; with fewer than 5 sites, all unless it is set",
    )

    @model_validator(mode="before")
    @classmethod
    def _sample_few_sites(cls, value: Any) -> Any:
        """Sample every site if there are fewer sites than the default asks for."""
        sites = value.get("sites") if isinstance(value, dict) else None
        most = cls.model_fields["sample"].default
        return (
            {"sample": len(sites), **value}
            if isinstance(sites, dict) and 0 < len(sites) < most
            else value
        )

    @model_validator(mode="after")
    def _check(self) -> "FederationSection":
        if self.sample > self.clients:
            raise ValueError(
                f"sample = {self.sample} is more than clients = {self.clients}; "
                "m of K clients are sampled each round, so sample must not exceed clients"
            )
        return self

    @property
    def deal(self) -> Deal:
        """The settings that decide which client holds which images and labels; no phase can change them."""
        return Deal.model_construct(**{name: getattr(self, name) for name in Deal.model_fields})


class StopSection(Section):
    """The table ``server.stop_when``: a run ends before its last round as soon as one of its conditions holds.

    The model is that of the last round, and not the best one. Schedules still span all `rounds`.
    """

    no_gain: int | None = Field(
        None,
        ge=1,
        description="evaluations of the last phase in a row in which the moving average is not more accurate than before; "
        "needs validation images",
    )
    minutes: float | None = Field(
        None, gt=0, description="time of the run, with the time before it was resumed (minutes)"
    )

    @model_validator(mode="after")
    def _check(self) -> "StopSection":
        if self.no_gain is None and self.minutes is None:
            raise ValueError("names no condition; set no_gain, minutes or both")
        return self


class ServerSection(Section):
    """The ``[server]`` section: what the server does in addition to aggregating."""

    ema_decay: float = Field(
        0.9, ge=0, lt=1, description="decay of the moving average of the global model, per round"
    )
    evaluate_every: int = Field(
        1,
        ge=1,
        description="rounds between evaluations; the last round of each phase is always evaluated",
    )
    evaluator: Annotated[Evaluator, EVALUATORS] = Field(
        OwnClassifier(),
        description="how the global model is judged: by its own classifier, or by a judge that learns the classes from the "
        "model's features",
    )
    last_rounds: int = Field(
        10, ge=1, description="evaluations at the end whose mean is the reported accuracy"
    )
    checkpoint_every: int = Field(
        10,
        ge=1,
        description="rounds between checkpoints, of which the first is after round 1; --resume goes on from the last checkpoint, "
        "and runs the rounds after it again",
    )
    stop_when: StopSection | None = Field(
        None,
        description="conditions under which the run ends before its last round; unset: it has all its rounds",
    )
    timeout: float = Field(3600.0, gt=0, description="seconds to wait for a round's replies")
    min_success: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a round's clients that must succeed, or the run stops; also the share of all clients that must "
        "answer the census of a deployment; at least one client must in any case",
    )
    max_client_examples: int | None = Field(
        None,
        ge=1,
        description="largest number of training images that a deployed client may claim; a client that claims more takes no part; "
        "unset: any number",
    )
    max_update_norm: float | None = Field(
        None,
        gt=0,
        description="largest L2 norm of a client's update, all its arrays together; a reply with a longer update is refused; "
        "unset: privacy.clipping_norm, or no limit without [privacy]",
    )
    max_update_ratio: float = Field(
        10.0,
        ge=1,
        description="largest ratio of the L2 norm of a deployed client's update to that of the longest other update of the round; "
        "an update beyond it is refused if it is also longer than half the model itself",
    )
    statistics: Literal["cohort", "server"] = Field(
        "cohort",
        description="images that the statistics of static normalization are measured on; cohort: those of the clients that "
        "trained in the round, by each client after its training; server: only the server's own, after its training",
    )
    method: Annotated[Method, SERVER_METHODS] = Field(
        Supervised(),
        description="how the server learns if it holds labels; in a phase that learns features only, it does not train",
    )
    train: Train | None = Field(
        None, description="the server's own [train] settings; unset: those of the clients"
    )

    @field_validator("train", mode="wrap")
    @classmethod
    def _name_the_servers_settings(
        cls, value: Any, handler: ValidatorFunctionWrapHandler
    ) -> Train | None:
        """Say server.train in the errors of the families within, which know their place in [train] only."""
        try:
            train: Train | None = handler(value)
        except InputError as error:
            raise error.within("server.") from None
        return train


class RecordSection(Section):
    """The ``[record]`` section: which report is made of a run's record. It cannot change a result."""

    report: bool = Field(True, description="whether report.html is written")
    report_every: int = Field(
        0, ge=0, description="rounds between reports during the run; 0: one report at its end"
    )


class EngineSection(Section):
    """The ``[engine]`` section: where clients run. It cannot change a result, except how sums round with ``fuse``.

    An engine ignores the settings that it has no use for, so any engine can run any experiment file.
    """

    kind: Literal["auto", "serial", "ray", "flower"] = Field(
        "auto",
        description="serial: one client after the other; ray: actors on cores and GPUs; auto: serial if the run is too short for "
        "actors to pay, or if there is room for one of them, else ray; flower: Flower's own simulation runtime",
    )
    workers: int | Literal["auto"] = Field(
        "auto", description="number of actors; auto: as many as fit; serial has no actors"
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="GPUs that each actor gets. Below 1: actors share a GPU. A whole number above 1: as many processes train a "
        "client together, each on a GPU. Unset: an equal share of all GPUs",
    )
    cpus_per_client: int = Field(
        1,
        ge=1,
        description="processes that train a client together on cores, each on train.threads cores; changes how sums are rounded",
    )
    state_memory: float = Field(
        1024.0,
        ge=0,
        description="MB of memory for what clients keep between rounds; the rest goes to a temporary file (in TMPDIR)",
    )
    fuse: int | Literal["off", "on", "auto"] = Field(
        "auto",
        description="whether several clients are trained in one step, which rounds sums in another way. auto: small clients, by "
        "their sizes; off: none, with the bits of a deployment; on: groups of an eighth of the cohort, 5 to 32; a number: the "
        "largest group. Not with the flower engine",
    )
    cpu_workers: int = Field(
        0, ge=0, description="number of actors without a GPU, in addition to those with a GPU"
    )
    memory_per_worker: float | Literal["measured"] | None = Field(
        None,
        description="MB of memory of each actor, a GPU's memory if it has one; measured: as much as the client with the most "
        "images takes in any phase; more memory than the machine has is refused; unset: memory is not counted",
    )
    address: str | None = Field(
        None, description="address of a running Ray cluster; unset: Ray is started on this machine"
    )
    retries: int = Field(
        1,
        ge=0,
        description="how often a client that raised, hung or lost its worker is tried again; not with flower",
    )
    client_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds that a client may take; clients that are trained together may take the sum; unset: server.timeout; "
        "not with flower",
    )

    @model_validator(mode="after")
    def _check(self) -> "EngineSection":
        if self.workers != "auto" and self.workers < 1:
            raise ValueError(f"workers = {self.workers}; it must be at least 1, or 'auto'")
        if isinstance(self.fuse, int) and self.fuse < 2:
            raise ValueError(f"fuse = {self.fuse}; it must be at least 2, or 'off', 'on' or 'auto'")
        memory = self.memory_per_worker
        if isinstance(memory, float) and memory <= 0:
            raise ValueError(f"memory_per_worker = {memory:g}; it must be above 0")
        gpus = self.gpus_per_worker
        if gpus is not None and gpus > 1 and gpus != int(gpus):
            raise ValueError(
                f"gpus_per_worker = {gpus:g}; above 1 it must be a whole number, because each process of a client has a GPU"
            )
        if self.has_teams and self.fuse not in ("off", "auto"):
            raise ValueError(
                "fuse trains several clients in one process, and gpus_per_worker above 1 or cpus_per_client trains one client "
                "in several; set one of them"
            )
        return self

    @property
    def fuse_in_effect(self) -> int | Literal["off", "on", "auto"]:
        """The value of `fuse`, but off where no clients are fused whatever it says: on the flower engine and in teams."""
        return "off" if self.kind == "flower" or self.has_teams else self.fuse

    @property
    def has_teams(self) -> bool:
        """Whether several processes train a client together."""
        return self.cpus_per_client > 1 or (self.gpus_per_worker or 0) > 1
