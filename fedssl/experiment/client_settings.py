"""The settings that a client needs: how it learns, on which data, and what may leave it."""

import functools
import json
from collections.abc import Mapping
from typing import Annotated, Any, Self

import torch
from pydantic import Field, PrivateAttr, ValidationError
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core.findings import Form, input_error
from fedssl.core.registry import Section
from fedssl.core.trust import Trust, current_trust, trusting
from fedssl.data.shard import ImageSpec
from fedssl.data.sources.base import SOURCES, Source
from fedssl.experiment.families import STRATEGIES
from fedssl.experiment.privacy import Privacy
from fedssl.experiment.sections import FederationSection
from fedssl.experiment.settings import without_none
from fedssl.methods.base import METHODS, Method
from fedssl.methods.fixmatch import FixMatch
from fedssl.models.base import MODELS, Model
from fedssl.models.cnn import CNN
from fedssl.training.correction import WithClientHalf
from fedssl.training.network import NetworkSection, build_network
from fedssl.training.optimization import Train
from fedssl.training.recipe import Recipe

PREVIOUS = "previous"
"""The text that clients are sent says under this name what the last phase's network is made of, if they need it."""

DEFAULT_ROUNDS = 40
"""An experiment without `rounds` and without phases has this many rounds."""


class ClientSettings(Section):
    """The settings that are sent to clients. A client parses no others and needs no plug-ins of the server."""

    name: Annotated[
        str, Form("letters, digits, . _ and -, of which the first is a letter or a digit")
    ] = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="name of the experiment's runs, in tables and in the folder runs/",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of every random draw")
    rounds: int | None = Field(None, ge=1, description="rounds of an experiment without phases")
    data: Annotated[Source, SOURCES] = Field(description="where images come from")
    federation: FederationSection = Field(
        FederationSection(), description="the clients, and which images and labels they hold"
    )
    augment: Augment = Field(Augment(), description="how views are made, by their names")
    model: Annotated[Model, MODELS] = Field(CNN(), description="the network")
    method: Annotated[Method, METHODS] = Field(
        FixMatch(), description="how clients learn from labeled and unlabeled images"
    )
    train: Train = Field(Train(), description="a client's local training in a round")
    strategy: Annotated[WithClientHalf, STRATEGIES] | None = Field(
        None, description="the strategy, if it has a client half; else clients do not see it"
    )
    privacy: Privacy | None = Field(
        None,
        description="clipping and noise of a client's update; unset: a client sends the weights as it trained them",
    )

    _trust: Trust = PrivateAttr(default_factory=current_trust)
    """The modules that reading these settings may import. Settings that are derived from them may import no others."""

    _previous: NetworkSection | None = PrivateAttr(None)
    """What the network of the last phase is made of; no setting of the file, because the phases say it."""

    @property
    def recipe(self) -> Recipe:
        """The method, training settings, augmentation and correction with which a client learns."""
        correction = None if self.strategy is None else self.strategy.correction()
        return Recipe(self.method, self.train, self.augment, correction)

    @property
    def num_rounds(self) -> int:
        """The number of rounds."""
        return self.rounds or DEFAULT_ROUNDS

    @property
    def previous(self) -> NetworkSection | None:
        """What the network of the last phase is made of; None in the first phase."""
        return self._previous

    @property
    def needs_previous(self) -> bool:
        """Whether a client needs the network of the last phase: to build its own, or for the content of a slot."""
        return self.method.builds_on_previous or bool(self.recipe.slots_in("phase"))

    def build_network(self, spec: ImageSpec, device: torch.device | str = "cpu") -> nn.Module:
        """Return the network of these settings with its initial weights; see `fedssl.training.network.build_network`."""
        return build_network(self.model, self.method, spec, self.seed, device, self.previous)

    def after(self, last: "ClientSettings | None") -> Self:
        """Return these settings as those of a phase that follows another; None: it is the first phase."""
        if last is not None:
            self._previous = NetworkSection.of(last.model, last.method, last.previous)
        return self

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Validate a table of settings.

        Raises:
            InputError: A setting is invalid; the error has the dotted field, its value and what to do.
        """
        try:
            return cls.model_validate(dict(table))
        except ValidationError as error:
            raise input_error(error, cls) from None

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings of a JSON text; a process parses each text once for each set of modules it may import."""
        trust = current_trust()
        parsed = _parsed(cls, text, trust.modules, trust.keeps_tables)
        assert isinstance(parsed, cls)
        return parsed

    def to_client_json(self) -> str:
        """Return the settings that clients need as one line of JSON, as they are sent."""
        names = set(ClientSettings.model_fields)
        if self.recipe.correction is None:
            names.remove("strategy")
        table = self.model_dump(mode="json", exclude_none=True, include=names)
        if self.previous is not None and self.needs_previous:
            table[PREVIOUS] = self.previous.model_dump(mode="json", exclude_none=True)
        _leave_out_weights(table)
        return json.dumps(without_none(table))


def _leave_out_weights(table: dict[str, Any]) -> None:
    """Take out where the first weights are: clients get the weights themselves."""
    for name in ("weights", "new_head"):
        table["model"].pop(name, None)
    if PREVIOUS in table:
        _leave_out_weights(table[PREVIOUS])


@functools.lru_cache(maxsize=8)
def _parsed(
    kind: type[ClientSettings], text: str, modules: tuple[str, ...] | None, keeps_tables: bool
) -> ClientSettings:
    """Parse a JSON text under a trust; the trust's parts are arguments, so that they are part of the cache's key."""
    with trusting(Trust(modules, keeps_tables)):
        table = json.loads(text)
        previous = table.pop(PREVIOUS, None)
        settings = kind.from_dict(table)
        if previous is not None:
            settings._previous = _previous_of(previous)
        return settings


def _previous_of(table: Mapping[str, Any]) -> NetworkSection:
    try:
        return NetworkSection.model_validate(dict(table))
    except ValidationError as error:
        raise input_error(error, NetworkSection, PREVIOUS) from None
