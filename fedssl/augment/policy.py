"""The ``[augment]`` section: what "weak" and "strong" mean in this experiment."""

from typing import Annotated

from pydantic import Field

from fedssl.augment.base import AUGMENTATIONS, Augmentation, LearnedAugmentation
from fedssl.augment.randaugment import RandAugment
from fedssl.augment.weak import Weak
from fedssl.core.registry import Section
from fedssl.core.slots import Slot

WEAK = AUGMENTATIONS.at("augment.weak", "weak")
STRONG = AUGMENTATIONS.at("augment.strong", "randaugment")


class Augment(Section):
    """The two kinds of views that methods ask for."""

    weak: Annotated[Augmentation, WEAK] = Field(
        Weak(), description="what a method's weak views are"
    )
    strong: Annotated[Augmentation, STRONG] = Field(
        RandAugment(), description="what a method's strong views are"
    )

    @property
    def learned(self) -> dict[str, LearnedAugmentation]:
        """Return the augmentations that learn, by the slot their state is in."""
        kinds = {"augment.weak": self.weak, "augment.strong": self.strong}
        return {name: a for name, a in kinds.items() if isinstance(a, LearnedAugmentation)}

    def slots(self) -> tuple[Slot, ...]:
        """Return where the state of augmentations that learn lives."""
        return tuple(Slot(name, policy.scope) for name, policy in self.learned.items())
