"""Semi-supervised methods, one per file."""

from fedssl.methods.base import (
    METHODS,
    Batch,
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
    "Learner",
    "Loss",
    "Method",
    "Pools",
    "Progress",
    "SemiSupervised",
    "Views",
]
