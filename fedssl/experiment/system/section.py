"""The ``[system]`` section: the devices that clients run on, and how long the server waits for them."""

import math
from typing import Annotated

from pydantic import Field

from fedssl.core.registry import Section
from fedssl.experiment.system.availability.always import Always
from fedssl.experiment.system.availability.base import AVAILABILITIES, Availability
from fedssl.experiment.system.availability.random import PROBABILITIES
from fedssl.experiment.system.laws.base import LAWS, Law
from fedssl.experiment.system.laws.fixed import Fixed

SPEEDS, DOWNLOADS, UPLOADS, DROPOUTS = (
    LAWS.at(f"system.{name}", "fixed") for name in ("speed", "download", "upload", "dropout")
)
SYSTEM_FAMILIES = (SPEEDS, DOWNLOADS, UPLOADS, DROPOUTS, AVAILABILITIES, PROBABILITIES)


def num_asked(wanted: int, over_selection: float) -> int:
    """Return how many clients the server asks to get the wanted number of replies: their product, rounded up.

    The product is first rounded to nine decimals, so that a floating-point error does not add a client.
    """
    return math.ceil(round(wanted * over_selection, 9))


class System(Section):
    """The ``[system]`` section: virtual devices in virtual time. Nothing waits: virtual time is computed."""

    speed: Annotated[Law, SPEEDS] = Field(
        Fixed(value=100.0), description="images that a client's device trains on per second"
    )
    download: Annotated[Law, DOWNLOADS] = Field(
        Fixed(value=20.0), description="download speed of a client's line, in Mbit/s"
    )
    upload: Annotated[Law, UPLOADS] = Field(
        Fixed(value=5.0), description="upload speed of a client's line, in Mbit/s"
    )
    dropout: Annotated[Law, DROPOUTS] = Field(
        Fixed(value=0.0), description="probability that a client is lost in the middle of a round"
    )
    availability: Annotated[Availability, AVAILABILITIES] = Field(
        Always(), description="when a client can be asked to take part"
    )
    server_speed: float | None = Field(
        None,
        gt=0,
        description="images that the server trains on per second if it holds labels; unset: training takes no time",
    )
    deadline: float | None = Field(
        None,
        gt=0,
        description="virtual seconds after which the server goes on without missing replies; unset: it has no deadline",
    )
    over_selection: float = Field(
        1.0,
        ge=1,
        description="clients asked for each client wanted; the round ends when federation.sample clients have answered",
    )
