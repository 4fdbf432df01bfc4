"""The global model over a run: a phase begins it, the strategy's answers move it, and an average follows its rounds."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import RunFailed
from fedssl.core.slots import Slot
from fedssl.data.shard import ImageSpec
from fedssl.exchange import protocol
from fedssl.exchange.census import Census, list_clients
from fedssl.exchange.checks import CALMER
from fedssl.exchange.initial_state import initial_state
from fedssl.exchange.reduction import Sum
from fedssl.exchange.sums import as_type, is_finite, move_average
from fedssl.experiment.client_settings import ClientSettings
from fedssl.methods.base import Previous
from fedssl.methods.functional import warm_decay
from fedssl.metrics.drift import update_norm
from fedssl.record.global_model import GlobalModel
from fedssl.server.carry_over import CarryOver, carry_over, shared_weights
from fedssl.server.initial_weights import load_initial_weights
from fedssl.server.method_state import merge_state
from fedssl.server.round_log import RoundLog


class ModelKeeper:
    """Hold the global model of a run.

    The keeper also keeps whether the strategy's last answer was not finite.
    """

    def __init__(self) -> None:
        self.model = GlobalModel()
        self._is_stale = False

    def kept(self) -> NamedArrays:
        """Return all that is kept besides the model itself."""
        return {"stale": np.array(self._is_stale)}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        self._is_stale = bool(kept["stale"])

    def begin_phase(
        self,
        settings: ClientSettings,
        network: nn.Module,
        spec: ImageSpec,
        previous: Previous | None,
    ) -> CarryOver | None:
        """Begin a phase: weights start from the last phase's or from a file, and the method's state is made anew.

        Args:
            settings: The settings of the phase.
            network: The phase's network with its initial weights; written to.
            spec: What all images have in common.
            previous: The last phase's network with its final weights; None in the first phase.

        Returns:
            What the phase takes over; None in the first phase.
        """
        model = self.model
        if previous is None:
            load_initial_weights(settings, network)
        carried = None if previous is None else carry_over(settings, network, previous)
        sources = {} if carried is None else carried.sources
        last = None if settings.previous is None else settings.previous.method
        arrays, averages = (
            own if last is None else last.handed_on(own) for own in (model.arrays, model.ema)
        )
        protocol.load_network(
            network, {name: arrays[old] for name, old in sources.items()}, sources
        )
        fresh = {
            name: tensor.detach().numpy().copy()
            for name, tensor in shared_weights(network, settings.method).items()
        }
        ema = {n: averages[sources[n]] if n in sources else a for n, a in fresh.items()}
        classifier = None if previous is None else previous.classifier
        state = initial_state(settings.recipe, network, spec, "server", classifier)
        self.model = GlobalModel(fresh, ema, state)
        return carried

    def accept(self, arrays: NamedArrays, log: RoundLog) -> None:
        """Take the strategy's answer as the new weights; keep the old weights if the answer is not finite.

        Raises:
            RunFailed: Two answers in a row were not finite; later answers will not be finite either.
        """
        before = self.model.arrays
        with np.errstate(over="ignore", invalid="ignore"):  # the result is checked below
            taken = {name: as_type(arrays[name], old) for name, old in before.items()}
        if is_finite(arrays) and is_finite(taken):
            self._is_stale = False
            log.update_norm = update_norm(before, taken)
            self.replace(taken)
            return
        problem = f"the strategy's answer to round {log.round} is not finite"
        if self._is_stale:
            raise RunFailed(f"{problem}, nor was the answer before it; {CALMER}")
        self._is_stale = True
        clients = [row.client for row in log.clients if row.status == "ok"]
        log.incidents.append(
            f"{problem}: the old model is kept; the round averaged clients {list_clients(clients)}"
        )

    def replace(self, arrays: NamedArrays) -> None:
        """Replace the model's weights."""
        self.model = dataclasses.replace(self.model, arrays=arrays)

    def merge_state(self, slots: Sequence[Slot], sums: Mapping[str, Sum], census: Census) -> None:
        """Merge the states that the round's clients sent into the method's state, as each slot says."""
        merged = merge_state(slots, self.model.state, sums, census)
        self.model = dataclasses.replace(self.model, state=merged)

    def average(self, round: int, decay: float, buffers: Collection[str]) -> None:
        """Move the moving average towards the weights after a round; the average takes the buffers of the latest model.

        Args:
            round: Round of the run, from 1. Over the first rounds, the average is their plain mean.
            decay: Share of the old average that stays.
            buffers: Names of the arrays that are not parameters.
        """
        warm = warm_decay(decay, round - 1)
        ema = move_average(self.model.ema, self.model.arrays, warm, buffers)
        self.model = dataclasses.replace(self.model, ema=ema)
