"""Answer training requests of several small clients together, with the replies that each client would give alone."""

import functools
import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Context, Message

from fedssl.clients.client_app import app, device_of, set_threads
from fedssl.clients.local_data import local_data, simulated_federation
from fedssl.clients.privacy import clip_and_add_noise
from fedssl.clients.resident import Resident, resident
from fedssl.clients.state import kept_slots, save_state, shared_state
from fedssl.core.arrays import NamedArrays, unique_pairs
from fedssl.core.slots import State
from fedssl.data.shard import Shard
from fedssl.exchange import protocol
from fedssl.exchange.checks import CALMER, Holding
from fedssl.exchange.disclosure import may_leave, metrics_that_may_leave
from fedssl.exchange.reduction import Answer, CohortSums, Reduction, Sum
from fedssl.exchange.replies import Reply
from fedssl.exchange.unit_replies import Replies
from fedssl.experiment.client_settings import ClientSettings
from fedssl.fusion.fit import GroupFit, fit_together
from fedssl.fusion.fusible import way_to_fuse
from fedssl.fusion.groups import FusionKey, fusion_key
from fedssl.metrics.drift import update_norms
from fedssl.training.learn import fill_slots
from fedssl.training.recipe import Recipe

log = logging.getLogger("fedssl.fusion")


@dataclass(frozen=True)
class _Ready:
    """A client whose request can be answered.

    Args:
        place: Its place among the messages.
        client: Its number.
        shard: Its images.
        state: The contents of its slots at the round's start.
    """

    place: int
    client: int
    shard: Shard
    state: State


@dataclass(frozen=True)
class _Sent:
    """What a trained client sends.

    Args:
        metrics: Its metrics.
        weights: Its weights.
        state: Its state of ``server`` slots, by ``SLOT/NAME``.
    """

    metrics: protocol.Metrics
    weights: NamedArrays
    state: NamedArrays


class _Group(Replies):
    """The replies of clients that were trained together.

    Args:
        requests: The requests to all clients of the unit.
        errors: Error replies of the clients that could not be trained, by their place among the requests.
        ready: The clients that were trained.
        fitted: Their weights and reports after training; None if no client was trained.
        request: The content that all requests share.
        experiment: The experiment as it stands in the phase; says what may leave a client.
        recipe: How the clients learn; says which state returns to the server.
    """

    def __init__(
        self,
        requests: Sequence[Message],
        errors: Mapping[int, Message],
        ready: Sequence[_Ready],
        fitted: GroupFit | None,
        request: protocol.Request,
        experiment: ClientSettings,
        recipe: Recipe,
    ) -> None:
        self._requests = requests
        self._errors = dict(errors)
        self._trained: dict[int, _Sent] = {}
        if fitted is None:
            return
        # Weights are stacked: each array is (M, *shape), one row for each client in `ready`.
        weights = {name: protocol.as_numpy(stack) for name, stack in fitted.weights.items()}
        shared = {
            name: protocol.as_numpy(stack)
            for name, stack in shared_state(recipe, fitted.state).items()
        }
        finite = fitted.finite()
        norms: Sequence[float | None] = [None] * len(ready)
        if may_leave(experiment, protocol.UPDATE_NORM):
            norms = update_norms(request.arrays, weights)
        for i, (own, report) in enumerate(zip(ready, fitted.reports, strict=True)):
            if not finite[i]:
                reason = f"FloatingPointError: training diverged: weights or state are not finite; {CALMER}"
                self._errors[own.place] = protocol.error_reply(requests[own.place], reason)
                continue
            metrics = protocol.fit_metrics(
                report,
                client=own.client,
                num_labeled=len(own.shard.labeled),
                num_examples=len(own.shard),
                update_norm=norms[i],
            )
            sent = clip_and_add_noise(
                experiment,
                request.arrays,
                {name: stack[i] for name, stack in weights.items()},
                server_round=request.server_round,
                client=own.client,
            )
            kept = {name: np.asarray(stack[i]) for name, stack in shared.items()}
            self._trained[own.place] = _Sent(
                metrics_that_may_leave(experiment, metrics), sent, kept
            )

    @functools.cached_property
    def messages(self) -> Sequence[Message]:
        """One reply for each client."""
        return [self._reply(place) for place in range(len(self._requests))]

    @property
    def failed(self) -> Sequence[bool]:
        """Whether each client's reply is an error."""
        return [place in self._errors for place in range(len(self._requests))]

    def reduce(
        self, reduction: Reduction, holdings: Sequence[Holding | None]
    ) -> tuple[list[Answer], Mapping[str, Sum]]:
        """Return an answer for each client and the sums of all replies: those of `messages`, which need not be made."""
        sums = CohortSums(reduction, len(self._requests))
        answers = []
        for place, (request, holding) in enumerate(zip(self._requests, holdings, strict=True)):
            if place in self._errors:
                answers.append(sums.add(place, self._errors[place]))
                continue
            own = self._trained[place]
            asked = protocol.state_asked_for(request, own.state)
            arrays = {protocol.ARRAYS: own.weights, **asked}
            size = sum(map(protocol.encoded_bytes, arrays.values()))
            found = {name: arrays.get(name, {}) for name in reduction.layouts}
            node = request.metadata.dst_node_id
            reply = Reply(node, *protocol.split_metrics(own.metrics), found, size)
            answers.append(sums.add_reply(place, reply, holding))
        return answers, sums.result()

    def _reply(self, place: int) -> Message:
        if place in self._errors:
            return self._errors[place]
        own = self._trained[place]
        return protocol.fit_reply(self._requests[place], own.weights, own.state, own.metrics)


def why_not_together(experiment: ClientSettings, device: str = "cpu") -> str | None:
    """Return why this experiment's clients cannot be trained together, in one sentence; None if they can."""
    spec = simulated_federation(experiment).data.spec
    here = resident(experiment.to_client_json(), device)
    way = way_to_fuse(here.recipe, here.network, spec)
    return way if isinstance(way, str) else None


def fusion_keys(experiment: ClientSettings, clients: Iterable[int]) -> list[FusionKey]:
    """Return a key for each client; only clients with equal keys can be trained together. No image is read."""
    federation, recipe = simulated_federation(experiment), experiment.recipe
    sizes, labeled = federation.sizes, federation.labeled_sizes
    return [fusion_key(recipe, int(labeled[client]), int(sizes[client])) for client in clients]


def all_fusion_keys(experiment: ClientSettings) -> set[FusionKey]:
    """Return the keys of all clients; there are few, so this takes a moment even for a million clients."""
    federation, recipe = simulated_federation(experiment), experiment.recipe
    pairs, _ = unique_pairs(federation.labeled_sizes, federation.sizes)
    return {fusion_key(recipe, *pair) for pair in pairs.tolist()}


def train_together(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    """Return the replies to training requests that share one content, in the order of the requests.

    The replies are those of ``[app(m, c) for m, c in zip(messages, contexts)]`` but for rounding. A client that raises
    or diverges gets an error reply of its own and does not change the replies of the others. If the clients cannot be
    trained together, each client is trained alone.

    Args:
        messages: Requests to clients with equal `fusion_keys`; the function checks that they share one content.
        contexts: Contexts of the same clients; written to, as the app does.

    Raises:
        MemoryError: Memory ran out; torch may raise its own error instead. The clients are not trained alone then,
            because that would give other bits, and there may be enough memory later.
        TimeoutError: The clients' time is over. They are not trained alone then, for the same reason.
    """
    try:
        return _train(messages, contexts)
    except TimeoutError:
        raise
    except Exception as error:  # the client that caused it raises it again when it is trained alone
        if protocol.is_out_of_memory(error):
            raise
        log.warning("clients are trained one by one: %s", error)
    return Replies([app(message, ctx) for message, ctx in zip(messages, contexts, strict=True)])


def _train(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    """Train all clients whose shards can be read; every other client gets an error reply.

    Raises:
        ValueError: The requests do not share one content.
    """
    if any(message.content is not messages[0].content for message in messages):
        raise ValueError("the clients' requests do not share one content")
    request = protocol.read_request(messages[0])
    here = resident(request.experiment, device_of(contexts[0]), request.terms)
    experiment = here.experiment
    set_threads(experiment)
    here.weights.load(request.arrays, contexts[0].state)  # fused clients have no private weights
    errors: dict[int, Message] = {}
    ready = _prepare(here, request, messages, contexts, errors)
    fitted = None
    if ready:
        way = way_to_fuse(here.recipe, here.network, ready[0].shard.spec)
        if isinstance(way, str):
            raise ValueError(way)
        fitted = fit_together(
            here.network,
            [own.shard for own in ready],
            here.recipe,
            [own.state for own in ready],
            way,
            seed=experiment.seed,
            server_round=request.server_round,
            clients=[own.client for own in ready],
            phase_round=request.phase_round or request.server_round,
            phase_rounds=request.phase_rounds or experiment.num_rounds,
        )
    group = _Group(messages, errors, ready, fitted, request, experiment, here.recipe)
    failed = group.failed
    for i, own in enumerate(ready):
        if fitted is not None and not failed[own.place]:
            kept = contexts[own.place].state
            save_state(here.recipe, here.weights, fitted.state_of(i), kept, request)
    return group


def _prepare(
    here: Resident,
    request: protocol.Request,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    errors: dict[int, Message],
) -> list[_Ready]:
    """Return the clients whose shards can be read; put an error reply into `errors` for each of the others."""
    ready = []
    for place, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        try:
            local = local_data(here.experiment, request.terms, context)
            shard = local.shard().to(torch.device(device_of(context)))
            kept = kept_slots(here.recipe, request, context.state)
            state = fill_slots(here.recipe, here.network, shard, kept)
            ready.append(_Ready(place, local.client, shard, state))
        except TimeoutError:
            raise
        except Exception:
            errors[place] = protocol.error_reply(message, traceback.format_exc())
    return ready
