"""Which pseudo-labels of a round are measured against the truth."""

import torch

from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, Loss, Pools
from fedssl.metrics.pseudo_labels import ClassTally, PseudoLabelTally


class Judged:
    """The examples whose pseudo-labels are measured.

    By default, these are the examples without a given label. If the method chose the round's labeled pool and took its
    given labels, it decided which given labels to believe: the labels that it gave are measured at all other examples.
    If the method put labels of its own in place of the given ones (`Pools.targets`), the default holds.

    Args:
        shard: The client's examples.
        pools: The pools that the method chose; None: it chose none.
    """

    def __init__(self, shard: Shard, pools: Pools | None) -> None:
        self._shard = shard
        self._is_judged = shard.labels < 0
        if pools is not None and pools.targets is None:
            self._is_judged = torch.ones_like(self._is_judged)
            self._is_judged[pools.labeled] = False

    def count(self, tallies: tuple[PseudoLabelTally, ClassTally], loss: Loss, batch: Batch) -> None:
        """Add a step's pseudo-labels to tallies, if the method gave any."""
        if loss.pseudo_labels is None or loss.accepted is None:
            return
        ids = batch.unlabeled_ids
        for tally in tallies:
            tally.add(
                loss.pseudo_labels,
                loss.accepted,
                self._is_judged[ids],
                self._shard.truth[ids],
            )
