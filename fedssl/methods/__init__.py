"""Semi-supervised methods, one per file."""

from fedssl.methods.base import (
    METHODS,
    Batch,
    Fresh,
    Learner,
    Loss,
    Method,
    Pools,
    Progress,
    SemiSupervised,
    Views,
)
from fedssl.methods.labeling import BothLabelers, PseudoLabeling

__all__ = [
    "METHODS",
    "Batch",
    "BothLabelers",
    "Fresh",
    "Learner",
    "Loss",
    "Method",
    "Pools",
    "Progress",
    "PseudoLabeling",
    "SemiSupervised",
    "Views",
]
