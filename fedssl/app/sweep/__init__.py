"""Sweeps: the points of a sweep and their folders, the processes that run them side by side, and the display."""
