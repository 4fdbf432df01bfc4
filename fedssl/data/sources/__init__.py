"""The sources that images come from, one source a file."""

from fedssl.data.sources.base import SOURCES, Source

__all__ = ["SOURCES", "Source"]
