"""A few labels of every class, at the clients that the partition gave the images to."""

from fedssl.data.labels.base import LabelSplit


class AtClients(LabelSplit):
    """Draw the labeled examples over the whole federation; each client holds the labels of its own images."""
