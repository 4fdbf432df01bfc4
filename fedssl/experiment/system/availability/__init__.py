"""When clients can take part, one law a file."""

from fedssl.experiment.system.availability.base import AVAILABILITIES, Availability

__all__ = ["AVAILABILITIES", "Availability"]
