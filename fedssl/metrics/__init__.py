"""Metrics: accuracy on held-out images, calibration, quality of pseudo-labels and client drift."""
