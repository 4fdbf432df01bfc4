"""Evaluators: how a phase's global model is judged."""

from fedssl.metrics.evaluators.base import EVALUATORS, Evaluator

__all__ = ["EVALUATORS", "Evaluator"]
