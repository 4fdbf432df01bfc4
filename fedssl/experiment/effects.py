"""Sections of an experiment file that change no result."""

WITHOUT_EFFECT = ("engine", "record", "tracker")
"""These sections say where clients run, how the run is reported and where it is tracked. No result depends on them."""
