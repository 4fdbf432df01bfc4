"""Federated semi-supervised learning: simulate a non-IID federation, then deploy the same clients."""

__version__ = "0.1.0"
