"""The ``[augment]`` section: how each kind of view is made in this experiment, by the view's name."""

from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import ConfigDict, Field, model_validator

from fedssl.augment.base import AUGMENTATIONS, Augmentation, LearnedAugmentation
from fedssl.augment.contrast import Contrast
from fedssl.augment.randaugment import RandAugment
from fedssl.augment.weak import Weak
from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Section
from fedssl.core.slots import Slot

PLAIN = "plain"
"""The name of the view that is the image as it is. No section can change its meaning."""

DEFAULT_KINDS = {"weak": "weak", "strong": "randaugment", "contrast": "contrast"}
"""The kinds of the views that every experiment has. A section for any other view must name its kind."""


def family_of_view(name: str) -> Family:
    """Return the family of augmentations at the place in the experiment file that defines a view."""
    return AUGMENTATIONS.at(f"augment.{name}", DEFAULT_KINDS.get(name))


WEAK, STRONG, CONTRAST = map(family_of_view, DEFAULT_KINDS)


class Augment(Section):
    """The augmentations that make the views that methods ask for, one section for each view.

    ``[augment.NAME]`` with a kind defines a view of the file's own, under any name that some method of the file asks for.
    """

    model_config = ConfigDict(extra="allow")

    __pydantic_extra__: dict[str, Annotated[Augmentation, AUGMENTATIONS]]

    weak: Annotated[Augmentation, WEAK] = Field(
        Weak(), description="augmentation that makes a method's weak views"
    )
    strong: Annotated[Augmentation, STRONG] = Field(
        RandAugment(), description="augmentation that makes a method's strong views"
    )
    contrast: Annotated[Augmentation, CONTRAST] = Field(
        Contrast(),
        description="augmentation that makes the views that a contrastive method compares",
    )

    @model_validator(mode="before")
    @classmethod
    def _build_views_of_the_file(cls, value: Any) -> Any:
        """Build the sections of other views here, where each section's name is known to its errors."""
        if not isinstance(value, Mapping):
            return value
        return {
            name: given if name in cls.model_fields else _build(name, given)
            for name, given in value.items()
        }

    @property
    def own_views(self) -> dict[str, Augmentation]:
        """The augmentations of the views that only this experiment defines, by the view's name."""
        return dict(self.__pydantic_extra__)

    @property
    def policies(self) -> dict[str, Augmentation]:
        """The augmentations of all views, by the view's name."""
        return {name: getattr(self, name) for name in DEFAULT_KINDS} | self.own_views

    def policy_of(self, view: str) -> Augmentation:
        """Return the augmentation that makes a view.

        Raises:
            InputError: No section defines the view.
        """
        policies = self.policies
        if view not in policies:
            raise InputError(
                f"augment.{view}",
                "a method asks for this view, and no section defines it",
                how_to_define(view, policies),
            )
        return policies[view]

    @property
    def learned(self) -> dict[str, LearnedAugmentation]:
        """Return the augmentations that learn, by the name of the slot that holds their state."""
        return {
            slot_of(view): policy
            for view, policy in self.policies.items()
            if isinstance(policy, LearnedAugmentation)
        }

    def slots(self) -> tuple[Slot, ...]:
        """Return the slots that hold the state of the augmentations that learn."""
        return tuple(Slot(name, policy.scope) for name, policy in self.learned.items())


def slot_of(view: str) -> str:
    """Return the name of the slot in which the augmentation of a view keeps what it learns."""
    return f"augment.{view}"


def how_to_define(view: str, defined: Mapping[str, Augmentation]) -> str:
    """Return what to do about a view that no section defines.

    Args:
        view: Name of the view.
        defined: The views that are defined.
    """
    names = ", ".join(sorted([*defined, PLAIN]))
    # A section cannot define a view of any other name.
    add = f"add [augment.{view}] with a kind, or " if view.isidentifier() else ""
    return f"{add}ask for one of: {names}"


def _build(name: str, value: Any) -> Augmentation:
    """Return the augmentation of a view that only this experiment defines.

    Raises:
        InputError: The name is not one that a view may have, or the section is invalid.
    """
    where = f"augment.{name}"
    if name == PLAIN:
        problem = "the plain view is the image as it is, and no section can change it"
        raise InputError(where, problem, "give the view another name")
    if not name.isidentifier():
        problem = "is not a name for a view"
        raise InputError(where, problem, "use letters, digits and _, and begin with a letter")
    # A plug-in that may not be imported has a stand-in, which is no `Augmentation`.
    return cast("Augmentation", family_of_view(name).build(value))
