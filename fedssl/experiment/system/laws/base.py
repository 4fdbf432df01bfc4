"""The base class of laws; a law gives each client a number."""

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from fedssl.core.errors import InputError
from fedssl.core.registry import Family, Plugin

Numbers = npt.NDArray[np.float64]


class Law(Plugin):
    """A rule that gives each client a number of its own.

    Example:
        A new law defines `draw`:

        >>> class Rising(Law):
        ...     step: float
        ...     def draw(self, num_clients, generator):
        ...         return self.step * np.arange(num_clients)
        >>> Rising(step=2.0).draw(3, np.random.default_rng(0)).tolist()
        [0.0, 2.0, 4.0]
    """

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return the number of each client, float64 (K,).

        Args:
            num_clients: K.
            generator: Source of the draw.

        Raises:
            InputError: The law has no number for one of these clients.
        """

    def draw_within(
        self,
        num_clients: int,
        generator: np.random.Generator,
        field: str,
        least: float,
        most: float = math.inf,
        *,
        including_least: bool = False,
    ) -> Numbers:
        """Draw numbers that must lie in (least, most], float64 (K,).

        Args:
            num_clients: K.
            generator: Source of the draw.
            field: Dotted name of the drawn setting, for messages, e.g. ``"system.speed"``.
            least: Bound that every number must be above.
            most: Bound that no number may be above; by default, every finite number is allowed.
            including_least: Whether a number may also equal `least`.

        Raises:
            InputError: A number is out of bounds or not finite; the message names the first such client and its number.
        """
        try:
            numbers = self.draw(num_clients, generator)
        except InputError as error:
            raise error.within(f"{field}: ") from None
        above = numbers >= least if including_least else numbers > least
        wrong = ~(np.isfinite(numbers) & above & (numbers <= most))
        if wrong.any():
            client = int(wrong.argmax())
            at_most = f" and at most {most:g}" if math.isfinite(most) else " and finite"
            bound = "at least" if including_least else "above"
            raise InputError(
                field,
                f"is {float(numbers[client])!r} at client {client}",
                f"it must be {bound} {least:g}{at_most}",
            )
        return numbers


class LawFamily(Family):
    """The family of laws; a bare number is short for the law that gives this number to every client."""

    def as_table(self, value: Any) -> Any:
        """Return a section as a table: a bare number becomes a fixed law, a bare name becomes a kind."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {self.key: "fixed", "value": value}
        return super().as_table(value)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the section for editors: a number, or one alternative per kind."""
        kinds = super().__get_pydantic_json_schema__(schema, handler)
        return {"anyOf": [{"type": "number"}, *kinds["anyOf"]]}


LAWS = LawFamily("law", "fedssl.experiment.system.laws", Law, "system.speed", default="fixed")
