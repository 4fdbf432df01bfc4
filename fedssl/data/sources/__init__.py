"""Where images come from, one source a file."""

from fedssl.data.sources.base import SOURCES, Dataset, Images, Source

__all__ = ["SOURCES", "Dataset", "Images", "Source"]
