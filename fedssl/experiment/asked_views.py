"""The check that methods and the sections ``[augment.NAME]`` agree on the names of views."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedssl.augment.policy import Augment, how_to_define
from fedssl.core.errors import InputError, suggest_nearest
from fedssl.core.registry import Unimported
from fedssl.methods.base import Method


@dataclass(frozen=True)
class Asked:
    """The views of one phase.

    Args:
        where: Prefix of the field that an error names, such as ``phases[0].``; empty without phases.
        augment: The sections that define views.
        methods: The methods that ask for views: the clients', and the server's if the server learns.
    """

    where: str
    augment: Augment
    methods: tuple[Method, ...]

    @property
    def names(self) -> frozenset[str]:
        """The views that the methods ask for, without the plain view."""
        return frozenset().union(*(method.views().names for method in self.methods))


def check_views(phases: Sequence[Asked]) -> None:
    """Refuse views that a method asks for and no section defines, and sections of views that no method asks for.

    ``weak``, ``strong`` and ``contrast`` are always defined, and may be left unused. Any other section without use is
    refused, because its name is probably mistyped. A phase inherits the experiment's own sections, so one phase that
    uses such a section is enough. If a method was not imported, nobody knows which views it asks for, and nothing is
    refused.

    Raises:
        InputError: A view is not defined, or not used.
    """
    if any(isinstance(method, Unimported) for phase in phases for method in phase.methods):
        return
    for phase in phases:
        _check_defined(phase)
    for phase in phases:
        for name in phase.augment.own_views:
            _check_used(name, [other for other in phases if name in other.augment.own_views])


def _check_defined(phase: Asked) -> None:
    defined = phase.augment.policies
    for method in phase.methods:
        missing = sorted(method.views().names - set(defined))
        if missing:
            names = ", ".join(map(repr, missing))
            raise InputError(
                f"{phase.where}augment.{missing[0]}",
                f"method {method.kind} asks for views {names}, and no section defines them",
                how_to_define(missing[0], defined),
            )


def _check_used(name: str, phases: Sequence[Asked]) -> None:
    """Refuse a view that no phase with its section uses."""
    asked = frozenset().union(*(phase.names for phase in phases))
    if name not in asked:
        where = phases[0].where if len(phases) == 1 else ""
        kinds = ", ".join(sorted({method.kind for phase in phases for method in phase.methods}))
        known = {*asked, *phases[0].augment.policies} - {name}
        raise InputError(
            f"{where}augment.{name}",
            f"no method asks for this view (methods: {kinds})",
            f"drop the section, or correct its name: {suggest_nearest(name, known)}",
        )
