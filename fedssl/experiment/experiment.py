"""The experiment file: load, override, validate. The one gate through which every setting comes."""

import functools
import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from fedssl.augment.policy import STRONG, WEAK, Augment
from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin, Section, input_error
from fedssl.core.trust import Trust, current, trusting
from fedssl.data.features.base import FEATURE_SKEWS
from fedssl.data.federation import UNLABELED_PARTITIONS
from fedssl.data.label_noise.base import LABEL_NOISES
from fedssl.data.labels.base import LABEL_SPLITS
from fedssl.data.partitions.base import PARTITIONS
from fedssl.data.sources.base import SOURCES, Source
from fedssl.experiment.privacy import Privacy
from fedssl.experiment.sections import (
    SERVER_METHODS,
    EngineSection,
    FederationSection,
    RecordSection,
    ServerSection,
)
from fedssl.experiment.system.section import SYSTEM_FAMILIES, System
from fedssl.methods.base import METHODS, Method
from fedssl.methods.fixmatch import FixMatch
from fedssl.models.base import MODELS, Model
from fedssl.models.cnn import CNN
from fedssl.training.loop import Recipe
from fedssl.training.optimization import Train

STRATEGIES = Family("strategy", "fedssl.strategies", Plugin, "strategy", default="fedavg")
TRACKERS = Family("tracker", "fedssl.views.trackers", Plugin, "tracker", default=None)

PLUGIN_SECTIONS = {
    family.section: family
    for family in (
        *(SOURCES, PARTITIONS, UNLABELED_PARTITIONS, LABEL_SPLITS, LABEL_NOISES, FEATURE_SKEWS),
        *(MODELS, METHODS, SERVER_METHODS, STRATEGIES, TRACKERS, WEAK, STRONG, *SYSTEM_FAMILIES),
    )
}
"""Sections that name a plugin, by where they stand."""


class Phase(Section):
    """One of the ``[[phases]]`` that script the rounds: a number of rounds and what differs in them."""

    model_config = ConfigDict(frozen=True, extra="allow")

    rounds: int = Field(ge=1, description="rounds of this phase")

    @property
    def overrides(self) -> dict[str, Any]:
        """Return the tables that this phase lays over the experiment's own."""
        return dict(self.model_extra or {})


LARGEST_FILE = 4 << 20
"""Bytes that an experiment file has at most; longer ones are something else."""

MOST_PHASES = 1000
"""Phases that an experiment has at most; each is validated like an experiment of its own."""

UNSET = "unset"
"""What ``--set KEY=unset`` takes out of a file; `fedssl list` says so of what has no default."""

PHASE_SECTIONS = ("method", "train", "strategy", "server", "augment", "federation")
"""What a phase may override; of the federation, only the number of sampled clients."""


WITHOUT_EFFECT = ("engine", "record", "tracker")
"""Sections that say where and with what record a run goes and who is told, and change nothing that clients learn."""


class Experiment(Section):
    """Everything that defines a run."""

    name: str = Field(
        "experiment",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        max_length=100,
        description="what its runs are called, in tables and below runs/",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="decides every random draw")
    rounds: int | None = Field(None, ge=1, description="rounds, where no phases script them")
    data: Annotated[Source, SOURCES] = Field(description="where images come from")
    federation: FederationSection = Field(
        FederationSection(), description="who takes part and what they hold"
    )
    augment: Augment = Field(Augment(), description="what weak and strong views are")
    model: Annotated[Model, MODELS] = Field(CNN(), description="the network")
    method: Annotated[Method, METHODS] = Field(
        FixMatch(), description="how clients learn from labeled and unlabeled images"
    )
    train: Train = Field(Train(), description="a client's local training in a round")
    strategy: Annotated[Plugin, STRATEGIES] = Field(
        default_factory=lambda: STRATEGIES.build({}),
        validate_default=True,
        description="how the server makes one model of the clients'",
    )
    server: ServerSection = Field(
        ServerSection(), description="what the server does beside aggregating"
    )
    system: System | None = Field(
        None, description="virtual devices and virtual time; unset: every client answers at once"
    )
    privacy: Privacy | None = Field(
        None,
        description="clipped and noisy updates; unset: a client sends the weights as it trained them",
    )
    engine: EngineSection = Field(EngineSection(), description="where clients run")
    record: RecordSection = Field(
        RecordSection(), description="what is made of the record beside the record itself"
    )
    tracker: Annotated[Plugin, TRACKERS] | None = Field(
        None, description="where the run is tracked beside its record; unset: nowhere"
    )
    phases: tuple[Phase, ...] = Field(
        (),
        max_length=MOST_PHASES,
        description="the script of the rounds; none: one phase of `rounds`, 40 if unset",
    )

    _trust: Trust = PrivateAttr(default_factory=current)
    """Whose code its own reading may import; what is made of it may import no more."""

    @model_validator(mode="after")
    def _check(self) -> "Experiment":
        if self.rounds is not None and self.phases:
            raise ValueError(
                "rounds and phases exclude each other; phases carry their own rounds, so drop rounds"
            )
        if self.data.validation and self.federation.labels.validation:
            raise ValueError(
                "data.validation and federation.labels.validation exclude each other; drop one"
            )
        if self.system is not None and self.federation.private:
            raise ValueError(
                "system is virtual time, which clients with private data (federation.private) do not live in; drop system"
            )
        return self

    @property
    def schedule(self) -> tuple[Phase, ...]:
        """Return the phases; a file without any is one phase of `rounds`, 40 by default."""
        return self.phases or (Phase(rounds=self.rounds or 40),)

    @property
    def recipe(self) -> Recipe:
        """Return how a client learns."""
        return Recipe(self.method, self.train, self.augment)

    @property
    def server_recipe(self) -> Recipe:
        """Return how the server learns, where labels are at the server."""
        return Recipe(self.server.method, self.server.train or self.train, self.augment)

    @property
    def evaluated_on(self) -> str:
        """Return what the global model is evaluated on: ``"test"`` or ``"validation"`` images."""
        held = self.data.validation or self.federation.labels.validation
        return "validation" if held else "test"

    @property
    def largest_sample(self) -> int:
        """Return the most clients that any phase samples."""
        return max(self.in_phase(i).federation.sample for i in range(len(self.schedule)))

    @property
    def num_rounds(self) -> int:
        """Return the rounds of all phases."""
        return sum(phase.rounds for phase in self.schedule)

    def phase_of(self, round: int) -> int:
        """Return the phase, from 0, that a round belongs to.

        Args:
            round: From 1; what lies beyond the last one belongs to the last phase.
        """
        ends = itertools.accumulate(phase.rounds for phase in self.schedule[:-1])
        return sum(round > end for end in ends)

    def in_phase(self, index: int) -> "Experiment":
        """Return the experiment as it stands in one phase, without phases of its own.

        Raises:
            InputError: The phase overrides what it may not, or with something invalid.
        """
        phase = self.schedule[index]
        where = f"phases[{index}]."
        for section, value in phase.overrides.items():
            if section not in PHASE_SECTIONS:
                raise InputError(
                    f"{where}{section}", "a phase cannot set this", _or(PHASE_SECTIONS)
                )
            if section == "federation" and (
                not isinstance(value, Mapping) or set(value) != {"sample"}
            ):
                raise InputError(f"{where}federation", "a phase can set federation.sample only")
        table = merge(self._own_settings(), phase.overrides)
        table["rounds"] = phase.rounds
        try:
            with trusting(self._trust):
                return Experiment.from_dict(table)
        except InputError as error:
            raise error.within(where) from None

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> "Experiment":
        """Validate a table of settings, phases included.

        Raises:
            InputError: With the dotted field, its value and what to do.
        """
        try:
            experiment = cls.model_validate(dict(table))
        except ValidationError as error:
            raise input_error(error, cls) from None
        for index in range(len(experiment.phases)):
            experiment.in_phase(index)
        return experiment

    @classmethod
    def load(cls, path: Path | str, settings: Iterable[str] = ()) -> "Experiment":
        """Read an experiment file and lay ``a.b=value`` settings over it.

        Args:
            path: A TOML file.
            settings: Each ``dotted.key=value``; the value as TOML would write it, or a bare word.

        Raises:
            InputError: No such file, a syntax error (with its line), or an invalid setting.
        """
        table = _read_toml(Path(path))
        overrides = _tables(settings)
        try:
            return cls.from_dict(merge(table, overrides))
        except InputError as error:
            raise error.within(f"{path}: ") from None

    def with_settings(self, *settings: str) -> "Experiment":
        """Return this experiment with ``a.b=value`` settings laid over it, as ``--set`` does to a file.

        Args:
            settings: Each ``dotted.key=value``; the value as TOML would write it, or a bare word.

        Raises:
            InputError: An invalid setting.
        """
        with trusting(self._trust):
            return self.from_dict(merge(self.to_dict(), _tables(settings)))

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """Read what `to_json` wrote; a worker parses each text once, and anew if it may import other modules."""
        trust = current()
        return _parsed(text, trust.modules, trust.keeps_tables)

    def _own_settings(self) -> dict[str, Any]:
        """Return every setting but the phases, as `to_dict` does."""
        table: dict[str, Any] = self.model_dump(mode="json", exclude_none=True, exclude={"phases"})
        pruned: dict[str, Any] = _without_none(table)
        return pruned

    def to_dict(self) -> dict[str, Any]:
        """Return every setting, defaults included, as plain tables without unset values."""
        phases = [_without_none({"rounds": p.rounds, **p.overrides}) for p in self.phases]
        return {**self._own_settings(), "phases": phases}

    def to_json(self) -> str:
        """Return the experiment as one line of text, as it travels to clients; without what cannot change a result."""
        return json.dumps({k: v for k, v in self.to_dict().items() if k not in WITHOUT_EFFECT})

    def to_toml(self) -> str:
        """Return the experiment file that says the same with every default written out."""
        table = {k: v for k, v in self.to_dict().items() if v not in ([], {})}
        return tomli_w.dumps(table)


@functools.lru_cache(maxsize=8)
def _parsed(text: str, modules: tuple[str, ...] | None, keeps_tables: bool) -> Experiment:
    """Read an experiment's JSON under a trust, whose parts are told apart here and nowhere else."""
    with trusting(Trust(modules, keeps_tables)):
        return Experiment.from_dict(json.loads(text))


def merge(base: Mapping[str, Any], over: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Lay one table of settings over another.

    Tables merge key by key, but a section that names another plugin (``method.kind``) replaces the old one: settings of
    one method mean nothing to the next. Only what all of a family have stays, such as how many labels there are. None
    takes a setting out. Numbered keys (``phases.0.rounds``) reach into lists.
    """
    merged = dict(base)
    for key, value in over.items():
        where = f"{path}.{key}" if path else key
        below = merged.get(key)
        family = PLUGIN_SECTIONS.get(where)
        if family is not None:
            value, below = family.as_table(value), family.as_table(below)
            if family.kind_of(value, below) != family.kind_of(below):
                below = {k: v for k, v in (below or {}).items() if k in family.base.model_fields}
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(below, list):
            merged[key] = _merge_list(below, value, where)
        elif isinstance(value, Mapping) and isinstance(below, Mapping):
            merged[key] = merge(below, value, where)
        else:
            merged[key] = value
    return merged


def _merge_list(below: list[Any], over: Mapping[str, Any], where: str) -> list[Any]:
    merged = list(below)
    for key, value in over.items():
        if not (key.isascii() and key.isdecimal() and int(key) < len(merged)):
            raise InputError(f"{where}.{key}", f"there are {len(merged)}, counted from 0")
        item = merged[int(key)]
        if isinstance(item, Mapping) and isinstance(value, Mapping):
            # What a phase holds are sections of the experiment, so paths begin anew.
            merged[int(key)] = merge(item, value, "" if where == "phases" else f"{where}.{key}")
        else:
            merged[int(key)] = value
    return merged


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(str(path), "no such file") from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a name with a NUL
        raise InputError(str(path), f"cannot be read: {error}") from None
    if len(content) > LARGEST_FILE:
        raise InputError(str(path), f"has more than {LARGEST_FILE >> 20} MiB", "check the path")
    try:
        return tomllib.loads(text)
    except ValueError as error:  # of a number of too many digits, Python itself
        raise InputError(str(path), f"is not valid TOML: {error}") from None
    except RecursionError:
        raise InputError(str(path), "is not valid TOML: it is nested too deep") from None


def _tables(settings: Iterable[str]) -> dict[str, Any]:
    """Return ``a.b=value`` settings as nested tables."""
    table: dict[str, Any] = {}
    for setting in settings:
        _put(table, setting)
    return table


def _put(table: dict[str, Any], setting: str) -> None:
    """Write ``a.b=value`` into nested tables."""
    key, equals, value = setting.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise InputError("--set", f"{setting!r} is not of the form a.b=value")
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise InputError("--set", f"{setting!r} reaches into a value that is not a table")
    table[parts[-1]] = read_value(value.strip())


def read_value(text: str) -> Any:
    """Read a setting's value as TOML would; a bare word is a string, but for ``unset``, which is None."""
    if text == UNSET:
        return None
    try:
        found = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except (ValueError, RecursionError) as error:
        raise InputError("--set", f"{text[:40]!r}... is no value: {error}") from None
    if len(found) > 1:
        raise InputError("--set", f"{text[:40]!r} is more than one value", "give each a --set")
    return found["value"]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    if isinstance(value, list | tuple):
        return [_without_none(v) for v in value]
    return value


def _or(words: Iterable[str]) -> str:
    return "one of: " + ", ".join(words)
