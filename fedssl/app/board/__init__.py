"""The board: all runs of a folder on a page that this machine serves to itself."""
