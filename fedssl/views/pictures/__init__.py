"""Pictures of runs and federations as PNG files."""
