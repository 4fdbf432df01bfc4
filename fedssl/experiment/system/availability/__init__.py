"""Rules that say when clients can take part, one rule per file."""

from fedssl.experiment.system.availability.base import AVAILABILITIES, Availability

__all__ = ["AVAILABILITIES", "Availability"]
