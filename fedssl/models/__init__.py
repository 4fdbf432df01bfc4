"""Classifiers, one architecture per file, and any classifier of torchvision by name."""

from fedssl.models.base import MODELS, Model

__all__ = ["MODELS", "Model"]
