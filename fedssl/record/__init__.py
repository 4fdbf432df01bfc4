"""The record of a run: its files, its checkpoints, and how a run goes on from them."""
