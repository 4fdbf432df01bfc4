"""The server's rounds: from an experiment and a grid to a recorded run."""
