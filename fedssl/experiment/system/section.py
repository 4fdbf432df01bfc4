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
    """Return how many clients are asked where so many are wanted; a product that is whole but for rounding stays."""
    return math.ceil(round(wanted * over_selection, 9))


class System(Section):
    """The ``[system]`` section: virtual devices in virtual time. Nobody waits: the clock is computed, not run."""

    speed: Annotated[Law, SPEEDS] = Field(
        Fixed(value=100.0), description="images that a client's device trains on in a second"
    )
    download: Annotated[Law, DOWNLOADS] = Field(
        Fixed(value=20.0), description="of its line, in Mbit/s"
    )
    upload: Annotated[Law, UPLOADS] = Field(Fixed(value=5.0), description="likewise")
    dropout: Annotated[Law, DROPOUTS] = Field(
        Fixed(value=0.0), description="probability that it is lost in the middle of a round"
    )
    availability: Annotated[Availability, AVAILABILITIES] = Field(
        Always(), description="when it can be asked to take part"
    )
    server_speed: float | None = Field(
        None,
        gt=0,
        description="images that the server trains on in a second, where labels are there; unset: it takes no time",
    )
    deadline: float | None = Field(
        None,
        gt=0,
        description="virtual seconds after which the server goes on without those missing",
    )
    over_selection: float = Field(
        1.0,
        ge=1,
        description="clients asked for every one wanted; the round ends when federation.sample have answered",
    )
