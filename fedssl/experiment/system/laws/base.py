"""What every law is: a rule that gives each client a number."""

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
    """A rule that gives each client a number of its own."""

    is_abstract: ClassVar[bool] = True

    @abstractmethod
    def draw(self, num_clients: int, generator: np.random.Generator) -> Numbers:
        """Return the number of each client, float64 (K,).

        Args:
            num_clients: K.
            generator: Source of the draw.

        Raises:
            InputError: The law cannot say, for one of these clients.
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
            field: Dotted name of what is drawn, for messages, e.g. ``"system.speed"``.
            least: Bound that every number is above; with `including_least`, or at.
            most: Bound that no number is above; by default any finite number will do.

        Raises:
            InputError: A number is out of bounds or not finite; names the first such client and its number.
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
    """The family of laws; a bare number is short for the law that gives it to everybody."""

    def as_table(self, value: Any) -> Any:
        """Return a section as a table: a bare number is a fixed one, a bare name a kind."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {self.key: "fixed", "value": value}
        return super().as_table(value)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the section for editors: a number, or one alternative a kind."""
        kinds = super().__get_pydantic_json_schema__(schema, handler)
        return {"anyOf": [{"type": "number"}, *kinds["anyOf"]]}


LAWS = LawFamily("law", "fedssl.experiment.system.laws", Law, "system.speed", default="fixed")
