"""Strategies that need the reply of each client, such as the distances of the clients' models to their mean."""

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from flwr.app import ArrayRecord, Message, MetricRecord

from fedssl.core.arrays import NamedArrays
from fedssl.exchange import protocol
from fedssl.exchange.reduction import CohortSums, Reduction
from fedssl.exchange.replies import Reply
from fedssl.strategies.base import SeededStrategy


class ReplyStrategy(SeededStrategy):
    """Make the next global model from the single replies of a seeded cohort, in the cohort's order.

    The server holds all replies of a round at once, so its memory grows with m. `select` may name a client several
    times: the client then trains once for each entry, always from the global model, on other batches each time, and its
    own state goes on from one time to the next. If one of its replies of a round fails, the client goes back to the
    state that it had before the round. A section whose strategy asks clients several times sets `repeats_clients`.

    Args:
        cohorts: The clients of the run, and how many of them take part in a round.
    """

    @abstractmethod
    def aggregate(
        self,
        server_round: int,
        arrays: NamedArrays,
        replies: Mapping[int, Reply],
        buffers: Collection[str],
    ) -> NamedArrays:
        """Return the next global arrays.

        Args:
            server_round: Round of the run, from 1.
            arrays: The last global arrays.
            replies: The replies that count, by their place in `select`; ascending, at least one. Clients that failed or
                sat the round out are missing.
            buffers: Names of the arrays that are not parameters, such as the statistics of normalizations.
        """

    def bytes_saved_up(self, reply: Reply | None) -> int:
        """Return how many bytes of a reply need not travel; by default 0. See `bytes_saved_down`.

        Args:
            reply: The reply; None: any reply that is still to come, for virtual time, which runs before clients train.
        """
        return 0

    def conclude(
        self,
        server_round: int,
        arrays: NamedArrays,
        replies: Mapping[int, Reply],
        buffers: Collection[str] = (),
    ) -> NamedArrays:
        """Return the next global arrays; the last global arrays if no reply counts. Arguments as in `aggregate`."""
        if not replies:
            return arrays
        return self.aggregate(server_round, arrays, dict(sorted(replies.items())), buffers)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the next global arrays and the number of replies that count; the old arrays if none counts.

        `buffers` says which arrays are not parameters. The replies of a client that was asked several times
        must come in the order of its requests.
        """
        reduction = Reduction.of({protocol.ARRAYS: self._arrays}, {})
        total = CohortSums(reduction, len(self._nodes), keeps_replies=True)
        places = defaultdict(list)
        for place, node in enumerate(self._nodes):
            places[node].append(place)
        for reply in replies:
            node = reply.metadata.src_node_id
            if places[node]:  # a reply that was not asked for does not count
                total.add(places[node].pop(0), reply, self.cohorts.census.holding(node))
        arrays = self.conclude(server_round, self._arrays, total.replies, self.buffers)
        return protocol.to_record(arrays), MetricRecord({"num-replies": len(total.replies)})
