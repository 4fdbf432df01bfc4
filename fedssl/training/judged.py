"""Which pseudo-labels of a round are measured against the truth."""

import torch
from torch import Tensor

from fedssl.data.shard import Shard
from fedssl.methods.base import Batch, Loss, Pools
from fedssl.metrics.pseudo_labels import PseudoLabelTally


class Judged:
    """The examples whose pseudo-labels are measured.

    By default, these are the examples that the client has no label for. If the method chose a labeled pool and left the
    pool's labels as the client was given them, it decided which of the client's labels to believe. Then pseudo-labels are
    measured at all examples outside the labeled pool. If the method put classes or probabilities of its own in place of
    the client's labels (`Pools.targets`), the default holds.

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
        self._gives_pseudo_labels = False
        if pools is not None:
            self._is_left_out = self._is_judged.clone()
            self._is_left_out[pools.unlabeled] = False
            # A client without pools takes no step that could show whether the method gives pseudo-labels.
            self._gives_pseudo_labels = not len(pools) and pools.gives_pseudo_labels

    def count(self, tally: PseudoLabelTally, loss: Loss, batch: Batch) -> None:
        """Add a step's pseudo-labels to a tally, if the method gave any."""
        if loss.pseudo_labels is None or loss.accepted is None:
            return
        self._gives_pseudo_labels = True
        ids = batch.unlabeled_ids
        hidden, truth = self._is_judged[ids], self._shard.truth[ids]
        tally.add(loss.pseudo_labels, loss.accepted, hidden, truth)

    def count_left_out(self, tally: PseudoLabelTally, num_draws: int) -> None:
        """Add the judged examples that the method left out of its unlabeled pool: considered, and not accepted.

        So the coverage is a share of all examples, and a method that chooses confident examples before the steps can be
        compared with a method that masks the other examples in each step. Every example of the client then counts as
        often as if the steps had drawn from all of them, whether it was shown more often, less often or not at all. So a
        client with one chosen example, or with none, counts in a cohort's coverage as much as a client that chose all.

        Args:
            tally: The counts of the round's steps, which are all counted.
            num_draws: Number of unlabeled examples that the round's steps show if the method chooses no pools.
        """
        if self._is_left_out is None or not self._gives_pseudo_labels:
            return
        truth = self._shard.truth[self._is_left_out]
        if not len(truth):
            return
        times, num_shown = num_draws / len(self._shard), tally.counts()[0][0]
        num_chosen = int(self._is_judged.sum()) - len(truth)
        if num_shown:
            tally.scale(times * num_chosen / num_shown)
        tally.add_left_out(truth, times)
