"""The laws that decide which examples carry a label, one law a file."""

from fedssl.data.labels.base import LABEL_SPLITS, LabelSplit

__all__ = ["LABEL_SPLITS", "LabelSplit"]
