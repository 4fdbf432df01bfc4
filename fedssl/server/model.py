"""The global model as rounds change it: begun with a phase, moved by a strategy's answer, averaged over the rounds."""

import dataclasses
from collections.abc import Collection, Mapping

import numpy as np
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import RunFailed
from fedssl.core.kept import as_array, from_array
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.exchange.census import list_clients
from fedssl.exchange.reduction import Sum
from fedssl.exchange.sums import as_type, is_finite, move_average
from fedssl.methods.base import Method
from fedssl.methods.functional import warm_decay
from fedssl.metrics.drift import update_norm
from fedssl.record.global_model import GlobalModel
from fedssl.server.method_state import initial_state, merge_state
from fedssl.server.round_log import RoundLog
from fedssl.training.loop import Recipe
from fedssl.training.network import classifier_names


class ModelKeeper:
    """Hold the global model of a run.

    Besides the model itself it keeps the names of the classifier's weights in the network of the last phase, and whether
    the last answer of the strategy was not finite.
    """

    def __init__(self) -> None:
        self.model = GlobalModel()
        self._names: Mapping[str, str] = {}
        self._is_stale = False

    def kept(self) -> NamedArrays:
        """Return what is kept beside the model itself."""
        return {"names": as_array(dict(self._names)), "stale": np.array(self._is_stale)}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        self._names, self._is_stale = from_array(kept["names"]), bool(kept["stale"])

    def begin_phase(self, recipe: Recipe, network: nn.Module, spec: ImageSpec) -> None:
        """Keep every weight that a phase's network shares with the last one, and make the method's state anew.

        A classifier keeps its weights when a method puts it into another network, under other names.

        Args:
            recipe: How clients of the phase learn.
            network: The phase's network with its initial weights; written to.
            spec: What the images have in common.
        """
        method, model = recipe.method, self.model
        own = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        names = {name: name for name in own} | self._renamed(method, network)
        same = {
            name: old
            for name, old in names.items()
            if old in model.arrays and own[name] == model.arrays[old].shape
        }
        protocol.load_network(network, {n: model.arrays[old] for n, old in same.items()}, same)
        fresh = {
            name: tensor.detach().numpy().copy()
            for name, tensor in network.state_dict().items()
            if method.is_shared(name)
        }
        ema = {n: model.ema[same[n]] if n in same else array for n, array in fresh.items()}
        self.model = GlobalModel(fresh, ema, initial_state(recipe, network, spec))

    def _renamed(self, method: Method, network: nn.Module) -> dict[str, str]:
        """Return the classifier's names in a new network -> its names in the last one."""
        last, self._names = self._names, classifier_names(method, network)
        return {now: last[n] for n, now in self._names.items() if n in last}

    def accept(self, arrays: NamedArrays, log: RoundLog) -> None:
        """Take the strategy's answer as the new weights; keep the old ones if the answer is not finite.

        Raises:
            RunFailed: The answer is not finite for the second time on end: no later one will be.
        """
        before = self.model.arrays
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is looked at
            taken = {name: as_type(arrays[name], old) for name, old in before.items()}
        if is_finite(arrays) and is_finite(taken):
            self._is_stale = False
            log.update_norm = update_norm(before, taken)
            self.replace(taken)
            return
        problem = f"the strategy's answer to round {log.round} is not finite"
        if self._is_stale:
            raise RunFailed(f"{problem}, nor was the one before")
        self._is_stale = True
        clients = [row.client for row in log.clients if row.status == "ok"]
        log.incidents.append(
            f"{problem}: the old model is kept; the round averaged clients {list_clients(clients)}"
        )

    def replace(self, arrays: NamedArrays) -> None:
        """Put other weights in place of the model's."""
        self.model = dataclasses.replace(self.model, arrays=arrays)

    def merge_state(self, sums: Mapping[str, Sum]) -> None:
        """Make the method's state the mean of what the round's clients sent."""
        self.model = dataclasses.replace(self.model, state=merge_state(self.model.state, sums))

    def average(self, round: int, decay: float, buffers: Collection[str]) -> None:
        """Move the moving average towards the weights after a round; buffers are the latest model's.

        Args:
            round: Round of the run, from 1; the average of the first rounds is their plain mean.
            decay: Share of the old average that stays.
            buffers: Names of the arrays that are no parameters.
        """
        warm = warm_decay(decay, round - 1)
        ema = move_average(self.model.ema, self.model.arrays, warm, buffers)
        self.model = dataclasses.replace(self.model, ema=ema)
