"""What a further process of a team does for a client: the training of process 0, without a reply."""

from collections.abc import Callable, Sequence

from flwr.app import Context, Message, Metadata, RecordDict

from fedssl.clients.client_app import train_here, with_allowed_plugins
from fedssl.clients.local_data import local_data
from fedssl.clients.resident import Resident, resident
from fedssl.clients.team_group import join
from fedssl.exchange import protocol
from fedssl.training.team import Team, in_team


class Work:
    """The clients of a team, one after the other, as one of its processes trains them.

    Args:
        place: Path of the team's meeting file.
        rank: Number of the process, from 1.
        devices: Device of each process of the team.
    """

    def __init__(self, place: str, rank: int, devices: Sequence[str]) -> None:
        self._place = place
        self._rank = rank
        self._devices = devices
        self._team: Team | None = None

    def prepare(self, metadata: Metadata, content: RecordDict, context: Context) -> str | None:
        """Read the request, build the network and read the images; return an error's text, or None.

        Process 0 has asked the node's floor already, and counts the answer.
        """
        self._message = protocol.message_of(metadata, content)
        self._context = context
        context.node_config[protocol.DEVICE] = self._devices[self._rank]

        def read(message: Message, context: Context) -> Message:
            request, here = self._request()
            local_data(here.experiment, request.terms, context).shard()
            return message

        return self._error_of(read)

    def do(self) -> str | None:
        """Train the client with the other processes; return an error's text, or None."""

        def train(message: Message, context: Context) -> Message:
            if self._team is None:
                self._team = join(self._place, self._rank, self._devices)
            with in_team(self._team):
                return train_here(message, context, *self._request())

        return self._error_of(train)

    def _request(self) -> tuple[protocol.Request, Resident]:
        request = protocol.read_request(self._message)
        return request, resident(request.experiment, self._devices[self._rank], request.terms)

    def _error_of(self, work: Callable[[Message, Context], Message]) -> str | None:
        try:
            with_allowed_plugins(self._message, self._context, work)
        except Exception as error:
            return protocol.explain_error(error)
        return None
