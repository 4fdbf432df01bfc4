"""Virtual devices and virtual time: how fast clients are, when they are available, and how long a round takes.

Nothing here waits: virtual seconds are computed.
"""
