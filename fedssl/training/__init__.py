"""What one client does with its shard in a round."""
