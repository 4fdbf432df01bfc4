"""Say whether a run begins with weights that another run has trained on images which this run holds out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedssl.core.errors import InputError
from fedssl.core.rng import SERVER
from fedssl.core.trust import NOBODY, trusting
from fedssl.data.federation import Federation
from fedssl.data.images import Mask
from fedssl.data.sources.base import Source
from fedssl.experiment.experiment import Experiment
from fedssl.experiment.paths import resolve_paths
from fedssl.models.weights_file import SETTING, find_weights
from fedssl.record.located import locate
from fedssl.record.provenance import recorded_environment
from fedssl.record.run_path import EXPERIMENT, PARTITION, has_begun


def remark_on_weights(experiment: Experiment, federation: Federation) -> str:
    """Return a sentence if the run of `model.weights` has trained on held-out images of an experiment; else an empty text.

    The run that gives the weights may have begun with the weights of another run, whose training images count, too. Weights
    whose training images are not known, such as those of an exported file, get no remark.

    Args:
        experiment: The experiment that begins with the weights.
        federation: The federation that it describes.
    """
    model, held_out = experiment.plans[0].model, federation.held_out
    if model.weights is None or held_out.pool is not federation.train_here.pool:
        return ""  # test images of their own lie in a pool that nobody trains on
    try:
        folder = find_weights(model.weights, model.kind).parent
    except InputError:
        return ""  # a run that goes on needs the file no more
    trained = np.zeros(len(held_out.pool), dtype=np.bool_)
    seeds = set()
    for seed, own in _trained_images(folder, experiment):
        trained |= own
        seeds.add(seed)
    rows = np.arange(len(held_out)) if held_out.rows is None else held_out.rows
    count = int(trained[rows].sum())
    if not count:
        return ""
    remedy = "Hold out the same images in both runs"
    if seeds != {experiment.seed}:
        remedy = f"Use the seed of that run, {', '.join(map(str, sorted(seeds)))}"
    return (
        f"{SETTING}: the run that gives the weights has trained on images that this run holds out ({count:,} of {len(rows):,} "
        f"{federation.held_out_name} images; {folder}): accuracies are too high. {remedy}, or data with test images of its own."
    )


def _trained_images(folder: Path, experiment: Experiment) -> Iterator[tuple[int, Mask]]:
    """Yield the seed of each run that made the weights in a folder, newest first, and which images of the pool it trained on.

    A run is left out if it has other data than the experiment, or if its record cannot be read.
    """
    seen = set[Path]()
    while has_begun(folder) and folder.resolve() not in seen:
        seen.add(folder.resolve())
        try:
            with trusting(NOBODY):  # the run may be a stranger's
                recorded = locate(Experiment.read(folder / EXPERIMENT), folder)
            found = _images_of(folder, recorded, experiment.data)
        except (InputError, OSError, ValueError):
            found = None
        if found is not None:
            yield recorded.seed, found
        before = recorded_environment(folder).get("initial_weights")
        file = before.get("file") if isinstance(before, dict) else None
        if not isinstance(file, str):
            return
        folder = Path(file).parent


def _images_of(folder: Path, recorded: Experiment, data: Source) -> Mask | None:
    """Return which images of the pool a run has trained on, (P,); None if it read other data."""
    own = resolve_paths(recorded).data.to_dict("source")
    apart = data.cuts | data.places
    wanted = resolve_paths(data).to_dict("source")
    if {k: v for k, v in own.items() if k not in apart} != {
        k: v for k, v in wanted.items() if k not in apart
    }:
        return None
    # The run's kind of data may be the user's own, whose code a record must not import; the experiment's is imported already.
    cut = data.model_copy(update={name: own[name] for name in data.cuts})
    train = cut.dataset(recorded.seed).train
    owner = np.loadtxt(
        folder / PARTITION, dtype=np.int64, delimiter=",", skiprows=1, usecols=1, ndmin=1
    )[: len(train)]  # the images of sites come last
    rows = np.arange(len(train)) if train.rows is None else train.rows
    trained = np.zeros(len(train.pool), dtype=np.bool_)
    trained[rows[: len(owner)][owner >= SERVER]] = True
    return trained
