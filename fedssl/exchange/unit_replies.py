"""The replies of the clients of a unit: as messages, or summed in the process in which they arise."""

from collections.abc import Mapping, Sequence

from flwr.app import Message

from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Answer, CohortSums, Reduction, Sum


class Replies:
    """The replies of a unit's clients, in order.

    An app that runs several clients together may be able to sum their results without making messages. Such an app
    derives its own class from this class.

    Args:
        messages: One reply a client.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages

    @property
    def messages(self) -> Sequence[Message]:
        """The replies as messages, one a client."""
        return self._messages

    @property
    def failed(self) -> Sequence[bool]:
        """Whether each reply is an error, in order."""
        return [message.has_error() for message in self.messages]

    def reduce(
        self, reduction: Reduction, holdings: Sequence[Holding | None]
    ) -> tuple[list[Answer], Mapping[str, Sum]]:
        """Return the answer of each client, and the sums of their replies.

        Args:
            reduction: How replies are checked and summed.
            holdings: What the census says about each client; None for an unknown client.
        """
        sums = CohortSums(reduction, len(self.messages))
        pairs = zip(self.messages, holdings, strict=True)
        answers = [sums.add(place, *pair) for place, pair in enumerate(pairs)]
        return answers, sums.result()
