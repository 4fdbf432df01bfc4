"""A few labels of every class, wherever the partition put the images."""

from fedssl.data.labels.base import LabelSplit


class AtClients(LabelSplit):
    """Draw the labeled examples once over the whole federation; the partition spreads them."""
