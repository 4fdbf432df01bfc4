"""Benchmarks. README.md says what each one measures and what makes the comparisons fair."""
