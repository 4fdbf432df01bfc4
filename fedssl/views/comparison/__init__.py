"""Comparison of recorded runs: which runs are seeds of one line, whether lines may be compared, and statistics."""
