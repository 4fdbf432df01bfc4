"""A method that trains towards what the strategy sends to this client alone, and sits the round out if it says so."""

import torch

from fedssl.methods.base import Loss, Method, Pools, Views
from fedssl.methods.functional import supervised_loss


class Addressee(Method):
    """Pull the mean logit to the sum of the client's own array, and record that sum."""

    idle: tuple[int, ...] = ()
    """Shard sizes of the clients that sit every round out."""

    def views(self):
        return Views(("weak",), ("weak",))

    def begin(self, learner):
        own = learner.extra.get("target", {}).get("numbers", torch.zeros(1))
        learner.scratch["sum"] = own.sum()

    def pools(self, learner):
        if len(learner.shard) not in self.idle:
            return None
        nobody = torch.zeros(0, dtype=torch.int64)
        return Pools(nobody, nobody)

    def loss(self, network, batch, state, progress):
        return Loss(supervised_loss(network, batch.labeled[0], batch.labels))

    def step(self, learner, batch):
        loss = self.loss(learner.network, batch, learner.state, learner.progress)
        told = learner.scratch["sum"]
        pull = (learner.network(batch.unlabeled[0]).mean() - told).square()
        learner.descend(loss.total + pull, "main")
        return Loss(loss.total, numbers={"told": told})
