"""Virtual devices and virtual time: how fast clients are, when they are there, and what a round takes.

Nothing here waits: seconds are counted, not spent.
"""
