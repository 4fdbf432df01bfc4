"""Named arrays, the one form in which weights and state leave a network."""

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

NamedArrays = Mapping[str, npt.NDArray[Any]]
"""NamedArrays of any shapes and types by name, which nobody writes to."""
