"""A method that uses every hook of the interface, which proves that the hooks work together.

The method has two networks with an optimizer each, a private head, memory by example at the client, running statistics
at the server, a pass over the shard before the steps, and a step of its own.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fedssl.core.slots import Slot, State, Tensors
from fedssl.methods.base import (
    Batch,
    Fresh,
    Learner,
    Loss,
    Method,
    Progress,
    Views,
)
from fedssl.methods.functional import supervised_loss


class Twins(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.second = second
        self.head = nn.Linear(10, 4)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.first(images)
        return logits


class Stateful(Method):
    """Train two networks side by side and keep state in every scope."""

    def views(self) -> Views:
        return Views(("weak", "plain"), ("weak", "strong", "plain"), ratio=2)

    def slots(self) -> tuple[Slot, ...]:
        return (Slot("memory", "client"), Slot("marginal", "server"), Slot("scratch", "reset"))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        if name == "memory":
            assert fresh.shard is not None
            return {
                "seen": torch.zeros(len(fresh.shard), dtype=torch.int64),
                "rounds": torch.zeros(1),
            }
        if name == "marginal":
            assert fresh.shard is None, "server state is made at the server"
            return {"mass": torch.zeros(10)}
        return {"loss": torch.zeros(1)}

    def network(self, build: Callable[[], nn.Module]) -> nn.Module:
        return Twins(build(), build())

    def classifier(self, network: nn.Module) -> nn.Module:
        assert isinstance(network, Twins)
        return network.first

    def is_shared(self, key: str) -> bool:
        return not key.startswith("head.")

    def optimizers(
        self,
        network: nn.Module,
        make: Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer],
    ) -> dict[str, torch.optim.Optimizer]:
        assert isinstance(network, Twins)
        return {
            "main": make(network.first.parameters()),
            "second": make(network.second.parameters()),
            "head": make(network.head.parameters()),
        }

    def begin(self, learner: Learner) -> None:
        images = learner.shard.images.float().div(255)
        with torch.no_grad():
            learner.network(learner.shard.spec.normalize(images))
        torch.rand(1, generator=learner.stream("mine"))

    def loss(self, network: nn.Module, batch: Batch, state: State, progress: Progress) -> Loss:
        assert isinstance(network, Twins)
        return Loss(supervised_loss(network.second, batch.labeled[1], batch.labels))

    def step(self, learner: Learner, batch: Batch) -> Loss:
        assert isinstance(learner.network, Twins)
        first = supervised_loss(learner.network.first, batch.labeled[0], batch.labels)
        learner.descend(first, "main")
        second = self.loss(learner.network, batch, learner.state, learner.progress)
        learner.descend(second.total, "second")
        features = learner.network.first(batch.unlabeled[2]).detach()
        learner.descend(learner.network.head(features).square().mean(), "head")
        learner.state["memory"]["seen"][batch.unlabeled_ids] += 1
        learner.state["marginal"]["mass"].copy_(features.softmax(1).mean(0))
        return second

    def after_step(self, learner: Learner, batch: Batch, loss: Loss) -> None:
        learner.state["scratch"]["loss"] += 1

    def end(self, learner: Learner) -> None:
        assert learner.state["scratch"]["loss"] == learner.progress.num_steps
        learner.state["memory"]["rounds"] += 1
