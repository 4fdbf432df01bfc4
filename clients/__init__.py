"""The Flower client: it reads a request, trains or evaluates on its shard, and replies."""
