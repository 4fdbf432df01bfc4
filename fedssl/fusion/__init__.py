"""Several small clients trained in one step."""
