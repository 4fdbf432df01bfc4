"""A method that sits out every second round of a phase, and counts its rounds at the client."""

import torch

from fedssl.core.slots import Slot
from fedssl.methods.base import Pools
from fedssl.methods.supervised import Supervised


class Resting(Supervised):
    """Supervised training in odd rounds."""

    def slots(self):
        return (Slot("memory", "client"),)

    def init_slot(self, name, fresh):
        return {"rounds": torch.zeros(1)}

    def begin(self, learner):
        learner.state["memory"]["rounds"] += 1

    def pools(self, learner):
        none = torch.empty(0, dtype=torch.int64)
        return Pools(none, none) if learner.progress.round % 2 == 0 else None
