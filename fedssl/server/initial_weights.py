"""Begin a run from the weights of a file: every weight of the classifier must be in it, in the right shape."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.core.registry import Plugin, Unimported
from fedssl.core.trust import NOBODY, trusting
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.experiment.client_settings import ClientSettings
from fedssl.experiment.experiment import Experiment, PhasePlan
from fedssl.methods.supervised import Supervised
from fedssl.models.weights_file import SETTING, TORCHVISION, find_weights, torchvision_names
from fedssl.record.provenance import spec_of
from fedssl.record.run_path import DATA, EXPERIMENT, SUMMARY, has_begun
from fedssl.training.network import build_network, classifier_names

HEAD = "head."
"""Names of the weights of a classifier's head begin with this."""

MOST_NAMED = 3
"""A message names at most this many weights that do not fit."""


def load_initial_weights(settings: ClientSettings, network: nn.Module) -> None:
    """Copy the weights of `model.weights` over those of a network's classifier, in place; without that setting, do nothing.

    Args:
        settings: The settings of the first phase.
        network: The phase's network; the parts that the method adds to the classifier keep their initial weights.

    Raises:
        InputError: The file is missing or damaged, or its weights do not fit the classifier.
    """
    model = settings.model
    if model.weights is None:
        if model.new_head:
            raise InputError("model.new_head", "is true, but there are no weights", "drop it")
        return
    whole = classifier_names(settings.method.classifier(network), network)
    _refuse_private(settings, whole)
    state = network.state_dict()
    arrays = _read(find_weights(model.weights, model.kind), model.weights, model.kind, whole)
    by_classifier = {own: name for name, own in whole.items()}
    arrays = {by_classifier.get(name, name): array for name, array in arrays.items()}
    if model.new_head:
        arrays = {name: array for name, array in arrays.items() if not name.startswith(HEAD)}
        whole = {name: own for name, own in whole.items() if not name.startswith(HEAD)}
    _check_fit(model.weights, {name: state[own] for name, own in whole.items()}, arrays)
    protocol.load_network(
        network, {own: arrays[name] for name, own in whole.items()}, whole.values()
    )


def _refuse_private(settings: ClientSettings, whole: Mapping[str, str]) -> None:
    """Refuse weights that would not reach the clients, because the method shares them with nobody."""
    private = [name for name, own in whole.items() if not settings.method.is_shared(own)]
    if private:
        problem = f"would not reach the clients: {settings.method.kind} does not share {private[0]}"
        raise InputError(SETTING, problem, "take another method, or drop the weights")


def _read(file: Path, weights: str, kind: str, wanted: Collection[str]) -> NamedArrays:
    """Return the weights of a file, by their names in the classifier where they are known.

    Args:
        file: The file.
        weights: The setting that names it.
        kind: Kind of the model.
        wanted: Names of the weights of the model's classifier.
    """
    try:
        if weights.startswith(TORCHVISION):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
            ours = torchvision_names(kind)
            return {ours[name]: loaded[name].numpy() for name in ours if name in loaded}
        arrays: dict[str, Any] = load_file(file)
    except (OSError, SafetensorError, TypeError, RuntimeError, KeyError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InputError(SETTING, f"{file} cannot be read: {said}", "name another file") from None
    if has_begun(file.parent) and (file.parent / SUMMARY).exists():
        return _of_run(file, arrays, wanted)
    return arrays


def _of_run(file: Path, arrays: NamedArrays, wanted: Collection[str]) -> NamedArrays:
    """Return the weights of a run's classifier by their names in it; the run's method may have added other weights."""
    folder = file.parent
    try:
        with trusting(NOBODY):  # the run may be a stranger's
            phase = Experiment.read(folder / EXPERIMENT).plans[-1]
        spec = spec_of(json.loads((folder / DATA).read_text(encoding="utf-8")))
        if not (_is_imported(phase.method) and _is_imported(phase.model)):
            return _by_names(phase, spec, arrays, wanted)
        network = phase.build_network(spec)
        protocol.load_network(network, arrays, arrays)
        classifier = phase.method.classifier(network)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(SETTING, f"{folder} is no whole run: {error}", "name a file") from None
    except InputError as error:
        remedy = f"write them by `fedssl export {folder} --format safetensors --plugins`, and name that file"
        raise InputError(
            SETTING, f"the run's weights cannot be taken: {error.problem}", remedy
        ) from None
    return {name: tensor.numpy() for name, tensor in classifier.state_dict().items()}


def _by_names(
    phase: PhasePlan, spec: ImageSpec, arrays: NamedArrays, wanted: Collection[str]
) -> NamedArrays:
    """Return the weights of the classifier in a network that a user's method or model made, which is not imported.

    The classifier is the only place in the network whose weights have the names of the run's model, or those that are
    wanted if the model is the user's own.

    Args:
        phase: The run's last phase.
        spec: What the images have in common.
        arrays: The weights of the network.
        wanted: Names of the weights of the classifier that will begin with them.

    Raises:
        InputError: There is no such place, or there are several.
    """
    names = wanted
    if _is_imported(phase.model):
        names = list(build_network(phase.model, Supervised(), spec, phase.seed).state_dict())
    first = next(iter(names))
    places = [key.removesuffix(first) for key in arrays if key.endswith(first)]
    found = [place for place in places if all(place + name in arrays for name in names)]
    if len(found) != 1:
        problem = f"which of them are the classifier's only {phase.method.kind} knows, which was not imported"
        raise InputError(SETTING, problem)
    inside = {
        key.removeprefix(found[0]): a for key, a in arrays.items() if key.startswith(found[0])
    }
    return inside if names is wanted else {name: inside[name] for name in names}


def _is_imported(plugin: Plugin) -> bool:
    return not isinstance(plugin, Unimported)


def _check_fit(weights: str, wanted: Mapping[str, torch.Tensor], arrays: NamedArrays) -> None:
    """Refuse weights that are missing, have another shape, are not finite, or have no place in the classifier."""
    problems = {}
    for name, tensor in wanted.items():
        shape = tuple(tensor.shape)
        if name not in arrays:
            problems[name] = f"{name} {shape} is not in them"
        elif arrays[name].shape != shape:
            problems[name] = f"{name} is {arrays[name].shape} in them and {shape} in the model"
        elif not np.isfinite(arrays[name]).all():
            problems[name] = f"{name} is not finite"
    problems |= {name: f"{name} is not in the model" for name in arrays if name not in wanted}
    if not problems:
        return
    more = f" (and {len(problems) - MOST_NAMED} more)" if len(problems) > MOST_NAMED else ""
    said = "; ".join(list(problems.values())[:MOST_NAMED]) + more
    remedy = "take the model that they were made with"
    if all(name.startswith(HEAD) for name in problems):
        remedy = "set model.new_head = true to leave their head out"
    raise InputError(SETTING, f"{weights} does not fit the model: {said}", remedy)
