"""Classifiers, one architecture a file; any classifier of torchvision by name."""

from fedssl.models.base import MODELS, Model

__all__ = ["MODELS", "Model"]
