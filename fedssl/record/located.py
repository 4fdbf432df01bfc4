"""The experiment of a recorded run, with its relative paths where the run found them, whatever the current folder is now."""

from collections.abc import Iterable
from pathlib import Path

from fedssl.experiment.experiment import Experiment
from fedssl.experiment.paths import HERE, find_paths
from fedssl.record.provenance import FOLDER, recorded_environment
from fedssl.record.run_path import EXPERIMENT


def read_located(run: Path, settings: Iterable[str] = ()) -> Experiment:
    """Read the experiment of a run as it can go on, from any current folder.

    Args:
        run: The run's folder.
        settings: Settings that are laid over the experiment's; their relative paths lie below the current folder.

    Raises:
        InputError: The experiment file of the record cannot be read, or a setting is invalid.
    """
    experiment = locate(Experiment.read(run / EXPERIMENT), run)
    settings = list(settings)
    return experiment.with_settings(*settings) if settings else experiment


def locate(experiment: Experiment, run: Path) -> Experiment:
    """Return the experiment of a run with its relative paths found: where the run found them, or else below the current folder.

    Args:
        experiment: The experiment as the record has it.
        run: The run's folder.
    """
    folder = recorded_environment(run).get(FOLDER)
    first = [Path(folder)] if isinstance(folder, str) and Path(folder).is_absolute() else []
    return find_paths(experiment, [*first, HERE, run])
