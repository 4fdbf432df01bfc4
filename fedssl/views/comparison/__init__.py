"""Recorded runs side by side: which belong together, whether they may be compared, and what they sum up to."""
