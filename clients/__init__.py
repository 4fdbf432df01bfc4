"""The Flower client: decode a request, train or evaluate on the local shard, encode the reply."""
