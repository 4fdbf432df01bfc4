"""Which pseudo-labels of a round are measured against the truth."""

import torch
from torch import Tensor

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
        self._is_left_out: Tensor | None = None
        if pools is not None:
            self._is_left_out = self._is_judged.clone()
            self._is_left_out[pools.unlabeled] = False

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

    def count_left_out(self, tally: PseudoLabelTally, by_class: ClassTally) -> None:
        """Add the judged examples that the method left out of its unlabeled pool: considered, and not accepted.

        So the coverage is a share of all examples, and a method that chooses confident examples before the steps can be
        compared with a method that masks the other examples in each step. An example that was left out counts as often
        as the other examples do on average.
        """
        if self._is_left_out is None:
            return
        truth = self._shard.truth[self._is_left_out]
        considered = tally.counts()[0]
        if len(truth) and considered:
            num_shown = int(self._is_judged.sum()) - len(truth)
            for each in (tally, by_class):
                each.add_left_out(truth, considered / num_shown)
