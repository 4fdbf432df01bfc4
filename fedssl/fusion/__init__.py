"""Fusion: several small clients are trained in one step."""
