"""A recorded run, for looking at it afterwards: tables, summary, model."""

import contextlib
import functools
import io
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.extras import require
from fedssl.core.files import whole_lines
from fedssl.core.plugin_modules import find_modules_in
from fedssl.core.trust import ALL, NOBODY, trusting
from fedssl.data.federation import Federation, draw_federation
from fedssl.data.shard import ImageSpec
from fedssl.data.sources.own_images import reading_of
from fedssl.experiment.experiment import Experiment, PhasePlan
from fedssl.metrics.predictions import as_images, predict_probs
from fedssl.record.checkpoint import checkpoint_folder, checkpoint_rounds
from fedssl.record.lines import read_rounds
from fedssl.record.located import locate
from fedssl.record.own_modules import folders_of_own_modules
from fedssl.record.provenance import fingerprint, partition_table, spec_of
from fedssl.record.rows import RoundRow
from fedssl.record.run_path import (
    CLASSES,
    CLIENTS,
    DATA,
    EMA,
    ENVIRONMENT,
    EXPERIMENT,
    MODEL,
    NUMBERS,
    PARTITION,
    ROUNDS,
    SUMMARY,
    check_run,
    way_on,
)
from fedssl.training.judging import Judge, learn_judge

if TYPE_CHECKING:  # a process that needs no table must not wait for pandas
    import pandas as pd

    from fedssl.views.pictures.plots import Picture


class Run:
    """A recorded run; the record of a killed or still running run is read as far as it goes.

    Args:
        path: The run directory, ``runs/NAME/ID``.
        plugins: Import the users' modules that the experiment names, which runs their code; they are also searched in the
            folders that the record names. If false, settings and
            tables can be read, but everything that needs such a module raises `InputError`, unless this process has
            already imported the module.

    Raises:
        InputError: The directory holds no run.
    """

    def __init__(self, path: Path | str, *, plugins: bool = False) -> None:
        self.path = Path(path)
        self._trust = ALL if plugins else NOBODY
        check_run(self.path)
        for entry in self.path.iterdir():
            if not entry.is_file() and not entry.is_dir() and entry.exists():
                # Opening a pipe would block for ever.
                raise InputError(str(entry), "is not a regular file", REMEDY)

    def __repr__(self) -> str:
        """Return the run's name, seed and path, and whether the run is finished."""
        state = "finished" if self.is_finished else "not finished"
        return f"<Run {self.experiment.name} seed {self.experiment.seed}, {state}: {self.path}>"

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The experiment that ran, defaults included."""
        if self._trust is ALL:
            find_modules_in(*folders_of_own_modules(self.path))
        with trusting(self._trust):
            return Experiment.read(self.path / EXPERIMENT)

    @property
    def is_finished(self) -> bool:
        """Whether the run is finished."""
        return (self.path / SUMMARY).exists()

    @property
    def round_rows(self) -> tuple[RoundRow, ...]:
        """The rows of all finished rounds, read without pandas."""
        with naming_damaged_files(self.path / ROUNDS):
            rows = read_rounds(self.path / ROUNDS)
        self._check_whole(len(rows))
        return rows

    @property
    def rounds(self) -> "pd.DataFrame":
        """One row per round; columns as in `fedssl.record.rows.RoundRow`."""
        table = self._table(ROUNDS, texts=("method", "classes_unnamed"))
        self._check_whole(len(table))
        return table

    @property
    def clients(self) -> "pd.DataFrame":
        """One row per client and round; columns as in `fedssl.record.rows.ClientRow`."""
        return self._table(CLIENTS)

    @property
    def classes(self) -> "pd.DataFrame":
        """One row per round and class; columns as in `fedssl.record.rows.ClassRow`."""
        return self._table(CLASSES)

    @property
    def numbers(self) -> "pd.DataFrame":
        """One line a recorded number; columns as in `fedssl.record.rows.NumberRow`. A record of an older version has none."""
        return self._table(NUMBERS)

    @property
    def partition(self) -> "pd.DataFrame":
        """One row per training image: row, client, label (the true class), labeled, given (the label it carries)."""
        return self._table(PARTITION)

    @functools.cached_property
    def data(self) -> dict[str, Any]:
        """Facts about the images; see `fedssl.record.provenance.data_facts`."""
        return self._json(DATA, "class_names", "shape")

    @property
    def judges(self) -> tuple[str, ...]:
        """How the model of each phase was judged, such as ``linear probe, 40 labels``; empty in an older record."""
        return tuple(map(str, self.data.get("judged_by", ())))

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """Machine, versions and command of the run."""
        return self._json(ENVIRONMENT)

    @property
    def summary(self) -> dict[str, Any]:
        """The summary of the finished run; see `fedssl.record.rows.summarize`.

        Raises:
            InputError: The run is not finished.
        """
        if not self.is_finished:
            raise InputError(str(self.path), "is not finished", way_on(self.path, "its end"))
        summary = self._json(SUMMARY, "name", "rounds", "seconds", "ema_accuracy")
        with naming_damaged_files(self.path / SUMMARY):
            for key, value in summary.items():
                if not isinstance(value, _kind_of(key)):
                    raise ValueError(f"its {key} is {str(value)[:50]!r}")
        return summary

    @functools.cached_property
    def federation(self) -> Federation:
        """The federation on which the run ran, held-out images included; the data is read again.

        Raises:
            InputError: The data is missing, or differs from the data of the run.
        """
        experiment = locate(self.experiment, self.path)
        data = experiment.data.dataset(experiment.seed)
        federation = draw_federation(
            data, experiment.federation.deal, experiment.seed, reading_of(experiment.data)
        )
        with naming_damaged_files(self.path / PARTITION):
            same_split = (self.path / PARTITION).read_bytes() == partition_table(federation)
        if not same_split or self.data["held_out_sha256"] != fingerprint(federation.held_out):
            raise InputError(
                str(self.path), "the images of the run are no longer there", "put the data back"
            )
        return federation

    @property
    def spec(self) -> ImageSpec:
        """Properties that all images of the run share, such as their shape."""
        return spec_of(self.data)

    @property
    def newest_round(self) -> int | None:
        """Number of the round after which the newest weights are; None if there are none yet."""
        return next((round for round, _ in self._places()), None)

    def weights(self) -> tuple[int, dict[str, NamedArrays]]:
        """Return the newest weights, and the number of the round after which the models had them.

        A finished run has its final weights. A run that is not finished has the weights of its newest checkpoint; if
        the run goes on and removes this checkpoint meanwhile, the next newest is read.

        Returns:
            The round, and weights by name: of the global model (``"model"``) and of its moving average (``"ema"``).

        Raises:
            InputError: The run has no weights yet, or their files are missing or damaged.
        """
        gone: set[Path] = set()
        while found := [place for place in self._places() if place[1] not in gone]:
            round, folder = found[0]
            try:
                return round, {"ema": load_file(folder / EMA), "model": load_file(folder / MODEL)}
            except FileNotFoundError:
                gone.add(folder)
            except SafetensorError as error:
                raise InputError(str(folder), f"has damaged weights: {error}", REMEDY) from None
        if self.is_finished:
            raise InputError(str(self.path), f"has no {MODEL} or {EMA} any more", "put it back")
        raise InputError(
            str(self.path), "has no model yet", way_on(self.path, "its first checkpoint")
        )

    def arrays(self, *, average: bool = True) -> NamedArrays:
        """Return the newest weights of one model; see `weights`.

        Args:
            average: Return the weights of the global model's moving average; if false, of the global model itself.
        """
        return self.weights()[1]["ema" if average else "model"]

    def _places(self) -> list[tuple[int, Path]]:
        """Return (round, folder with the weights after that round), newest first."""
        if self.is_finished:
            return [(int(self.summary["rounds"]), self.path)]
        rounds = checkpoint_rounds(self.path)
        return [(round, checkpoint_folder(self.path, round)) for round in rounds]

    def model(self, *, average: bool = True) -> nn.Module:
        """Return the learned classifier in evaluation mode, from normalized images (B, C, H, W) to logits (B, classes).

        `spec.normalize` turns images in [0, 1] into the classifier's input. If the model was judged from its features, the
        judge learns again from the same labeled images, and the result is the network together with its judge.

        Args:
            average: Return the moving average of the global model; if false, the global model itself.

        Raises:
            InputError: There is no model yet; or a judge of features needs the run's images, and they are missing.
        """
        round, models = self.weights()
        arrays = models["ema" if average else "model"]
        return build_classifier(self.experiment, self.spec, arrays, round, lambda: self.federation)

    def predict(
        self, images: npt.NDArray[Any] | torch.Tensor, *, average: bool = True
    ) -> npt.NDArray[np.float32]:
        """Return the probability of every class, (B, classes), in the order of ``data["class_names"]``.

        Args:
            images: Images (B, C, H, W) of the run's shape; bytes, or floats in [0, 1].
            average: Use the moving average of the global model; if false, the global model itself.

        Raises:
            InputError: The images have another shape, type or range, or there is no model yet.
        """
        network = self.model(average=average)
        probs = predict_probs(network, as_images(images, self.spec), self.spec)
        return np.asarray(probs.numpy(), dtype=np.float32)

    def plot(self) -> "Picture":
        """Draw by round the accuracy of the global model and its moving average, and pseudo-labels right and used."""
        require("matplotlib", "plot", "the picture")
        from fedssl.views.pictures.run_plot import run_figure

        return run_figure(self.round_rows, self.data["description"])

    def plot_federation(self) -> "Picture":
        """Draw which labeled and unlabeled images each client holds.

        Raises:
            InputError: What clients hold is private, or the data is missing or differs; see `federation`.
        """
        require("matplotlib", "plot_federation", "the picture")
        from fedssl.data.client_names import client_names
        from fedssl.views.pictures.federation_plot import federation_figure

        section = self.experiment.federation
        if section.private:
            raise InputError("plot_federation", "what clients hold is private")
        names = client_names(self.federation, section.partition)
        return federation_figure(self.federation, names, self.data["description"])

    def _repr_html_(self) -> str:
        from fedssl.views.card import card

        return card(self)

    def _table(self, name: str, texts: Sequence[str] = ()) -> "pd.DataFrame":
        """Return a table of the record; columns of texts are no numbers, even if they hold only digits."""
        require("pandas", "run", "a table")
        import pandas as pd

        with naming_damaged_files(self.path / name):
            lines = io.StringIO(whole_lines(self.path / name), newline="")
            table = pd.read_csv(lines, dtype=dict.fromkeys(texts, str))
        known = [column for column in texts if column in table]
        return table.fillna(dict.fromkeys(known, ""))

    def _json(self, name: str, *keys: str) -> dict[str, Any]:
        """Return the content of a JSON file, which must be a table with the given keys."""
        with naming_damaged_files(self.path / name):
            table: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(table, dict) or not set(keys) <= table.keys():
                raise ValueError(f"it lacks one of {', '.join(keys)}")
        return table

    def _check_whole(self, num_rounds: int) -> None:
        """Raise `InputError` if a finished run's table of rounds has not as many rounds as its summary says."""
        if self.is_finished and num_rounds != self.summary["rounds"]:
            problem = f"has {num_rounds} rounds, and its {SUMMARY} says {self.summary['rounds']}"
            raise InputError(str(self.path / ROUNDS), problem, REMEDY)


def _kind_of(key: str) -> Any:
    """Return the types that an entry of a summary can have; an unknown number is null."""
    if key in ("name", "method", "evaluated_on", "judged_by", "remark", "stopped"):
        return str
    return int if key in ("rounds", "last_rounds", "seed") else int | float | None


REMEDY = "put the file back from a copy, or do without this run"
"""Advice to a user whose record has a missing or damaged file."""


@contextlib.contextmanager
def naming_damaged_files(path: Path) -> Iterator[None]:
    """Turn an error in the block into an `InputError` that names the file and what to do.

    Args:
        path: The file of a record that the block reads.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        yield
    except FileNotFoundError:
        raise InputError(str(path.parent), f"has no {path.name}", REMEDY) from None
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise InputError(str(path), f"cannot be read: {error}", REMEDY) from None


def build_network_of(
    experiment: Experiment, spec: ImageSpec, arrays: NamedArrays, round: int
) -> tuple[PhasePlan, nn.Module]:
    """Return a round's phase, and its network with the weights after the round, in evaluation mode.

    Args:
        experiment: The experiment that ran.
        spec: Properties that all its images share.
        arrays: Weights that clients share, by name. Weights that clients do not share keep their initial values.
        round: Number of the round after which the model had these weights; the round's phase decides the network.
    """
    phase = experiment.plans[experiment.phase_of(round)]
    network = phase.build_network(spec)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    network.load_state_dict({**network.state_dict(), **tensors})
    return phase, network.eval()


def build_classifier(
    experiment: Experiment,
    spec: ImageSpec,
    arrays: NamedArrays,
    round: int,
    federation: Callable[[], Federation],
) -> nn.Module:
    """Return an experiment's classifier with the weights after a round, in evaluation mode, as the phase judges it.

    Args:
        experiment, spec, arrays, round: As in `build_network_of`.
        federation: Function that returns the federation on which the experiment ran; called only if the phase's evaluator
            learns from labeled images.
    """
    phase, network = build_network_of(experiment, spec, arrays, round)
    evaluator, method = phase.server.evaluator, phase.method
    if not evaluator.learns:
        return method.classifier(network)
    learned = learn_judge(evaluator, method, network, federation())
    return Judge(evaluator, method, network, spec, learned).eval()
