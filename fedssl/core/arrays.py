"""Named arrays: the one form in which weights and state leave a network."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

NamedArrays = Mapping[str, npt.NDArray[Any]]
"""Arrays of any shape and type by name. Nobody writes to them."""
