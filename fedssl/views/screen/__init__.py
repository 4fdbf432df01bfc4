"""A run as it is shown while it goes on: in a terminal, in a notebook, or not at all."""
