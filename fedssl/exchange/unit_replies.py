"""What the clients of a unit answer: as messages, or summed where they arise."""

from collections.abc import Mapping, Sequence

from flwr.app import Message

from fedssl.exchange.checks import Holding
from fedssl.exchange.reduction import Answer, CohortSums, Reduction, Sum


class Replies:
    """The replies of a unit's clients, in order.

    An app that runs several together may know a shorter way from what they learned to its sum: it derives from this.

    Args:
        messages: One a client.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self._messages = messages

    @property
    def messages(self) -> Sequence[Message]:
        """One a client."""
        return self._messages

    @property
    def failed(self) -> Sequence[bool]:
        """Whether each has an error in place of a content."""
        return [message.has_error() for message in self.messages]

    def reduce(
        self, reduction: Reduction, holdings: Sequence[Holding | None]
    ) -> tuple[list[Answer], Mapping[str, Sum]]:
        """Return what is left of each, and their sums.

        Args:
            reduction: How they are checked and summed.
            holdings: What the census said of each client; None of one that is not known.
        """
        sums = CohortSums(reduction, len(self.messages))
        pairs = zip(self.messages, holdings, strict=True)
        answers = [sums.add(place, *pair) for place, pair in enumerate(pairs)]
        return answers, sums.result()
