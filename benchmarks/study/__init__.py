"""The study of docs/results.md: the same lines under three places of labels and two skews, on real photographs."""
