"""Sections of the experiment file that belong to no other part: who takes part, what the server does, where clients run."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedssl.core.registry import Section
from fedssl.data.federation import Deal
from fedssl.methods.base import METHODS, Method
from fedssl.methods.supervised import Supervised
from fedssl.training.optimization import Train

SERVER_METHODS = METHODS.at("server.method", "supervised")


class FederationSection(Deal):
    """The ``[federation]`` section: who takes part and what they hold."""

    sample: int = Field(5, ge=1, description="m, clients sampled each round")

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
        """Return what the data depends on, which no phase can change."""
        return Deal.model_construct(**{name: getattr(self, name) for name in Deal.model_fields})


class ServerSection(Section):
    """The ``[server]`` section: what the server does beside aggregating."""

    ema_decay: float = Field(
        0.9, ge=0, lt=1, description="decay of the moving average of the global model, per round"
    )
    evaluate_every: int = Field(
        1, ge=1, description="rounds between evaluations; the last always is"
    )
    last_rounds: int = Field(
        10, ge=1, description="evaluations at the end whose mean is the reported accuracy"
    )
    checkpoint_every: int = Field(
        10, ge=1, description="rounds between checkpoints, from which --resume goes on"
    )
    timeout: float = Field(3600.0, gt=0, description="seconds to wait for a round's replies")
    min_success: float = Field(
        0.5,
        ge=0,
        le=1,
        description="share of a round's clients that must succeed for the run to go on, and of all clients that must answer the "
        "census of a deployment; one must in any case",
    )
    max_client_examples: int | None = Field(
        None,
        ge=1,
        description="training images that a deployed client may say it holds; one that says more takes no part; unset: any number",
    )
    max_update_norm: float | None = Field(
        None,
        gt=0,
        description="largest L2 norm of a client's update, all its arrays together; a reply beyond it is refused; "
        "unset: privacy.clipping_norm's if there is one, else none",
    )
    max_update_ratio: float = Field(
        10.0,
        ge=1,
        description="a deployed client's update that is more than so many times as long as the longest of the round's others, and "
        "longer than half the model itself (L2), is refused",
    )
    method: Annotated[Method, SERVER_METHODS] = Field(
        Supervised(), description="how the server learns, where labels are at the server"
    )
    train: Train | None = Field(
        None, description="its [train] settings; unset: those of the clients"
    )


class RecordSection(Section):
    """The ``[record]`` section: what is made of the record beside the record itself. It cannot change a result."""

    report: bool = Field(True, description="whether report.html is written")
    report_every: int = Field(
        0, ge=0, description="rounds between reports while the run goes on; 0: only at its end"
    )


class EngineSection(Section):
    """The ``[engine]`` section: where clients run. It cannot change a result, but for how sums round under ``fuse``.

    An engine leaves unused what it does not know: a file can be run on each.
    """

    kind: Literal["serial", "ray", "flower"] = Field(
        "ray",
        description="serial: one after the other; ray: actors on cores and GPUs; "
        "flower: Flower's own simulation runtime",
    )
    workers: int | Literal["auto"] = Field(
        "auto", description="actors; auto: as many as fit; serial has none"
    )
    gpus_per_worker: float | None = Field(
        None,
        ge=0,
        description="share of a GPU that each actor gets, at most 1; unset: an equal share of all GPUs",
    )
    state_memory: float = Field(
        1024.0,
        ge=0,
        description="MB of what clients keep that are held in memory; the rest is in a temporary file (TMPDIR moves it)",
    )
    fuse: int | Literal["off", "on", "auto"] = Field(
        "off",
        description="clients trained in one step at most: a number, or on for an eighth of the cohort, 5 to 32; auto: what is fastest "
        "here, measured once a run; changes the rounding of every sum; not under flower",
    )
    cpu_workers: int = Field(
        0, ge=0, description="further actors without a GPU, beside those with one"
    )
    memory_per_worker: float | Literal["measured"] | None = Field(
        None,
        description="MB of each actor, or measured: what the client with the most images takes, a GPU's memory where "
        "there is one; more than there is is refused; unset: not counted",
    )
    address: str | None = Field(
        None, description="of a Ray cluster that runs already, for ray; unset: one is started here"
    )
    retries: int = Field(
        1,
        ge=0,
        description="how often a client that raised, hung or lost its worker is tried again; not under flower",
    )
    client_timeout: float | None = Field(
        None,
        gt=0,
        description="seconds a client may take; unset: as long as server.timeout; not under flower",
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
        if gpus is not None and gpus > 1:
            raise ValueError(
                f"gpus_per_worker = {gpus:g}; a client trains on one GPU, so that further ones would idle; at most 1"
            )
        return self
