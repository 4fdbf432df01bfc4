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

__all__ = [
    "METHODS",
    "Batch",
    "Fresh",
    "Learner",
    "Loss",
    "Method",
    "Pools",
    "Progress",
    "SemiSupervised",
    "Views",
]
