"""The laws that deal images to clients, one law a file."""

from fedssl.data.partitions.base import PARTITIONS, Partition

__all__ = ["PARTITIONS", "Partition"]
