"""Deploy a federation as processes, in containers or on this host: Flower's SuperLink and SuperNodes run it."""
