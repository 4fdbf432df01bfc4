"""Displays of a run while it goes on: in a terminal, in a notebook, or as plain lines."""
