"""The server as one more learner: if it holds labels, it trains on them with `learn`, as the clients do.

Diao et al. (SemiFL), NeurIPS 2022, arXiv:2106.01432, Algorithm 1: server and clients take turns.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError, NothingLearned, RunFailed
from fedssl.core.rng import SERVER
from fedssl.data.shard import Shard
from fedssl.exchange import protocol
from fedssl.exchange.census import Census
from fedssl.exchange.sums import is_finite
from fedssl.experiment.experiment import PhasePlan
from fedssl.methods.base import Method
from fedssl.models.static_norm import StaticBatchNorm
from fedssl.server.carry_over import shared_weights
from fedssl.training.learn import learn
from fedssl.training.network import weights_sent_back
from fedssl.training.parameter_groups import check_rates

PRIVATE = "(private)"
"""Replaces a slot's name for weights that the method does not share; the server has its own, as clients do."""

PHASE = "(phase)"
"""Name of the kept array that holds the number of the phase which the other kept arrays belong to."""


class ServerTraining:
    """Train on the server's labeled images, before the first round and after every aggregation.

    In a phase whose method trains no classifier (`Method.trains_classifier`), the server does not train: it would train
    the trunk with labels, which such a phase learns without. It trains again before the first round of the next phase.
    So clients never pseudo-label with a network that has seen no label, and a network that is evaluated has just
    trained on labels. The state of the server's method stays at the server; a phase begins with fresh state.

    Args:
        shard: The server's labeled images; may be empty.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._kept: NamedArrays = {}
        self._phase = -1
        self.numbers: Mapping[str, float] = {}
        """Numbers that the server's method recorded in the last round; see `Loss.numbers`."""

    def kept(self) -> NamedArrays:
        """Return what is kept between rounds, by ``SLOT/NAME``: state, weights that are not shared, and the phase."""
        return {**self._kept, PHASE: np.array(self._phase)}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        self._kept = {name: array for name, array in kept.items() if name != PHASE}
        self._phase = int(kept[PHASE])

    def train(
        self,
        experiment: PhasePlan,
        network: nn.Module,
        arrays: NamedArrays,
        *,
        server_round: int,
        phase: int,
        phase_round: int,
        is_measured: bool,
    ) -> NamedArrays:
        """Return the global weights after one round's training at the server; unchanged if the server does not train.

        Args:
            experiment: The experiment as it stands in the phase.
            network: The phase's network; all its weights are overwritten.
            arrays: Global weights.
            server_round: Round of the run; 0 before the first round.
            phase: Number of the phase, from 0.
            phase_round: Round of the phase; 0 before its first round.
            is_measured: Whether clients have measured the statistics of static normalizations in this round.

        Raises:
            RunFailed: The training diverged, or the network cannot learn from the loss of the server's method.
        """
        # Without labels at the server, or in a phase that trains no classifier, there is nothing to learn.
        self.numbers = {}
        if not experiment.server_trains or len(self._shard) == 0:
            return arrays
        # A phase begins with fresh state.
        if phase != self._phase:
            self._kept, self._phase = {}, phase
        # Load the global weights, and the server's own values of the weights that the method does not share.
        private = protocol.slot_arrays(self._kept, PRIVATE)
        protocol.load_network(network, {**arrays, **private}, [*arrays, *private])
        recipe = experiment.server_recipe
        trained_part = experiment.method.labeled_part(network)
        found = {
            slot.name: protocol.slot_arrays(self._kept, slot.name)
            for slot in recipe.slots()
            if slot.scope != "reset"
        }
        # Train by the clients' own loop; before the first round, the server learns as if in round 1 of the phase.
        with _threads(recipe.train.threads):
            try:
                report, state = learn(
                    trained_part,
                    self._shard,
                    recipe,
                    found,
                    seed=experiment.seed,
                    server_round=server_round,
                    client=SERVER,
                    phase_round=max(1, phase_round),
                    phase_rounds=experiment.num_rounds,
                )
            except NothingLearned as error:
                raise RunFailed(f"the server's own training: {error}") from None
        # Keep the state for the next round, and the private weights with it.
        self.numbers = report.numbers
        weights = network.state_dict()
        state[PRIVATE] = {name: t for name, t in weights.items() if name not in arrays}
        # Arrays, as in a checkpoint: a tensor's layout in memory can decide how its products are rounded.
        self._kept = {
            protocol.slot_key(slot, name): tensor.detach().numpy().copy(order="C")
            for slot, tensors in state.items()
            for name, tensor in tensors.items()
        }
        # Return the trained weights. Statistics that clients measured in this round stay, if the experiment says so.
        # Older statistics do not stay, because they belong to other weights.
        stay = is_measured and experiment.server.statistics == "cohort"
        kept = _static_statistics(network) if stay else set()
        trained = {
            name: array if name in kept else weights[name].detach().numpy().copy()
            for name, array in arrays.items()
        }
        if not is_finite(trained):
            raise RunFailed(
                f"the server's own training diverged in round {server_round}; lower train.lr"
            )
        return trained


def check_server_method(phase: PhasePlan) -> None:
    """Refuse a server method that needs a network of its own or the last phase's: the server trains the clients' classifier.

    Raises:
        InputError: The server trains, and its method needs another network.
    """
    method = phase.server.method
    if not phase.server_trains:
        return
    if any(slot.scope == "phase" for slot in method.slots()):
        raise InputError(
            "server.method.kind",
            f"is {method.kind!r}, which learns from the network of an earlier phase, and only clients are sent that network",
            "take 'supervised' or 'fixmatch' for the server, and this method in [method] for the clients",
        )
    if type(method).network is not Method.network:
        raise InputError(
            "server.method.kind",
            f"is {method.kind!r}, which trains a network of its own, but the server trains the clients' classifier",
            "take 'supervised', 'fixmatch' or another method that does not change the network",
        )


def check_client_labels(phase: PhasePlan, census: Census, *, is_first: bool) -> None:
    """Refuse a method that needs labels at the clients if a run begins with it and no client holds a label.

    A later phase is not refused, because the last phase's classifier gives the method's networks their first weights.

    Args:
        phase: The experiment as it stands in the phase.
        census: The clients and their number of labels.
        is_first: Whether the run begins with the phase.

    Raises:
        InputError: No client holds a label, and one of the method's networks would never see one.
    """
    has_labels = not phase.federation.labels.at_server and census.num_labeled.any()
    if is_first and phase.method.needs_labels_at_clients and not has_labels:
        raise InputError(
            "method.kind",
            f"is {phase.method.kind!r}, whose teacher learns from labels at the clients, but no client holds labels",
            "set federation.labels.kind = 'at_clients', or let a phase with another method come first",
        )


def check_left_weights(phase: PhasePlan, network: nn.Module) -> None:
    """Refuse a method whose clients leave weights to a server that does not train.

    Args:
        phase: The experiment as it stands in the phase.
        network: The network that clients train.

    Raises:
        InputError: Some shared weights do not come back from the clients, and the server has no labels to train them with.
    """
    method = phase.method
    sent_back = weights_sent_back(network, method)
    left = [name for name in shared_weights(network, method) if name not in sent_back]
    if left and not phase.server_trains:
        raise InputError(
            "federation.labels.kind",
            f"gives the server no labels to train with, but clients of {method.kind} leave {left[0]!r} to the server",
            "set federation.labels.kind = 'at_server', or let the clients train all weights (method.labels = 'clients')",
        )


def check_all_rates(phase: PhasePlan, network: nn.Module) -> None:
    """Refuse rates of the clients or of the server for parameters that the network does not have.

    Args:
        phase: The experiment as it stands in the phase.
        network: The network that clients train.

    Raises:
        InputError: A pattern of ``train.rates`` or ``server.train.rates`` matches no parameter.
    """
    check_rates(phase.train, network, "train")
    if phase.server.train is not None:
        check_rates(phase.server.train, network, "server.train")


def check_statistics(phase: PhasePlan, network: nn.Module) -> None:
    """Refuse to let the server measure statistics if it holds no images, or if the model has no such statistics.

    Args:
        phase: The experiment as it stands in the phase.
        network: The network that clients train.

    Raises:
        InputError: ``server.statistics`` is ``"server"``, and cannot be.
    """
    if phase.server.statistics != "server":
        return
    if not phase.federation.labels.at_server:
        raise InputError(
            "server.statistics",
            "is 'server', but the server holds no images to measure statistics on",
            "take 'cohort', or set federation.labels.kind = 'at_server'",
        )
    if not _static_statistics(network):
        raise InputError(
            "server.statistics",
            "is 'server', but the model has no static normalization",
            "take 'cohort', or set model.norm = 'static' if the model has this setting",
        )


def _static_statistics(network: nn.Module) -> set[str]:
    """Return the names of the statistics that static normalizations have measured."""
    return {
        f"{name}.{buffer}"
        for name, module in network.named_modules()
        if isinstance(module, StaticBatchNorm)
        for buffer, _ in module.named_buffers()
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch use as many threads as clients do, because the split of a sum over threads changes its rounding."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
