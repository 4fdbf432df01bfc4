"""The experiment file: read, merged, validated, and resolved phase by phase."""
