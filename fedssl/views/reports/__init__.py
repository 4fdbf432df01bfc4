"""Pages for people: the report of a run, and several runs side by side."""
