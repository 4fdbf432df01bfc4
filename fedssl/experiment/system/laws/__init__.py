"""Laws that give each client a number, such as a speed; one law per file."""

from fedssl.experiment.system.laws.base import LAWS, Law

__all__ = ["LAWS", "Law"]
