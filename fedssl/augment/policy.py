"""The ``[augment]`` section: what "weak" and "strong" mean in this experiment."""

from typing import Annotated

from fedssl.augment.base import AUGMENTATIONS, Augmentation
from fedssl.augment.randaugment import RandAugment
from fedssl.augment.weak import Weak
from fedssl.registry import Section

WEAK = AUGMENTATIONS.at("augment.weak", "weak")
STRONG = AUGMENTATIONS.at("augment.strong", "randaugment")


class Augment(Section):
    """The two kinds of views that methods ask for."""

    weak: Annotated[Augmentation, WEAK] = Weak()
    strong: Annotated[Augmentation, STRONG] = RandAugment()
