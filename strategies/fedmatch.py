"""FedMatch's server: the uniform mean of the clients' models, and for each client the psi of those that are most like it.

Jeong et al., "Federated Semi-Supervised Learning with Inter-Client Consistency & Disjoint Learning", ICLR 2021,
arXiv:2006.12097. The clients' half is the method `fedssl.methods.fedmatch`.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from pydantic import Field

from fedssl.core.arrays import NamedArrays
from fedssl.core.errors import InputError
from fedssl.exchange import protocol
from fedssl.exchange.census import Cohorts
from fedssl.exchange.replies import Reply
from fedssl.exchange.sums import cohort_mean, weighted_mean
from fedssl.methods.base import Method
from fedssl.methods.fedmatch import HELPERS, OUTPUTS
from fedssl.methods.fedmatch import FedMatch as ClientHalf
from fedssl.methods.sigma_psi import PSI
from fedssl.strategies.base import Strategy
from fedssl.strategies.by_replies import ReplyStrategy
from fedssl.strategies.sparse import (
    SmallChanges,
    saved_bytes,
    share_of_changes,
    with_changes_above,
)
from fedssl.training.correction import Correction

PROBS = protocol.slot_key(OUTPUTS, "probs")
"""Name of a client's answer to the noise image in its reply."""


class FedMatch(Strategy):
    """Average models uniformly, and send each client the psi of the H other clients whose models are nearest.

    Models are compared by their class probabilities of one fixed noise image, which clients compute and send (the method
    ``fedmatch``). The official server computes the same from the weights that it is sent. Each client gets the psi of its
    H nearest others (Euclidean distance; among equally near clients, the lower number). They are chosen anew every
    ``helper_interval`` rounds, and for the first time as soon as there is anybody to choose. A client that has not taken
    part before the choice has no helper until the next choice.

    The server keeps the last psi of each client, so its memory is K times psi, and a checkpoint has the same size. A
    request carries up to H psi beside the model. **A client's psi goes to other clients.** So ``[privacy]`` refuses the
    method.

    With ``delta_threshold``, entries of the weights that hardly change do not travel. A client puts an entry back that its
    training has changed by no more than the threshold. The server sends a client only the entries that differ by more than
    the threshold from what the client had after its last round, and the client goes on from its own values of the others.
    Our messages still carry whole arrays, with exactly the values that such a sparse message gives. The record and virtual
    time count 4 bytes for the position and 4 for the value of each entry that differs; or the whole array, if that is
    less. Virtual time needs the size of a reply before the client trains, and takes the mean of the last round. For this
    the server keeps the whole last model of each client.

    With another method there are no answers and no psi. Then this strategy is the uniform mean.

    Deviation: the official code sends helpers in every tenth round only, and in the other rounds a client has none
    (``between = "none"``). The paper chooses them every ten rounds.
    """

    group: ClassVar[str] = "helpers"
    partner: ClassVar[str] = "fedmatch"

    num_helpers: int = Field(2, ge=0, description="H, most helpers of a client; 0: no helpers")
    helper_interval: int = Field(
        10, ge=1, description="rounds from one choice of all helpers to the next"
    )
    between: Literal["keep", "none"] = Field(
        "keep",
        description="rounds between two choices. keep: clients are sent the last psi of the same helpers; none: clients "
        "have no helpers, as in the official code",
    )
    delta_threshold: float = Field(
        0.0,
        ge=0,
        description="changes of a weight up to this absolute value do not travel; 0: whole arrays travel. The code has "
        "5e-5 with labels at the clients and 1e-5 with labels at the server",
    )

    def correction(self) -> Correction | None:
        """Return the client half that undoes small changes, if they do not travel."""
        return SmallChanges(self.delta_threshold) if self.delta_threshold else None

    def build(self, cohorts: Cohorts) -> FlowerStrategy:
        """Return the strategy that runs a phase."""
        return _FedMatch(self, cohorts)

    def check(self, method: Method, arrays: NamedArrays) -> None:
        """Refuse to send more helpers than the clients' method listens to.

        Raises:
            InputError: ``num_helpers`` is larger than that of the method.
        """
        if isinstance(method, ClientHalf) and self.num_helpers > method.num_helpers:
            raise InputError(
                "strategy.num_helpers",
                f"is {self.num_helpers}, but method.num_helpers is {method.num_helpers}, and clients listen to no more",
                "set method.num_helpers and strategy.num_helpers to one number",
            )


class _FedMatch(ReplyStrategy):
    def __init__(self, settings: FedMatch, cohorts: Cohorts) -> None:
        super().__init__(cohorts)
        self._settings = settings
        self._psi: dict[int, NamedArrays] = {}
        self._outputs: dict[int, npt.NDArray[Any]] = {}
        self._helpers: dict[int, list[int]] = {}
        self._held: dict[int, NamedArrays] = {}
        self._saved_up = 0
        self._sent: dict[int, NamedArrays] = {}
        self._numbers: dict[str, float] = {}

    def kept(self) -> NamedArrays:
        """Return what each client last sent, its helpers, and the bytes that a reply of the last round saved."""
        by_client = {"psi": self._psi, "held": self._held}
        arrays = {
            f"{kind}/{client}/{name}": array
            for kind, found in by_client.items()
            for client, own in found.items()
            for name, array in own.items()
        }
        answers = {f"outputs/{client}": own for client, own in self._outputs.items()}
        helpers = {f"helpers/{c}": np.array(own, np.int64) for c, own in self._helpers.items()}
        return {**arrays, **answers, **helpers, "saved/up": np.array(self._saved_up)}

    def take_up(self, kept: NamedArrays) -> None:
        """Go on with what `kept` returned."""
        models: dict[tuple[str, int], dict[str, npt.NDArray[Any]]] = defaultdict(dict)
        for key, array in kept.items():
            kind, client, *name = key.split("/", 2)
            if kind == "saved":
                self._saved_up = int(array)
            elif kind == "helpers":
                self._helpers[int(client)] = array.tolist()
            elif kind == "outputs":
                self._outputs[int(client)] = array
            else:
                models[kind, int(client)][name[0]] = array
        for (kind, number), own in models.items():
            (self._psi if kind == "psi" else self._held)[number] = own

    def numbers(self) -> Mapping[str, float]:
        """Return the mean number of helpers of a round's clients, and the shares of entries that travelled."""
        return self._numbers

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Return one request for each client of the cohort, with its helpers; with sparse messages, with its own model."""
        self._forget_other_networks(arrays.keys())
        is_time = server_round % self._settings.helper_interval == 0
        if is_time or not any(self._helpers.values()):
            self._helpers = nearest_others(self._outputs, self._settings.num_helpers)
        messages = list(super().configure_train(server_round, arrays, config, grid))
        clients = [self.cohorts.census.client_at[m.metadata.dst_node_id] for m in messages]
        told = [self._helpers_of(server_round, client) for client in clients]
        self._numbers = {"helpers": float(np.mean([len(own) for own in told] or [0]))}
        self._sent = {}
        if self._settings.delta_threshold:
            for client, message in zip(clients, messages, strict=True):
                self._send_changes(client, message)
        return messages

    def extra(self, server_round: int, client: int) -> Mapping[str, NamedArrays]:
        """Return the psi of a client's helpers, stacked: (H, *shape) for each array."""
        helpers = [self._psi[helper] for helper in self._helpers_of(server_round, client)]
        if not helpers:
            return {}
        return {HELPERS: {name: np.stack([own[name] for own in helpers]) for name in helpers[0]}}

    def aggregate(
        self,
        server_round: int,
        arrays: NamedArrays,
        replies: Mapping[int, Reply],
        buffers: Collection[str],
    ) -> NamedArrays:
        """Return the uniform mean of the models of clients that hold images, and remember what each client sent."""
        counted = [r for r in replies.values() if r.metrics[protocol.NUM_EXAMPLES]]
        if not counted:
            return arrays
        for reply in counted:
            self._remember(reply)
        if self._settings.delta_threshold:
            self._note_changes(counted)
        models = [reply.arrays[protocol.ARRAYS] for reply in counted]
        return cohort_mean(weighted_mean(models, [1.0] * len(models)), 1.0, arrays)

    def bytes_saved_down(self, client: int) -> int:
        """Return the bytes of the entries of the model that the client has already."""
        sent, held = self._sent.get(client), self._held.get(client)
        return 0 if sent is None or held is None else saved_bytes(held, sent)

    def bytes_saved_up(self, reply: Reply | None) -> int:
        """Return the bytes of the entries that the client did not change; for a reply to come, the last round's mean."""
        if reply is None:
            return self._saved_up
        sent = self._sent.get(self._client_of(reply))
        return 0 if sent is None else saved_bytes(sent, reply.arrays[protocol.ARRAYS])

    def _forget_other_networks(self, names: Collection[str]) -> None:
        """Forget all that clients sent of a network with other weights, which was that of another method's phase."""
        if any(own.keys() - names for own in (*self._psi.values(), *self._held.values())):
            self._psi, self._outputs, self._helpers, self._held = {}, {}, {}, {}
            self._saved_up = 0

    def _client_of(self, reply: Reply) -> int:
        return self.cohorts.census.client_at[reply.node]

    def _helpers_of(self, server_round: int, client: int) -> list[int]:
        """Return the helpers that a client is told of in a round."""
        is_time = server_round % self._settings.helper_interval == 0
        if self._settings.between == "none" and not is_time:
            return []
        return self._helpers.get(client, [])

    def _remember(self, reply: Reply) -> None:
        """Keep the psi and the answer of a client that has trained."""
        answer = reply.arrays.get(protocol.STATE, {}).get(PROBS)
        if answer is None or not reply.metrics[protocol.NUM_STEPS]:
            return
        client, model = self._client_of(reply), reply.arrays[protocol.ARRAYS]
        self._psi[client] = {name: a for name, a in model.items() if name.startswith(PSI)}
        self._outputs[client] = answer

    def _send_changes(self, client: int, message: Message) -> None:
        """Send a client its own values of all weights that hardly differ from the global ones."""
        held = self._held.get(client)
        sent = (
            self._arrays
            if held is None
            else with_changes_above(self._settings.delta_threshold, held, self._arrays)
        )
        self._sent[client] = sent
        message.content = RecordDict({**message.content, protocol.ARRAYS: protocol.to_record(sent)})

    def _note_changes(self, replies: Sequence[Reply]) -> None:
        """Note what each client has after the round, and measure which share of the entries travelled."""
        self._saved_up = round(np.mean([self.bytes_saved_up(reply) for reply in replies]))
        up, down = [], []
        for reply in replies:
            client, model = self._client_of(reply), reply.arrays[protocol.ARRAYS]
            sent = self._sent[client]
            up.append(share_of_changes(sent, model))
            down.append(share_of_changes(self._held.get(client, {}), sent))
            self._held[client] = {**sent, **model}
        self._numbers |= {"changed_up": float(np.mean(up)), "changed_down": float(np.mean(down))}


def nearest_others(answers: Mapping[int, npt.NDArray[Any]], count: int) -> dict[int, list[int]]:
    """Return for each client the numbers of the others whose answers are nearest, the nearest first.

    Args:
        answers: Class probabilities of the noise image, (num_classes,), by client.
        count: H; fewer are returned if fewer others have answered. Of equally near clients, the lower number comes first.
    """
    clients = sorted(answers)
    found = {}
    for client in clients:
        others = [other for other in clients if other != client]
        own = answers[client].astype(np.float64)
        distances = [float(np.square(answers[other] - own).sum()) for other in others]
        # Sorting is stable, and the numbers ascend.
        order = np.argsort(distances, kind="stable")[:count]
        found[client] = [others[place] for place in order]
    return found
