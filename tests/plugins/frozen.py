"""A method whose teacher is the global model with which the phase began; it never changes and never comes back."""

import torch
from pydantic import Field

from fedssl.core.slots import Slot
from fedssl.methods import Loss, SemiSupervised
from fedssl.methods.functional import call_with, probability_mse, snapshot, supervised_loss


class Frozen(SemiSupervised):
    """Agree with a frozen teacher."""

    counts_rounds: bool = Field(True, description="whether a client keeps the number of its rounds")

    def slots(self):
        teacher = Slot("teacher", "phase")
        return (teacher, Slot("rounds", "client")) if self.counts_rounds else (teacher,)

    def init_slot(self, name, fresh):
        if name == "rounds":
            return {"count": torch.zeros(())}
        assert fresh.shard is None, "a phase's state is made at the server"
        return snapshot(fresh.network)

    def loss(self, network, batch, state, progress):
        weak, strong = batch.unlabeled
        with torch.no_grad():
            targets = call_with(network, state["teacher"], weak).softmax(1)
        total = supervised_loss(network, batch.labeled[0], batch.labels)
        teacher = sum(tensor.double().abs().sum() for tensor in state["teacher"].values())
        return Loss(total + probability_mse(network(strong), targets), numbers={"teacher": teacher})

    def end(self, learner):
        if self.counts_rounds:
            learner.state["rounds"]["count"] += 1
