"""What a person looks at: the screen, pictures, reports, comparisons, trackers, exported models."""
