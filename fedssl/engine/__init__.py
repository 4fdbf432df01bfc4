"""Where clients run: one after the other, as Ray actors, or under Flower's own simulation runtime."""
