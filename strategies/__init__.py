"""Server strategies, one a file, and the ServerApp that drives them."""
