"""Semi-supervised methods, one a file."""

from fedssl.methods.base import (
    METHODS,
    Batch,
    Learner,
    Loss,
    Method,
    Progress,
    SemiSupervised,
    Views,
)

__all__ = ["METHODS", "Batch", "Learner", "Loss", "Method", "Progress", "SemiSupervised", "Views"]
