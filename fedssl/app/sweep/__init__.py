"""A grid of runs: its points and their folders, the processes that run them side by side, and what a person sees of it."""
