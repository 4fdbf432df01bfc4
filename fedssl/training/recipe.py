"""The recipe of a phase: everything that decides how one client learns."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fedssl.augment.policy import Augment
from fedssl.core.slots import Scope, Slot, Tensors
from fedssl.methods.base import Fresh, Method
from fedssl.training.correction import Correction
from fedssl.training.optimization import Train
from fedssl.training.optimizer_set import OptimizerSet
from fedssl.training.parameter_groups import Groups


@dataclass(frozen=True)
class Recipe:
    """How a client learns: the method's loss, the optimization, the augmentations and the strategy's correction."""

    method: Method
    train: Train
    augment: Augment
    correction: Correction | None = None

    @functools.cached_property
    def slots_by_section(self) -> dict[str, tuple[Slot, ...]]:
        """The slots by the section of the experiment file that declares them; a round asks for them several times."""
        return {
            "method": self.method.slots(),
            "augment": self.augment.slots(),
            "train": self.train.slots(),
            "strategy": () if self.correction is None else self.correction.slots(),
        }

    def slots(self) -> tuple[Slot, ...]:
        """Return the slots of all sections."""
        return tuple(slot for slots in self.slots_by_section.values() for slot in slots)

    def sent_slots(self) -> dict[str, list[str]]:
        """Return the names of the slots that travel beside the weights, by section; a section without one is left out."""
        sent = {
            section: [slot.name for slot in slots if slot.scope == "server"]
            for section, slots in self.slots_by_section.items()
        }
        return {section: names for section, names in sent.items() if names}

    def slots_in(self, scope: Scope) -> tuple[Slot, ...]:
        """Return the slots of one scope."""
        return tuple(slot for slot in self.slots() if slot.scope == scope)

    def is_forgettable(self, slot: Slot) -> bool:
        """Say whether a client may forget a slot's state by its age (`Train.max_state_age`).

        A correction's state may not be forgotten: its sum over all clients is a part of the server's state.
        """
        return slot not in self.slots_by_section["strategy"]

    def num_steps(self, num_labeled: int, num_examples: int) -> int:
        """Return the steps per round of a client that holds `num_examples` examples, `num_labeled` of them labeled."""
        if num_examples == 0 or not self.method.can_learn(num_labeled):
            return 0
        return self.train.num_steps(num_labeled, num_examples, self.method.views())

    def work(self, num_labeled: int, num_examples: int) -> float:
        """Return a client's work in a round, in images that one network trains on.

        If the method chooses the examples of a round or warms up, a round may be shorter than this. With
        ``train.local_epochs``, it may be longer if the method repeats examples. A client's first round of a phase has the
        `first_work` too.
        """
        num_steps, batch = self.num_steps(num_labeled, num_examples), self.train.batch_size
        if not num_steps:
            return 0.0
        labeled = batch if num_labeled else 0
        step = self.method.images_per_step(labeled, batch * self.method.views().ratio)
        return num_steps * step + self.method.images_before_steps(num_labeled, num_examples)

    def first_work(self, num_labeled: int, num_examples: int) -> float:
        """Return the work that a client has in its first round of a phase only, beside `work` and in the same unit."""
        if not self.num_steps(num_labeled, num_examples):
            return 0.0
        return self.method.images_before_first_round(num_labeled, num_examples)

    def optimizers(self, network: nn.Module) -> OptimizerSet:
        """Return new optimizers of a network: those that the method asks for, over groups as ``[train]`` says."""
        groups = Groups(self.train, network)

        def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            return self.train.make_optimizer(groups.of(parameters))

        return OptimizerSet(self.method.optimizers(network, make))

    def init_slot(self, name: str, fresh: Fresh) -> Tensors:
        """Return a slot's first content; the arguments are those of `Method.init_slot`."""
        if any(slot.name == name for slot in self.method.slots()):
            return self.method.init_slot(name, fresh)
        if self.correction is not None and any(s.name == name for s in self.correction.slots()):
            return self.correction.init_slot(name, shared_parameters(self.method, fresh.network))
        if name in self.augment.learned:
            initial = self.augment.learned[name].initial()
            return {key: tensor.to(fresh.device) for key, tensor in initial.items()}
        return {}  # an optimizer that has not stepped has no state


def shared_parameters(method: Method, network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that travel to the server, by name; buffers are not among them."""
    return {name: p for name, p in network.named_parameters() if method.is_shared(name)}
