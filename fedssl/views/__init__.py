"""Everything that shows a run to a person: the screen, pictures, reports, comparisons, trackers, exported models."""
