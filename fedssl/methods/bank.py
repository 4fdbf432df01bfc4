"""A bank of what a network made of the last images: CoMatch's memory bank and MoCo's queue.

A bank is a ring of K places. Its tensors, by name:

- what a method keeps of each image, such as its embedding, each of shape (K, ...);
- ``images``, the row in the shard of each entry's image, int64 (K,), `NO_IMAGE` for an empty place;
- ``rounds``, the round in which each entry was made, from 1, int64 (K,), 0 for an empty place;
- ``pointer``, the place of the next entry, int64 ().
"""

import torch
from torch import Tensor

from fedssl.core.slots import Tensors

NO_IMAGE = -1
"""Image of an empty place."""


def empty_bank(contents: Tensors) -> Tensors:
    """Return a bank without entries.

    Args:
        contents: What is kept of each image, by name, each of shape (K, ...); zeros by custom, because no one reads them.
    """
    (size,) = {len(tensor) for tensor in contents.values()}
    device = next(iter(contents.values())).device
    return {
        **contents,
        "images": torch.full((size,), NO_IMAGE, device=device),
        "rounds": torch.zeros(size, dtype=torch.int64, device=device),
        "pointer": torch.zeros((), dtype=torch.int64, device=device),
    }


def write(bank: Tensors, new: Tensors, images: Tensor, round: int) -> Tensors:
    """Return a bank in which new entries have replaced the oldest; the last place is followed by the first.

    Args:
        bank: The bank; it is not written to.
        new: New entries, by the names of the bank's contents, each of shape (n, ...). If n is more than the bank holds,
            the last of them stay.
        images: Row in the shard of each entry's image, int64 (n,).
        round: Round in which the entries were made, from 1.
    """
    size, count = len(bank["rounds"]), len(images)
    places = (bank["pointer"] + torch.arange(count, device=images.device)) % size
    last = slice(-size, None)
    new = {**new, "images": images}
    return {
        **{name: bank[name].index_copy(0, places[last], new[name][last]) for name in new},
        "rounds": bank["rounds"].index_fill(0, places[last], round),
        "pointer": (bank["pointer"] + count) % size,
    }


def counting_entries(bank: Tensors, round: int, max_age: int) -> Tensor:
    """Return which places hold an entry that is not too old, bool (K,).

    Args:
        bank: The bank.
        round: The present round, from 1.
        max_age: Rounds after which an entry does not count any more; 0: only entries of this round count.
    """
    return (bank["rounds"] > 0) & (round - bank["rounds"] <= max_age)
