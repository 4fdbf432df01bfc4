"""Server strategies, one per file."""
