"""A federation of processes: Flower's SuperLink and SuperNodes around the same clients, in containers or on this host."""
