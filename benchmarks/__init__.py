"""Benchmarks; README.md says what each measures and how fairness is kept."""
