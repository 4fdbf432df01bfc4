"""Training requests of several small clients answered in one go, with the replies that each alone would give."""

import functools
import logging
import traceback
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from flwr.app import Context, Message

from fedssl.clients.client_app import app, device_of, set_threads
from fedssl.clients.local_data import local_data, simulated_federation
from fedssl.clients.privacy import clip_and_add_noise
from fedssl.clients.resident import resident
from fedssl.clients.state import save_state
from fedssl.core.arrays import NamedArrays
from fedssl.data.shard import Shard
from fedssl.data.terms import Terms
from fedssl.exchange import protocol
from fedssl.exchange.checks import Holding
from fedssl.exchange.disclosure import may_leave, metrics_that_may_leave
from fedssl.exchange.reduction import Answer, CohortSums, Reduction, Sum
from fedssl.exchange.replies import Reply, split_metrics
from fedssl.exchange.unit_replies import Replies
from fedssl.experiment.client_settings import ClientSettings
from fedssl.fusion.fit import GroupFit, fit_together, worth_fusing
from fedssl.fusion.fusible import why_not_fusible
from fedssl.fusion.groups import GROUP_SIZE, cut_groups, fusion_key
from fedssl.metrics.drift import update_norms

log = logging.getLogger("fedssl.fusion")


@dataclass(frozen=True)
class _Ready:
    """A client whose request can be answered: where it stands among the messages, and what it holds."""

    place: int
    client: int
    shard: Shard


class _Group(Replies):
    """What was trained together.

    Args:
        requests: To all clients of the unit.
        errors: Replies of those that could not be trained, by place.
        ready: The others.
        fitted: What came of them; None if there are none.
        request: What all were asked.
        experiment: Says what of it leaves a client.
    """

    def __init__(
        self,
        requests: Sequence[Message],
        errors: Mapping[int, Message],
        ready: Sequence[_Ready],
        fitted: GroupFit | None,
        request: protocol.Request,
        experiment: ClientSettings,
    ) -> None:
        self._requests = requests
        self._errors = dict(errors)
        self._trained: dict[int, tuple[protocol.Metrics, NamedArrays]] = {}
        if fitted is None:
            return
        weights = {name: protocol.as_numpy(stack) for name, stack in fitted.weights.items()}
        finite = fitted.finite()
        norms: Sequence[float | None] = [None] * len(ready)
        if may_leave(experiment, protocol.UPDATE_NORM):
            norms = update_norms(request.arrays, weights)
        for i, (own, report) in enumerate(zip(ready, fitted.reports, strict=True)):
            if not finite[i]:
                reason = (
                    "FloatingPointError: training diverged: weights are not finite; lower train.lr"
                )
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
            self._trained[own.place] = metrics_that_may_leave(experiment, metrics), sent

    @functools.cached_property
    def messages(self) -> Sequence[Message]:
        """One a client."""
        return [self._reply(place) for place in range(len(self._requests))]

    @property
    def failed(self) -> Sequence[bool]:
        """Whether each has an error in place of a content."""
        return [place in self._errors for place in range(len(self._requests))]

    def reduce(
        self, reduction: Reduction, holdings: Sequence[Holding | None]
    ) -> tuple[list[Answer], Mapping[str, Sum]]:
        """Return what is left of each, and their sums: those of `messages`, which need not be made for it."""
        sums = CohortSums(reduction, len(self._requests))
        answers = []
        for place, (request, holding) in enumerate(zip(self._requests, holdings, strict=True)):
            if place in self._errors:
                answers.append(sums.add(place, self._errors[place]))
                continue
            metrics, arrays = self._trained[place]
            node, size = request.metadata.dst_node_id, protocol.encoded_bytes(arrays)
            found = {name: arrays if name == protocol.ARRAYS else {} for name in reduction.layouts}
            reply = Reply(node, *split_metrics(metrics), found, size)
            answers.append(sums.add_reply(place, reply, holding))
        return answers, sums.result()

    def _reply(self, place: int) -> Message:
        if place in self._errors:
            return self._errors[place]
        metrics, arrays = self._trained[place]
        return protocol.fit_reply(self._requests[place], arrays, {}, metrics)


def why_not_together(experiment: ClientSettings, device: str = "cpu") -> str | None:
    """Return None if this experiment's clients can be trained together, else one sentence that says why not."""
    spec = simulated_federation(experiment).data.spec
    here = resident(experiment.to_client_json(), device)
    return why_not_fusible(here.recipe, here.network, spec)


def fusion_keys(experiment: ClientSettings, clients: Iterable[int]) -> list[Hashable]:
    """Return what each client must have in common with those it is trained together with; no image is read."""
    federation, recipe = simulated_federation(experiment), experiment.recipe
    sizes, labeled = federation.sizes, federation.labeled_sizes
    return [fusion_key(recipe, int(labeled[client]), int(sizes[client])) for client in clients]


def group_size(
    experiment: ClientSettings,
    fuse: int | Literal["off", "auto", "on"],
    clients: Sequence[int],
    largest: int = GROUP_SIZE,
    device: str = "cpu",
) -> int:
    """Return how many clients train together at most; 0 for one by one.

    Args:
        experiment: As it stands in the phase.
        fuse: What ``engine.fuse`` says; ``"auto"`` measures, so whoever asks must keep the answer for all of a run.
        clients: A cohort; what is measured are clients of its longest group.
        largest: Answer for ``"on"``, and the most for ``"auto"``.
        device: Where they train.
    """
    if fuse == "off" or why_not_together(experiment, device) is not None:
        return 0
    if fuse != "auto":
        return largest if fuse == "on" else fuse
    cut = cut_groups(fusion_keys(experiment, clients), len(clients))
    federation = simulated_federation(experiment)
    longest = [clients[place] for place in max(cut, key=len)[:largest]]
    shards = [federation.shard(client).to(torch.device(device)) for client in longest]
    here = resident(experiment.to_client_json(), device)
    set_threads(experiment)
    return worth_fusing(here.network, shards, here.recipe)


def train_together(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    """Return the replies to training requests that share one content, in their order.

    They are those of ``[app(m, c) for m, c in zip(messages, contexts)]`` but for rounding. A client that raises or
    diverges gets an error reply of its own and harms nobody else. Where the clients cannot be trained together, each
    is trained alone.

    Args:
        messages: To clients of one of `fusion_keys`; that they share one content is looked at.
        contexts: Of the same clients; written to, as the app does.

    Raises:
        MemoryError: Or what torch raises in its place: later there may be enough, and alone it would be other bits.
    """
    try:
        return _train(messages, contexts)
    except Exception as error:  # whoever is at fault says so when it is trained alone
        if protocol.is_out_of_memory(error):
            raise
        log.warning("clients are trained one by one: %s", error)
    return Replies([app(message, ctx) for message, ctx in zip(messages, contexts, strict=True)])


def _train(messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
    """Train all clients that can be prepared; who cannot gets an error reply."""
    if any(message.content is not messages[0].content for message in messages):
        raise ValueError("their requests do not share one content")
    request = protocol.read_request(messages[0])
    here = resident(request.experiment, device_of(contexts[0]), request.terms)
    experiment = here.experiment
    set_threads(experiment)
    here.weights.load(request.arrays, contexts[0].state)  # fused clients have none of their own
    errors: dict[int, Message] = {}
    ready = _prepare(experiment, request.terms, messages, contexts, errors)
    fitted = None
    if ready:
        fitted = fit_together(
            here.network,
            [own.shard for own in ready],
            here.recipe,
            seed=experiment.seed,
            server_round=request.server_round,
            clients=[own.client for own in ready],
            phase_round=request.phase_round or request.server_round,
            phase_rounds=request.phase_rounds or experiment.num_rounds,
        )
    group = _Group(messages, errors, ready, fitted, request, experiment)
    for context, failed in zip(contexts, group.failed, strict=True):
        if context.state and not failed:  # of an earlier phase: whoever is fused keeps nothing
            save_state(here.recipe, here.weights, {}, context.state, request.phase)
    return group


def _prepare(
    experiment: ClientSettings,
    terms: Terms | None,
    messages: Sequence[Message],
    contexts: Sequence[Context],
    errors: dict[int, Message],
) -> list[_Ready]:
    """Read every client's shard; who cannot gets an error reply."""
    ready = []
    for place, (message, context) in enumerate(zip(messages, contexts, strict=True)):
        try:
            local = local_data(experiment, terms, context)
            shard = local.shard().to(torch.device(device_of(context)))
            ready.append(_Ready(place, local.client, shard))
        except Exception:
            errors[place] = protocol.error_reply(message, traceback.format_exc())
    return ready
