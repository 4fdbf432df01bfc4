"""Training on one client's shard in a round."""
