"""Optimizers of a client's training, one module each; ``train.optimizer`` names one."""

from fedssl.training.optimizers.base import OPTIMIZERS, Optimizer

__all__ = ["OPTIMIZERS", "Optimizer"]
