"""The experiment file: load, override, validate, and resolve it phase by phase. Every setting passes through here."""

import functools
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import Field, model_validator

from fedssl.core.errors import InputError
from fedssl.core.plugin_modules import find_modules_in
from fedssl.core.registry import Plugin
from fedssl.core.toml import read_toml
from fedssl.core.trust import trusting
from fedssl.experiment.asked_views import Asked, check_views
from fedssl.experiment.client_settings import ClientSettings
from fedssl.experiment.effects import WITHOUT_EFFECT
from fedssl.experiment.elsewhere import name_the_place
from fedssl.experiment.families import PLUGIN_SECTIONS, STRATEGIES, TRACKERS, family_at
from fedssl.experiment.paths import HERE, find_paths, keep_searched
from fedssl.experiment.phases import Phases, naming, settings_in
from fedssl.experiment.preset import PresetName, merge_with_presets, with_preset
from fedssl.experiment.sections import EngineSection, RecordSection, ServerSection
from fedssl.experiment.settings import tables_of, without_none
from fedssl.experiment.system.section import System
from fedssl.methods.base import Method
from fedssl.training.correction import WithClientHalf
from fedssl.training.recipe import Recipe


class RunSettings(ClientSettings):
    """All settings but the phases: the settings that a whole experiment and one of its phases have in common."""

    strategy: Annotated[WithClientHalf, STRATEGIES] = Field(
        default_factory=lambda: STRATEGIES.build({}),
        validate_default=True,
        description="how the server makes one model out of the clients' models",
    )
    server: ServerSection = Field(
        ServerSection(), description="what the server does in addition to aggregating"
    )
    system: System | None = Field(
        None, description="virtual devices and virtual time; unset: every client answers at once"
    )
    engine: EngineSection = Field(EngineSection(), description="where clients run")
    record: RecordSection = Field(
        RecordSection(), description="the report that is made of a run's record"
    )
    tracker: Annotated[Plugin, TRACKERS] | None = Field(
        None, description="where the run is tracked in addition to its record; unset: nowhere"
    )

    @model_validator(mode="after")
    def _check_sections(self) -> Self:
        if self.data.validation and self.federation.labels.validation:
            raise ValueError(
                "data.validation and federation.labels.validation exclude each other; drop one"
            )
        stop = self.server.stop_when
        if stop is not None and stop.no_gain is not None and self.evaluated_on != "validation":
            raise ValueError(
                "server.stop_when.no_gain needs validation images, because no choice may look at test images; "
                "set data.validation or federation.labels.validation, such as to 0.2, or drop no_gain"
            )
        if self.system is not None and self.federation.private:
            raise ValueError(
                "system is virtual time, but clients with private data (federation.private) run in real time; drop system"
            )
        return self

    @property
    def server_recipe(self) -> Recipe:
        """The method, the training settings and the augmentation with which the server learns if it trains."""
        return Recipe(self.server.method, self.server.train or self.train, self.augment)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The methods that train: the clients' method, and the server's if the server trains."""
        return (self.method, self.server.method) if self.server_trains else (self.method,)

    @property
    def server_trains(self) -> bool:
        """Whether the server trains too: it holds labels, and the clients' method trains the classifier with them."""
        return self.federation.labels.at_server and self.method.trains_classifier

    @property
    def evaluated_on(self) -> str:
        """The kind of images on which the global model is evaluated: ``"test"`` or ``"validation"``."""
        held = self.data.validation or self.federation.labels.validation
        return "validation" if held else "test"


class PhasePlan(RunSettings):
    """The settings of one phase: the experiment's settings, with the phase's overrides laid over them."""


class Experiment(RunSettings):
    """All settings that define a run."""

    phases: Phases = ()
    preset: PresetName | None = Field(
        None,
        description="settings of several sections by one name; the file's own settings lie over them, and a record holds these settings in place of the name",
    )

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        if self.rounds is not None and self.phases:
            raise ValueError(
                "rounds and phases exclude each other; phases carry their own rounds, so drop rounds"
            )
        return self

    @functools.cached_property
    def plans(self) -> tuple[PhasePlan, ...]:
        """The settings of every phase, resolved once; an experiment without phases has one plan.

        Raises:
            InputError: A phase overrides a setting that it may not override, or with an invalid value.
        """
        if not self.phases:
            own = {name: getattr(self, name) for name in PhasePlan.model_fields}
            plan = PhasePlan.model_construct(**own | {"rounds": self.num_rounds})
            plan._trust = self._trust
            return (plan,)
        table = self._own_settings()
        plans: list[PhasePlan] = []
        with trusting(self._trust):
            for i, phase in enumerate(self.phases):
                with naming(i):
                    plan = PhasePlan.from_dict(settings_in(table, phase, family_at, is_first=not i))
                plans.append(plan.after(plans[-1] if plans else None))
        return tuple(plans)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields replaced, whose phases are resolved anew."""
        copied = super().model_copy(update=update, deep=deep)
        copied.__dict__.pop("plans", None)
        return copied

    @functools.cached_property
    def changed_kinds(self) -> tuple[str, ...]:
        """Which settings a section kept and lost when it got another kind, as sentences; no part of the settings."""
        return ()

    @property
    def largest_sample(self) -> int:
        """The largest number of clients that any phase samples in a round."""
        return max(plan.federation.sample for plan in self.plans)

    @property
    def num_rounds(self) -> int:
        """The number of rounds of all phases together."""
        return sum(phase.rounds for phase in self.phases) or super().num_rounds

    def phase_of(self, round: int) -> int:
        """Return the phase, from 0, that a round belongs to.

        Args:
            round: Round from 1; a round beyond the last one belongs to the last phase.
        """
        ends = itertools.accumulate(plan.num_rounds for plan in self.plans[:-1])
        return sum(round > end for end in ends)

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Validate a table of settings, phases included.

        Raises:
            InputError: A setting is invalid; the error has the dotted field, its value and what to do.
        """
        try:
            experiment = super().from_dict(with_preset(table, family_at))
            plans = experiment.plans  # raises if a phase is invalid
        except InputError as error:
            raise name_the_place(error, cls) from None
        prefixes = [f"phases[{i}]." for i in range(len(experiment.phases))] or [""]
        check_views(
            [
                Asked(where, plan.augment, plan.methods)
                for where, plan in zip(prefixes, plans, strict=True)
            ]
        )
        return experiment

    @classmethod
    def load(cls, path: Path | str, settings: Iterable[str] = ()) -> "Experiment":
        """Read an experiment file, which may name modules in its folder, and lay ``a.b=value`` settings over it.

        Args:
            path: A TOML file.
            settings: Each ``dotted.key=value``; the value as TOML would write it, or a bare word.

        Raises:
            InputError: The file is missing, has a syntax error (with its line), or a setting is invalid.
        """
        find_modules_in(Path(path).absolute().parent)
        return cls.read(path, settings)

    @classmethod
    def read(cls, path: Path | str, settings: Iterable[str] = ()) -> "Experiment":
        """Read an experiment file as `load` does, but search no modules in its folder, such as that of a record.

        A relative path in a setting is one below the current folder, or else below the folder of the experiment file.

        Args:
            path: A TOML file.
            settings: Each ``dotted.key=value``; the value as TOML would write it, or a bare word.

        Raises:
            InputError: The file is missing, has a syntax error (with its line), or a setting is invalid.
        """
        table, said = read_toml(Path(path)), list[str]()
        overrides = tables_of(settings, family_at)
        try:
            merged = merge_with_presets(table, overrides, family_at, said)
            experiment = cls.from_dict(merged)
        except InputError as error:
            raise error.within(f"{path}: ") from None
        experiment = find_paths(experiment, [HERE, Path(path).parent])
        experiment.__dict__["changed_kinds"] = tuple(said)
        return experiment

    def with_settings(self, *settings: str) -> "Experiment":
        """Return this experiment with ``a.b=value`` settings laid over it, as ``--set`` does to a file.

        Args:
            settings: Each ``dotted.key=value``; the value as TOML would write it, or a bare word.

        Raises:
            InputError: A setting is invalid.
        """
        said: list[str] = []
        with trusting(self._trust):
            over = tables_of(settings, family_at)
            experiment = self.from_dict(merge_with_presets(self._given(), over, family_at, said))
        experiment.__dict__["changed_kinds"] = (*self.changed_kinds, *said)
        keep_searched(self, experiment)
        return experiment

    def deployed(self) -> "Experiment":
        """Return this experiment with clients that bring their own images (``private``) in place of simulated sites.

        Raises:
            InputError: The experiment has settings that a deployment cannot have, such as virtual time.
        """
        table = self.to_dict()
        federation = {k: v for k, v in table["federation"].items() if k != "sites"}
        with trusting(self._trust):
            return self.from_dict({**table, "federation": {**federation, "private": True}})

    def _given(self) -> dict[str, Any]:
        """Return `to_dict` without those settings of plug-ins that nobody gave: another kind has other defaults."""
        table = self.to_dict()
        for section in PLUGIN_SECTIONS:
            *path, last = section.split(".")
            owner: Any = self
            inner = table
            for part in path:
                owner, inner = getattr(owner, part, None), inner.get(part, {})
            plugin = getattr(owner, last, None)
            if isinstance(plugin, Plugin):
                given = {PLUGIN_SECTIONS[section].key, *plugin.model_fields_set}
                inner[last] = {k: v for k, v in inner[last].items() if k in given}
        return table

    def _own_settings(self) -> dict[str, Any]:
        """Return every setting but the phases, in the form of `to_dict`."""
        table: dict[str, Any] = self.model_dump(mode="json", exclude_none=True, exclude={"phases"})
        pruned: dict[str, Any] = without_none(table)
        return pruned

    def to_dict(self) -> dict[str, Any]:
        """Return every setting, defaults included, as plain tables without unset values."""
        phases = [without_none({"rounds": p.rounds, **p.overrides}) for p in self.phases]
        return {**self._own_settings(), "phases": phases}

    def to_json(self) -> str:
        """Return the experiment as one line of text, without the sections that cannot change a result."""
        return json.dumps({k: v for k, v in self.to_dict().items() if k not in WITHOUT_EFFECT})

    def to_toml(self) -> str:
        """Return the text of an equal experiment file, with every default written out."""
        table = {k: v for k, v in self.to_dict().items() if v not in ([], {})}
        return tomli_w.dumps(table)
