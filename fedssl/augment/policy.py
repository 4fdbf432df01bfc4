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
    """The augmentations that make the two kinds of views that methods ask for."""

    weak: Annotated[Augmentation, WEAK] = Field(
        Weak(), description="augmentation that makes a method's weak views"
    )
    strong: Annotated[Augmentation, STRONG] = Field(
        RandAugment(), description="augmentation that makes a method's strong views"
    )

    @property
    def learned(self) -> dict[str, LearnedAugmentation]:
        """Return the augmentations that learn, by the name of the slot that holds their state."""
        kinds = {"augment.weak": self.weak, "augment.strong": self.strong}
        return {name: a for name, a in kinds.items() if isinstance(a, LearnedAugmentation)}

    def slots(self) -> tuple[Slot, ...]:
        """Return the slots that hold the state of the augmentations that learn."""
        return tuple(Slot(name, policy.scope) for name, policy in self.learned.items())
