"""What a run leaves behind: the run directory, its tables, and checkpoints from which it goes on."""
