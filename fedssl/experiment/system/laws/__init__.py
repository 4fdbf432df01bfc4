"""How a number, such as a speed, differs over the clients, one law a file."""

from fedssl.experiment.system.laws.base import LAWS, Law

__all__ = ["LAWS", "Law"]
